// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"errors"
	"io"
	"slices"

	"golang.org/x/time/rate"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/outfile"
	"github.com/imgbackup/imgbackup/objstore"
)

// Options say how a restore is done. The zero value is the strictest.
type Options struct {
	Force    bool // replace files that exist, and write to block devices
	Continue bool // give each qcow2 the checkpoint's bitmap, empty
	// ContinueSome lets disks go without that cannot have it: else that is an error.
	ContinueSome bool
	Verify       bool // read the targets back before they get their names
	// Sums hands the sums of raw and qcow2 targets over, to whoever reads these back: see
	// [DiskResult]. Files beside the disks are read back all the same.
	Sums bool
	// SkipDamaged writes zeros where the repository is damaged or has lost what it had,
	// and leaves out files that are damaged; the result tells of each. Not with Continue.
	SkipDamaged bool
	NoLock      bool          // go on where a file system cannot tell whether a file is in use
	MakeDir     string        // a folder that is made if it is missing, in one that exists; may be empty
	Files       []FileTarget  // what is restored beside the disks
	Workers     int           // requests and decoders at work at once; 0: as the fetcher likes
	Limit       *rate.Limiter // bytes of guest data per second; nil: none
	QemuImg     QemuImg       // of what qemu-img writes
	Stdout      io.Writer     // where a target [Stdout] goes
	Progress    func(Event)   // called often, by one goroutine at a time; must not block; may be nil
}

// Result tells what was restored, in the order of the targets.
type Result struct {
	Disks []DiskResult `json:"disks"`
	Files []FileResult `json:"files,omitempty"`
}

// DiskResult is one restored disk. Numbers are bytes.
type DiskResult struct {
	Disk     string `json:"disk"`
	Path     string `json:"path"` // absolute, the folder's symbolic links resolved
	Format   string `json:"format"`
	Device   bool   `json:"device"`
	Size     int64  `json:"virtual_size"` // of the image: a format of qemu-img may have rounded it up
	Data     int64  `json:"data_bytes"`   // that the repository holds as data
	Zero     int64  `json:"zero_bytes"`
	Bitmap   string `json:"bitmap,omitempty"` // that it goes on with
	Verified bool   `json:"verified"`
	// Lost is where zeros were written in the place of what is damaged or lost.
	Lost []chain.Lost `json:"lost,omitempty"`
	// Sums, with [Options.Sums], are what the disk is read back by. They must be closed. nil:
	// there are none.
	Sums *Sums `json:"-"`
}

// Lost reports whether anything was left out: see [Options.SkipDamaged].
func (r *Result) Lost() bool {
	return slices.ContainsFunc(r.Disks, func(d DiskResult) bool { return len(d.Lost) > 0 }) ||
		slices.ContainsFunc(r.Files, func(f FileResult) bool { return f.Damage != "" })
}

// Run restores disks of the checkpoint m to targets. On any error no file has
// been created or replaced; see the package documentation. Errors are
// [usage.Error], [ErrTargetExists], [DamageError],
// [VerifyError], [qemu.InUseError], [qemu.BusyError], [qemu.NoLockError],
// the context's, or else of the store or the file system.
func Run(ctx context.Context, repo *chain.Repository, m *chain.Manifest, targets []Target, o Options) (*Result, error) {
	return run(ctx, outfile.Linux(), repo, m, targets, o)
}

// checkLosses sees, before files that lack something appear, that this is not because the
// checkpoint was repacked or forgotten meanwhile.
func (r *restoring) checkLosses(ctx context.Context, targets []Target) error {
	if !r.o.SkipDamaged || r.m.UUID == "" || !r.result(targets).Lost() {
		return nil
	}
	missing := archive.Damaged("what it is made of", objstore.ErrNotFound)
	newer, err := r.repo.Reread(ctx, r.m, missing)
	if newer != nil || errors.As(err, new(*chain.GoneError)) {
		return err // as one that did not leave out anything: see [chain.Repository.Reread]
	}
	return nil
}

func run(ctx context.Context, kernel *outfile.System, repo *chain.Repository, m *chain.Manifest, targets []Target, o Options) (res *Result, err error) {
	r := &restoring{kernel: kernel, repo: repo, m: m, o: o, p: &progress{tell: o.Progress},
		fetcher: archive.NewFetcher(repo.Store, archive.FetcherOptions{Parallel: o.Workers, Memory: repo.Memory})}
	kernel.Folders.Note = r.p.warn
	if err := r.check(targets); err != nil {
		return nil, err
	}
	if err := o.checkFolders(); err != nil {
		return nil, err
	}
	undo, err := makeFolders(repo, kernel.Folders, o.folders())
	if err != nil {
		return nil, err
	}
	defer func() {
		if derr := r.discard(); derr != nil && err != nil {
			err = errors.Join(err, derr)
		}
		if err != nil {
			undo()
			for _, j := range r.jobs {
				j.sums.Close()
			}
		}
	}()
	for _, step := range []func(context.Context) error{
		func(context.Context) error { return r.claim(targets) },
		r.prove,
		r.open,
		r.writeFiles, // before the disks, of which devices are written in place
		r.writeDisks,
		func(ctx context.Context) error { return r.checkLosses(ctx, targets) },
		r.publish,
	} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return r.result(targets), nil
}

// restoring is a restore at work.
type restoring struct {
	kernel  *outfile.System
	repo    *chain.Repository
	m       *chain.Manifest
	o       Options
	p       *progress
	fetcher *archive.Fetcher
	jobs    []*job // what is written in place last
	files   []*fileJob
}

// claim checks all places before anything is touched in them.
func (r *restoring) claim(targets []Target) error {
	places := &outfile.Places{Kernel: r.kernel, Force: r.o.Force, Outside: outside(r.repo)}
	for _, t := range targets {
		j, err := r.newJob(t)
		if err != nil {
			return err
		}
		if t.Path != Stdout {
			j.at, err = places.Add("disk "+t.Disk, outfile.Wanted{Path: t.Path, Format: t.Format, Foreign: r.o.foreign(t.Format)})
		}
		if err != nil {
			return &chain.DiskError{Disk: t.Disk, Err: err}
		}
		r.jobs = append(r.jobs, j)
	}
	outfile.InPlaceLast(r.jobs, func(j *job) *outfile.Place { return j.at })
	return r.claimFiles(places)
}

// prove proves the maps of all disks.
func (r *restoring) prove(ctx context.Context) (err error) {
	for _, j := range r.jobs {
		if j.Amounts, err = j.how.prove(ctx); err != nil {
			return err
		}
		r.p.event.Total += j.work()
	}
	return nil
}

// open opens all outputs, and warns when there is more data than room for it.
func (r *restoring) open(ctx context.Context) error {
	var demands []outfile.Demand
	for _, j := range r.jobs {
		if err := j.open(ctx, r.kernel); err != nil {
			return err
		}
		demands = append(demands, outfile.Demand{Output: j.out, Data: j.Data})
	}
	for _, note := range outfile.SpaceNotes("the restore", demands) {
		r.p.warn(note)
	}
	return nil
}

func (r *restoring) writeFiles(ctx context.Context) error {
	for _, f := range r.files {
		err := f.do(ctx, r.kernel, r.repo, r.o)
		if r.o.SkipDamaged && archive.IsDamage(err) {
			err = f.leaveOut(err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *restoring) writeDisks(ctx context.Context) error {
	for _, j := range r.jobs {
		if err := j.do(ctx, r.p); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (r *restoring) outputs() []*outfile.Output {
	var outs []*outfile.Output
	for _, f := range r.files {
		if f.out != nil {
			outs = append(outs, f.out)
		}
	}
	for _, j := range r.jobs {
		if j.out != nil {
			outs = append(outs, j.out)
		}
	}
	return outs
}

// publish gives all files their names.
func (r *restoring) publish(context.Context) error {
	outs := r.outputs()
	if err := outfile.Publish(r.kernel, outs); err != nil {
		return err
	}
	outfile.Settle(outs)
	return nil
}

// discard closes everything, and removes what was not published.
func (r *restoring) discard() error {
	var errs []error
	for _, j := range r.jobs {
		j.how.close()
	}
	for _, out := range r.outputs() {
		errs = append(errs, out.Discard())
	}
	return errors.Join(errs...)
}

func (r *restoring) result(targets []Target) *Result {
	res := &Result{}
	for _, t := range targets {
		for _, j := range r.jobs {
			if j.Disk == t.Disk {
				res.Disks = append(res.Disks, j.result())
			}
		}
	}
	for _, f := range r.files {
		res.Files = append(res.Files, f.result())
	}
	return res
}
