// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"fmt"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/outfile"
	"github.com/imgbackup/imgbackup/qcow2"
)

// job is one disk on its way.
type job struct {
	Target
	outfile.Amounts
	o    *Options
	disk *chain.Disk
	// continues: it gets the checkpoint's bitmap.
	continues bool
	how       writer
	at        *outfile.Place  // nil: stdout
	out       *outfile.Output // nil: stdout, or not open yet
	size      int64           // of what is written as a disk, bytes
	lost      *chain.LossSet  // nil: nothing may be
	sums      *Sums           // of what was written; nil: nobody wants them
}

// writer is a way in which a disk gets to where it goes. Its methods are called in
// their order, each at most once, but close, whatever failed, any number of times.
type writer interface {
	// prove proves the disk's maps and counts what they hold. Nothing has been
	// written yet.
	prove(ctx context.Context) (outfile.Amounts, error)
	// write writes the disk. It need not be durable yet.
	write(ctx context.Context, j *job, p *progress) error
	// verify reads back what was written, and is durable now.
	verify(ctx context.Context, j *job, p *progress) error
	// close lets go of what it has open, but not of the output.
	close()
}

func (r *restoring) newJob(t Target) (*job, error) {
	d, err := findDisk(r.m, t.Disk)
	if err != nil {
		return nil, err
	}
	j := &job{Target: t, o: &r.o, disk: d, size: d.Size, continues: r.o.Continue && r.o.checkContinue(t, d) == nil}
	switch {
	case r.o.SkipDamaged:
		j.lost = chain.NewLossSet(d.Size)
	case len(d.Lost) > 0:
		return nil, &chain.LostError{Disk: d}
	}
	archived := archivedDisk{repo: r.repo, entry: d, lost: j.lost}
	switch {
	case t.Path == Stdout:
		j.how = &stream{archivedDisk: archived, o: &r.o}
	case r.o.foreign(t.Format):
		j.how = &qemuImg{archivedDisk: archived, format: string(t.Format), o: &r.o}
	default:
		j.how = &native{repo: r.repo, disk: d, o: &r.o, src: source{fetcher: r.fetcher, lost: j.lost}}
	}
	return j, nil
}

// open opens the output, if there is one.
func (j *job) open(ctx context.Context, kernel *outfile.System) (err error) {
	if j.at == nil {
		return nil
	}
	create := qcow2.CreateOptions{ClusterSize: j.disk.ClusterSize}
	if j.continues {
		create.Bitmap = &qcow2.CreateBitmap{Name: j.disk.Bitmap, Granularity: j.disk.Granularity}
	}
	j.out, err = outfile.Open(ctx, kernel, j.at, outfile.Spec{Size: j.disk.Size, Create: &create, NoLock: j.o.NoLock})
	if err != nil {
		return &chain.DiskError{Disk: j.Disk, Err: err}
	}
	return nil
}

// work is how many bytes the progress counts for the disk.
func (j *job) work() int64 {
	n := j.Data
	if j.at == nil || j.at.Device {
		n += j.Zero
	}
	if j.o.Verify {
		n *= 2
	}
	return n
}

// do writes the disk, makes it durable and reads it back.
func (j *job) do(ctx context.Context, p *progress) (err error) {
	defer func() {
		switch {
		case err == nil:
		case j.at == nil:
			err = fmt.Errorf("what was written to stdout is not complete: %w", err)
		case j.at.Device:
			err = fmt.Errorf("the content of the device %s is now incomplete, restore it again: %w", j.at.Path, err)
		}
	}()
	defer j.how.close() // two disks' caches at once are one too many
	defer func() {
		if err != nil || !j.o.Sums {
			j.sums.Close()
		}
		j.sums.rest()
	}()
	p.begin(j.Disk, Writing, j.work())
	if err := j.how.write(ctx, j, p); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if j.out == nil {
		return nil
	}
	p.begin(j.Disk, Syncing, j.work())
	if err := j.out.Finish(); err != nil {
		return &chain.DiskError{Disk: j.Disk, Err: err}
	}
	if !j.o.Verify {
		return nil
	}
	p.begin(j.Disk, Verifying, j.work())
	return j.how.verify(ctx, j, p)
}

func (j *job) result() DiskResult {
	d := DiskResult{Disk: j.Disk, Path: Stdout, Format: string(j.Format), Size: j.size, Data: j.Data, Zero: j.Zero, Verified: j.o.Verify}
	if j.at != nil {
		d.Path, d.Device = j.at.Path, j.at.Device
	}
	if j.continues {
		d.Bitmap = j.disk.Bitmap
	}
	if j.o.Sums {
		d.Sums = j.sums
	}
	if j.lost != nil {
		d.Lost = j.lost.All()
	}
	return d
}
