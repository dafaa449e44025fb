// SPDX-License-Identifier: Apache-2.0

package push

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/internal/outfile"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
)

// receiver is the [backup.Receiver] of targets.
type receiver struct {
	sys     *outfile.System
	hooks   backup.Hooks
	noLock  bool
	workers int
	jobs    []*job // what is written in place last

	total     int64 // bytes of data to be read
	done      atomic.Int64
	published bool
}

// job is one disk on its way to its target.
type job struct {
	Target
	at  *outfile.Place
	out *outfile.Output // nil: not opened yet
	outfile.Amounts
	done atomic.Int64 // guest bytes written
}

func (r *receiver) job(disk string) *job {
	for _, j := range r.jobs {
		if j.Disk == disk {
			return j
		}
	}
	return nil
}

// Accept is [backup.Receiver]'s.
func (r *receiver) Accept(disks []backup.OpenDisk) error {
	for _, src := range disks {
		j := r.job(src.Plan.Disk)
		if err := r.outsideImages(src.Image); err != nil {
			return err
		}
		if j.Backing != nil && src.Plan.Mode == backup.Full {
			return about(j.Disk, usage.Errorf("a full backup has no backing file"))
		}
		if j.Format != qcow2.Qcow2 {
			continue
		}
		// Refused now, rather than after the checkpoint's bitmaps were added.
		cs, err := qcow2.ClusterSizeFor(src.Image.Size(), j.clusterSize(src))
		if err != nil {
			return about(j.Disk, err)
		}
		if err := j.create(cs).Check(src.Image.Size()); err != nil {
			return about(j.Disk, usage.Errorf("%w", err))
		}
	}
	return nil
}

// outsideImages refuses targets that are a file of the disk's own chain.
func (r *receiver) outsideImages(c *qcow2.Image) error {
	for _, layer := range c.Layers {
		for _, f := range layer.Files() {
			fi, err := os.Stat(f.Path())
			if err != nil {
				return err
			}
			id, ok := sys.Identity(fi)
			for _, j := range r.jobs {
				if !ok || (j.at.Exists || j.at.Device) && j.at.ID == id {
					return about(j.Disk, usage.Errorf("the target %s is an image of the domain itself", j.at.Path))
				}
			}
		}
	}
	return nil
}

// clusterSize is the one that a qcow2 target is to have at least, bytes.
func (j *job) clusterSize(src backup.OpenDisk) int64 {
	if h := src.Image.Layers[0].Header; j.ClusterSize == 0 && h != nil {
		return h.ClusterSize()
	}
	return j.ClusterSize
}

func (j *job) create(clusterSize int64) *qcow2.CreateOptions {
	return &qcow2.CreateOptions{ClusterSize: clusterSize, Backing: j.Backing}
}

// Write is [backup.Receiver]'s.
func (r *receiver) Write(ctx context.Context, disks []backup.OpenDisk) error {
	sources := make(map[*job]backup.OpenDisk)
	for _, src := range disks {
		sources[r.job(src.Plan.Disk)] = src
	}
	var demands []outfile.Demand
	random := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	for _, j := range r.jobs {
		src := sources[j]
		if err := r.open(ctx, j, src); err != nil {
			return err
		}
		if err := src.Image.CrossCheck(ctx, backup.CrossCheckSamples, random); err != nil {
			return about(j.Disk, err)
		}
		var err error
		if j.Amounts, err = j.count(ctx, src); err != nil {
			return about(j.Disk, err)
		}
		r.total += j.Data
		demands = append(demands, outfile.Demand{Output: j.out, Data: j.Data})
	}
	for _, note := range outfile.SpaceNotes("the backup", demands) {
		if r.hooks.Note != nil {
			r.hooks.Note(note)
		}
	}
	for _, j := range r.jobs {
		r.count(j, 0)
		if err := j.do(ctx, sources[j], r.workers, func(n int64) { r.count(j, n) }); err != nil {
			return err
		}
	}
	return nil
}

func (r *receiver) open(ctx context.Context, j *job, src backup.OpenDisk) (err error) {
	spec := outfile.Spec{Size: src.Image.Size(), NoLock: r.noLock}
	if j.Format == qcow2.Qcow2 {
		spec.Create = j.create(j.clusterSize(src))
	}
	j.out, err = outfile.Open(ctx, r.sys, j.at, spec)
	return about(j.Disk, err)
}

// do writes one disk and makes it durable.
func (j *job) do(ctx context.Context, src backup.OpenDisk, workers int, count func(int64)) error {
	err := j.write(ctx, src, workers, count)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = j.out.Finish()
	}
	if err != nil && j.at.InPlace() {
		err = fmt.Errorf("what %s holds is now incomplete, push to it again: %w", j.at.Path, err)
	}
	return about(j.Disk, err)
}

// count tells that n more guest bytes of a disk were dealt with; 0: that it begins.
func (r *receiver) count(j *job, n int64) {
	done, mine := r.done.Add(n), j.done.Add(n)
	if r.hooks.Disk != nil {
		r.hooks.Disk(j.Disk, mine, j.Data)
	}
	if r.hooks.Progress != nil && n > 0 {
		r.hooks.Progress(done, r.total)
	}
}

func (r *receiver) outputs() []*outfile.Output {
	var outs []*outfile.Output
	for _, j := range r.jobs {
		if j.out != nil {
			outs = append(outs, j.out)
		}
	}
	return outs
}

// Publish is [backup.Receiver]'s.
func (r *receiver) Publish() error {
	if err := outfile.Publish(r.sys, r.outputs()); err != nil {
		return err
	}
	r.published = true
	return nil
}

// Retract is [backup.Receiver]'s.
func (r *receiver) Retract() error {
	r.published = false
	err := outfile.Retract(r.sys, r.outputs())
	for _, j := range r.jobs {
		if j.at.InPlace() {
			err = errors.Join(err, fmt.Errorf("%s has been written to already, and is complete", j.at.Path))
		}
	}
	return err
}

// discard closes all outputs, and removes what was not published.
func (r *receiver) discard() error {
	if r.published {
		outfile.Settle(r.outputs())
	}
	var errs []error
	for _, out := range r.outputs() {
		errs = append(errs, out.Discard())
	}
	return errors.Join(errs...)
}

func (r *receiver) results(plan *backup.Plan) []DiskResult {
	var list []DiskResult
	for _, p := range plan.Disks {
		j := r.job(p.Disk)
		d := DiskResult{Disk: j.Disk, Path: j.at.Path, Format: j.Format, InPlace: j.at.InPlace(), Data: j.Data, Zero: j.Zero}
		if j.out.Creator != nil {
			d.ClusterSize = j.out.Creator.ClusterSize()
		}
		list = append(list, d)
	}
	return list
}
