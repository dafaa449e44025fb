// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/time/rate"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/outfile"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// Options say how a restore is done. The zero value is the strictest.
type Options struct {
	Force    bool          // replace files that exist, and write to block devices
	Continue bool          // give each qcow2 the checkpoint's bitmap, empty
	Verify   bool          // read the targets back before they get their names
	NoLock   bool          // go on where a file system cannot tell whether a file is in use
	MakeDir  string        // a folder that is created if it is missing (in one that exists), and removed again on an error; may be empty
	Files    []FileTarget  // what is restored beside the disks
	Workers  int           // requests and decoders at work at once; 0: as the fetcher likes
	Limit    *rate.Limiter // bytes of guest data per second; nil: none
	Progress func(Event)   // called often, by one goroutine at a time; must not block; may be nil
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
	Size     int64  `json:"virtual_size"`
	Data     int64  `json:"data_bytes"` // that the repository holds as data
	Zero     int64  `json:"zero_bytes"`
	Bitmap   string `json:"bitmap,omitempty"` // that it goes on with
	Verified bool   `json:"verified"`
}

// Run restores disks of the checkpoint m to targets. On any error no file has
// been created or replaced; see the package documentation. Errors are
// [usage.Error], [ErrTargetExists], [DamageError],
// [VerifyError], [qemu.InUseError], [qemu.BusyError], [qemu.NoLockError],
// the context's, or else of the store or the file system.
func Run(ctx context.Context, repo *chain.Repository, m *chain.Manifest, targets []Target, o Options) (*Result, error) {
	return run(ctx, outfile.Linux(), repo, m, targets, o)
}

func run(ctx context.Context, kernel *outfile.System, repo *chain.Repository, m *chain.Manifest, targets []Target, o Options) (res *Result, err error) {
	p := &progress{tell: o.Progress}
	kernel.Folders.Note = p.warn
	undo, err := makeDir(repo, kernel.Folders, o.MakeDir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			undo()
		}
	}()
	all, err := places(kernel, repo, m, targets, o)
	if err != nil {
		return nil, err
	}
	files, err := filePlaces(kernel, repo, all, o)
	if err != nil {
		return nil, err
	}
	jobs, err := openJobs(ctx, kernel, repo, all, o, p)
	defer func() {
		for _, f := range files {
			if f.out == nil {
				continue
			}
			if derr := f.out.Discard(); derr != nil && err != nil {
				err = errors.Join(err, derr)
			}
		}
		for _, j := range jobs {
			if derr := j.out.Discard(); derr != nil && err != nil {
				err = errors.Join(err, derr)
			}
		}
	}()
	if err != nil {
		return nil, err
	}
	warnIfFull(jobs, p)
	// Before the disks, of which devices are written in place.
	for _, f := range files {
		if err := f.do(ctx, kernel, repo, o); err != nil {
			return nil, err
		}
	}
	for _, j := range jobs {
		if err := j.do(ctx, o, p); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var outs []*outfile.Output
	for _, f := range files {
		outs = append(outs, f.out)
	}
	for _, j := range jobs {
		outs = append(outs, j.out)
	}
	if err := outfile.Publish(kernel, outs); err != nil {
		return nil, err
	}
	outfile.Settle(outs)
	res = result(targets, jobs, o)
	for _, f := range files {
		res.Files = append(res.Files, f.result())
	}
	return res, nil
}

// makeDir makes a folder if it is missing. undo removes it, if it was made and is
// still empty.
func makeDir(repo *chain.Repository, folders *sys.FolderSyncer, path string) (undo func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	if err := outside(repo)(path); err != nil {
		return nil, err
	}
	err = os.Mkdir(path, 0o777)
	if errors.Is(err, fs.ErrExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("make the targets' folder: %w", err)
	}
	undo = func() { _ = os.Remove(path) }
	if err := folders.SyncPath(filepath.Dir(filepath.Clean(path))); err != nil {
		undo()
		return nil, err
	}
	return undo, nil
}

// job is one disk on its way.
type job struct {
	src *source
	at  *place
	out *outfile.Output
	amounts
}

// openJobs proves the maps of all disks, and only then opens the targets. On an
// error, what it returns is still to be discarded.
func openJobs(ctx context.Context, kernel *outfile.System, repo *chain.Repository, all []*place, o Options, p *progress) (jobs []*job, err error) {
	fetcher := archive.NewFetcher(repo.Store, archive.FetcherOptions{Parallel: o.Workers})
	sources := make([]*source, len(all))
	counts := make([]amounts, len(all))
	for i, pl := range all {
		s := &source{disk: pl.disk.Name, size: pl.disk.Size, fetcher: fetcher}
		if s.maps, err = chain.ReplayMaps(ctx, repo, pl.disk); err != nil {
			return nil, s.damage(err, 0, s.size)
		}
		if len(s.maps) == 0 {
			return nil, usage.Errorf("the checkpoint holds no data of disk %s, only bitmaps", s.disk)
		}
		if have := s.maps[0].Size(); have != s.size {
			return nil, fmt.Errorf("disk %s: the manifest says that it has %d bytes, its map %d", s.disk, s.size, have)
		}
		if counts[i], err = s.count(ctx); err != nil {
			return nil, err
		}
		sources[i] = s
		p.event.Total += counts[i].work(pl, o)
	}
	for i, pl := range all {
		out, err := pl.open(ctx, kernel, o)
		if err != nil {
			return jobs, err
		}
		jobs = append(jobs, &job{src: sources[i], at: pl, out: out, amounts: counts[i]})
	}
	return jobs, nil
}

// work is what a disk adds to the total of the progress.
func (a amounts) work(p *place, o Options) int64 {
	n := a.data
	if p.Device {
		n += a.zero
	}
	if o.Verify {
		n *= 2
	}
	return n
}

// do writes one disk, makes it durable and reads it back.
func (j *job) do(ctx context.Context, o Options, p *progress) (err error) {
	defer func() {
		if err != nil && j.out.Device {
			err = fmt.Errorf("the content of the device %s is now incomplete, restore it again: %w", j.out.Path, err)
		}
	}()
	total := j.work(j.at, o)
	p.begin(j.src.disk, Writing, total)
	if err := j.src.copyTo(ctx, j.out, o.Limit, p); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	p.begin(j.src.disk, Syncing, total)
	if err := j.out.Finish(); err != nil {
		return &chain.DiskError{Disk: j.src.disk, Err: err}
	}
	if !o.Verify {
		return nil
	}
	p.begin(j.src.disk, Verifying, total)
	workers := o.Workers
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	return j.verify(ctx, workers, p)
}

// warnIfFull warns when the data is larger than the free space. That is no
// refusal: zeros within the data become holes, and a file system may compress.
func warnIfFull(jobs []*job, p *progress) {
	need := make(map[uint64]int64)
	for _, j := range jobs {
		id, folder, free, ok := j.out.FreeSpace()
		if !ok {
			continue
		}
		before := need[id]
		need[id] += j.data
		if before <= free && need[id] > free {
			p.warn(fmt.Sprintf("%s has %d bytes free and up to %d are needed: the restore may fail", folder, free, need[id]))
		}
	}
}

func result(targets []Target, jobs []*job, o Options) *Result {
	res := &Result{}
	for _, t := range targets {
		for _, j := range jobs {
			if j.src.disk != t.Disk {
				continue
			}
			d := DiskResult{Disk: t.Disk, Path: j.out.Path, Format: string(t.Format), Device: j.out.Device,
				Size: j.src.size, Data: j.data, Zero: j.zero, Verified: o.Verify}
			if j.at.withBitmap {
				d.Bitmap = j.at.disk.Bitmap
			}
			res.Disks = append(res.Disks, d)
		}
	}
	return res
}
