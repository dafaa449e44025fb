// SPDX-License-Identifier: Apache-2.0

package push

import (
	"context"
	"errors"
	"slices"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/outfile"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/qcow2"
)

// ErrTargetExists says that a target is there already, and Force is not set.
var ErrTargetExists = outfile.ErrExists

// Target says where one disk goes.
type Target struct {
	Disk   string       // its name in the domain
	Path   string       // a file in a folder that exists, or a block device
	Format qcow2.Format // of a device: qcow2.Raw

	// Backing is recorded in an incremental qcow2; nil: it names none.
	Backing *qcow2.CreateBacking
	// ClusterSize of a qcow2, bytes; 0: that of the disk's image, or 64 KiB.
	// Larger ones are taken where the disk's size needs them.
	ClusterSize int64
	// Reuse writes into the raw file or the block device that is there, as
	// libvirt does with VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL. A file gets the
	// disk's size.
	Reuse bool
}

// Options say how a push is done.
type Options struct {
	Force   bool // replace files that exist, and write to block devices
	Workers int  // that read and write at once; 0: 4
}

// Result tells what was pushed.
type Result struct {
	*backup.Result
	Disks []DiskResult // in the order of the plan's
}

// DiskResult is what went to one target. Numbers are bytes of the disk.
type DiskResult struct {
	Disk        string
	Path        string // absolute, the folder's symbolic links resolved
	Format      qcow2.Format
	InPlace     bool  // a block device, or a file that was reused
	ClusterSize int64 // of a qcow2
	Data        int64 // read and written
	Zero        int64 // that a full or incremental backup of these ranges holds as zeros
}

// Run pushes the disks of a request, each to its target. The repository is
// needed to judge an incremental and for a checkpoint, which is made if the
// request names one; see [backup.Push]. On an error no file has been created or
// replaced, except after a [*chain.UnknownOutcomeError]. Other errors are those of
// [backup.Push], [usage.Error], [ErrTargetExists], and [qemu.InUseError],
// [qemu.BusyError] and [qemu.NoLockError] of a target.
func Run(ctx context.Context, repo *chain.Repository, req backup.Request, hooks backup.Hooks, targets []Target, o Options) (*Result, error) {
	return run(ctx, outfile.Linux(), repo, req, hooks, targets, o)
}

func run(ctx context.Context, sys *outfile.System, repo *chain.Repository, req backup.Request, hooks backup.Hooks, targets []Target, o Options) (res *Result, err error) {
	sys.Folders.Note = hooks.Note
	r, err := newReceiver(sys, repo, req, hooks, targets, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if derr := r.discard(); derr != nil && err != nil {
			err = errors.Join(err, derr)
		}
	}()
	done, err := backup.Push(ctx, repo, req, hooks, r)
	if err != nil {
		return nil, err
	}
	return &Result{Result: done, Disks: r.results(done.Plan)}, nil
}

// DryRun returns the plan that [Run] would carry out, and writes nothing. What
// can be known of the targets without opening them is looked at, too.
func DryRun(ctx context.Context, repo *chain.Repository, req backup.Request, hooks backup.Hooks, targets []Target, o Options) (*backup.Plan, error) {
	r, err := newReceiver(outfile.Linux(), repo, req, hooks, targets, o)
	if err != nil {
		return nil, err
	}
	return backup.PushDryRun(ctx, repo, req, hooks, r)
}

// newReceiver checks the targets, as far as they can be without the disks.
func newReceiver(sys *outfile.System, repo *chain.Repository, req backup.Request, hooks backup.Hooks, targets []Target, o Options) (*receiver, error) {
	r := &receiver{sys: sys, hooks: hooks, noLock: req.NoLock, workers: o.Workers}
	if r.workers <= 0 {
		r.workers = 4
	}
	places := outfile.Places{Kernel: sys, Force: o.Force,
		Outside: func(path string) error { return objstore.CheckOutside(repo.Store, path) }}
	for _, t := range targets {
		if !slices.ContainsFunc(req.Disks, func(d backup.DiskRequest) bool { return d.Disk == t.Disk }) {
			return nil, usage.Errorf("target %s: no such disk is backed up", t.Disk)
		}
		if err := t.check(); err != nil {
			return nil, about(t.Disk, err)
		}
		at, err := places.Add("disk "+t.Disk, outfile.Wanted{Path: t.Path, Format: t.Format, Reuse: t.Reuse})
		if err != nil {
			return nil, about(t.Disk, err)
		}
		r.jobs = append(r.jobs, &job{Target: t, at: at})
	}
	for _, d := range req.Disks {
		if r.job(d.Disk) == nil {
			return nil, usage.Errorf("disk %s has no target: either all disks of a backup go to files, or all into the repository", d.Disk)
		}
	}
	outfile.InPlaceLast(r.jobs, func(j *job) *outfile.Place { return j.at })
	return r, nil
}

// check refuses what makes no sense whatever the disk is.
func (t *Target) check() error {
	switch {
	case t.Format == qcow2.Qcow2:
	case t.Backing != nil:
		return usage.Errorf("only a qcow2 image has a backing file")
	case t.ClusterSize != 0:
		return usage.Errorf("only a qcow2 image has clusters")
	}
	if cs := t.ClusterSize; cs != 0 && (cs < 512 || cs > 2<<20 || cs&(cs-1) != 0) {
		return usage.Errorf("cluster size %d is not a power of two from 512 bytes to 2 MiB", cs)
	}
	return nil
}

// about says which disk an error is about.
func about(disk string, err error) error {
	if err == nil {
		return nil
	}
	return &chain.DiskError{Disk: disk, Err: err}
}
