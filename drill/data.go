// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/restore"
	"github.com/imgbackup/imgbackup/view"
)

// data is what the steps chunks and restore of one checkpoint share: where it is restored,
// that fetches and proves its chunks, and nothing is fetched for them again.
type data struct {
	d       *Drill
	scratch bool

	chunks  *Result       // what became of the chunks; nil: not done
	written time.Duration // until the disks were durable
	err     error         // of the restore
	result  *restore.Result
}

// Data are the steps chunks and restore. With scratch, disks are written to scratch space
// and read back; else they are proven in flight.
func (d *Drill) Data(scratch bool) []Step {
	shared := &data{d: d, scratch: scratch}
	return []Step{&chunks{shared}, &restored{shared}}
}

// restored is the step that has the disks back.
type restored struct{ *data }

func (*restored) Name() string { return record.StepRestore }

func (r *restored) Run(ctx context.Context, s *Subject) (Result, error) {
	if r.chunks == nil {
		return Skip("the chunks were not proven", "see what the step chunks says"), nil
	}
	var different *restore.VerifyError
	switch {
	case r.chunks.Status == record.Failed:
		return Fail("what is damaged cannot be restored: see the step chunks", r.chunks.WhatToDo), nil
	case r.chunks.Status != record.Passed:
		return Skip("the chunks were not proven", r.chunks.WhatToDo), nil
	case errors.As(r.err, &different): // of a file beside the disks
		return Fail(different.Error(), todoMedium), nil
	case r.err != nil:
		return Result{}, r.err
	case r.result == nil:
		return r.inFlight(ctx, s)
	}
	return r.readBack(ctx, s)
}

// readBack reads what was written, from the medium. What QEMU makes of it is the step image's.
func (r *restored) readBack(ctx context.Context, s *Subject) (Result, error) {
	begun := time.Now()
	var all []Restored
	res := Pass("written and read back")
	for i, d := range r.result.Disks {
		one, err := r.open(s, i)
		if err != nil {
			return Fail(fmt.Sprintf("disk %s, restored, %v", d.Disk, err), todoMedium), nil
		}
		if res, err := r.compare(ctx, s, i, one); err != nil || res.Status != record.Passed {
			return res, err
		}
		all = append(all, *one)
		res.Bytes += d.Data
	}
	s.Restored = all
	ms := r.written.Milliseconds()
	s.restoreTook(ms)
	res.Details = map[string]string{
		"written_ms": strconv.FormatInt(ms, 10), "read_back_ms": strconv.FormatInt(time.Since(begun).Milliseconds(), 10),
		"files": strconv.Itoa(len(r.result.Files)),
	}
	return res, nil
}

const todoMedium = "look at the medium and the memory of this host: what the repository holds is proven"

// open opens a disk that was restored.
func (r *restored) open(s *Subject, i int) (*Restored, error) {
	d := &r.result.Disks[i]
	img, err := qcow2.Open(d.Path, qcow2.Qcow2, qcow2.OpenOptions{})
	if err != nil {
		return nil, fmt.Errorf("cannot be opened: %w", err)
	}
	s.atEnd(func() { _ = img.Close() }) // it is only read
	img.ReadDirect()
	if img.Size() != s.Disks[i].Size || len(img.Layers) != 1 {
		return nil, fmt.Errorf("has %d bytes and %d layers", img.Size(), len(img.Layers))
	}
	return &Restored{Disk: d.Disk, Path: d.Path, Format: d.Format, written: &restore.Written{Image: img, Sums: d.Sums}}, nil
}

// compare reads a disk.
func (r *restored) compare(ctx context.Context, s *Subject, i int, one *Restored) (Result, error) {
	err := restore.Compare(ctx, s.Repo, s.Disks[i], one.written.Image, one.Path, one.written.Sums, func(int64) {})
	var different *restore.VerifyError
	switch {
	case errors.As(err, &different):
		return Fail(different.Error(), todoMedium), nil
	case archive.IsDamage(err):
		return s.Damage(ctx, err)
	}
	return Pass(""), err
}

// inFlight proves what chunks has not: the files beside the disks.
func (r *restored) inFlight(ctx context.Context, s *Subject) (Result, error) {
	res := Pass("replayed and proven in flight, not written")
	for i := range s.Manifest.Files {
		f := &s.Manifest.Files[i]
		err := archive.CopyFile(ctx, s.Repo.Store, f.FileRef, io.Discard)
		if archive.IsDamage(err) {
			return s.Damage(ctx, fmt.Errorf("%s: %w", f.Called(), err))
		}
		if err != nil {
			return Result{}, err
		}
	}
	for _, d := range s.Disks {
		res.Bytes += d.Size
	}
	res.Details = map[string]string{"files": strconv.Itoa(len(s.Manifest.Files))}
	return res, nil
}

// roomError says that there is not enough room for what is to be restored.
type roomError struct {
	dir        string
	need, free int64
}

func (e *roomError) Error() string {
	return fmt.Sprintf("%s has %s free, and %s are needed", e.dir, humanize.IBytes(uint64(e.free)), humanize.IBytes(uint64(e.need)))
}

// restore restores the disks and files to scratch space. What kept it from that is noted.
func (r *data) restore(ctx context.Context, s *Subject) {
	r.result, r.err, r.written = nil, nil, 0
	dir, err := r.d.folder.Sub("restored")
	if err == nil {
		err = r.room(ctx, s, dir)
	}
	if err != nil {
		r.err = err
		return
	}
	var names []string
	for _, d := range s.Disks {
		names = append(names, d.Name)
	}
	targets, err := restore.TargetsIn(s.Manifest, names, dir, qcow2.Qcow2)
	if err != nil {
		r.err = err
		return
	}
	o := restore.Options{Sums: true, Progress: r.timer(s)}
	if len(names) == len(s.Manifest.Disks) {
		o.Files = restore.FilesIn(s.Manifest, "domain", dir, targets)
	}
	begun := time.Now()
	r.result, r.err = r.d.restore(ctx, s.Repo, s.Manifest, targets, o)
	r.written = time.Since(begun)
	if r.err != nil {
		return
	}
	for _, d := range r.result.Disks {
		s.atEnd(d.Sums.Close)
	}
}

// timer tells progress on.
func (r *data) timer(s *Subject) func(restore.Event) {
	done := int64(0)
	return func(e restore.Event) {
		if e.Warning != "" {
			return // whether there is room was asked
		}
		if n := e.Done - done; n > 0 {
			s.Told(record.StepRestore, n)
		}
		done = e.Done
	}
}

// spare is what is left free beside what is restored, bytes: for the tables of images.
const spare = 16 << 20

// room sees that the scratch space has room for the disks' data: a drill must not fill it.
func (r *data) room(ctx context.Context, s *Subject, dir string) error {
	need := int64(spare)
	for _, d := range s.Disks {
		layout, err := view.OpenLayout(ctx, s.Repo, d)
		if err != nil {
			return err
		}
		for run, err := range layout.Data(ctx, 0, layout.Size()) {
			if err != nil {
				return err
			}
			need += run.End - run.Start
		}
	}
	for i := range s.Manifest.Files {
		need += s.Manifest.Files[i].Size
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	free, err := sys.FreeSpace(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if free < need {
		return &roomError{dir: r.d.o.Dir, need: need, free: free}
	}
	return nil
}

// chunks is the step that fetches and proves every chunk of the checkpoint that was not
// in this run.
type chunks struct{ *data }

func (*chunks) Name() string { return record.StepChunks }

func (c *chunks) Run(ctx context.Context, s *Subject) (Result, error) {
	for _, d := range s.Disks {
		if len(d.Lost) > 0 {
			return c.became(Fail((&chain.LostError{Disk: d}).Error(), todoLost), nil)
		}
	}
	if !c.scratch {
		return c.became(c.prove(ctx, s))
	}
	c.restore(ctx, s)
	if c.err == nil {
		return c.became(c.took(ctx, s))
	}
	if ctx.Err() != nil {
		return Result{}, context.Cause(ctx)
	}
	// Whatever is wrong there, the chunks are proven, of which no disk may have had any: files
	// are written, and read back, before them. And of damage, all is told.
	return c.became(c.prove(ctx, s))
}

// became notes what became of the chunks, for the step restore.
func (c *chunks) became(res Result, err error) (Result, error) {
	c.chunks = nil
	if err == nil {
		c.chunks = &res
	}
	return res, err
}

// took is what the restore has fetched and proven.
func (c *chunks) took(ctx context.Context, s *Subject) (Result, error) {
	res := Pass("fetched and proven as they were restored")
	for _, d := range s.Disks {
		pr, err := c.d.prover.took(ctx, d)
		if err != nil {
			return Result{}, &chain.DiskError{Disk: d.Name, Err: err}
		}
		res.Bytes += pr.Bytes
	}
	return res, nil
}

// prove fetches and proves the chunks by themselves.
func (c *chunks) prove(ctx context.Context, s *Subject) (Result, error) {
	var proven, stored, count int64
	var first string
	for _, d := range s.Disks {
		pr, err := c.d.prover.prove(ctx, d, func(n int64) { s.Told(record.StepChunks, n) })
		if archive.IsDamage(err) {
			return s.Damage(ctx, &chain.DiskError{Disk: d.Name, Err: err})
		}
		if err != nil {
			return Result{}, &chain.DiskError{Disk: d.Name, Err: err}
		}
		if pr.Missing != nil {
			if res, err := s.Damage(ctx, pr.Missing); err != nil || res.Status != record.Failed {
				return res, err
			}
		}
		proven, stored, count = proven+pr.Bytes, stored+pr.Stored, count+pr.Chunks
		if len(pr.Damage) > 0 && first == "" {
			first = pr.text(d.Name)
		}
	}
	res := Pass("")
	if first != "" {
		res = Fail(first, todoDamage)
	}
	res.Bytes = proven
	res.Details = map[string]string{"chunks": strconv.FormatInt(count, 10), "fetched_bytes": strconv.FormatInt(stored, 10)}
	if was := c.d.o.Resume; was != nil { // the record must not say that all was fetched since it began
		res.Details["resumed"] = "what this run had proven before " + was.head.Saved.Format(time.RFC3339) + ", when it was cut off, was not fetched again"
	}
	return res, nil
}
