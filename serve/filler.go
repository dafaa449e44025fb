// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/view"
)

// Filler copies what scratch files do not have yet of their disks into them, beside the guests
// that use them, one disk after the other. Every byte is proven by its digest; what a guest has
// written is never touched, and guests' requests go first. A disk that is complete, and durable,
// is a raw image of its own. What was filled when it is killed, and had become durable, is there
// for the next.
type Filler struct {
	Repo     *chain.Repository
	Manifest *chain.Manifest
	Cows     []*Cow
	Limit    *rate.Limiter                        // of data, bytes; nil: none
	Progress func(disk string, done, total int64) // bytes of the disk, those of guests included; may be nil
	Filled   func(c *Cow) error                   // is told of each disk that is complete, as soon as it is durable; may be nil
	Patience time.Duration                        // between tries, where the store fails or there is no room; 0: 10 s
}

// NotFilledError says that a disk has not become complete: what it lacks can't be had.
type NotFilledError struct {
	Disk    string
	Missing int64 // bytes
	Err     error // of the first of them
}

func (e *NotFilledError) Error() string {
	return fmt.Sprintf("disk %s is not complete: %d bytes of it cannot be had of the repository: %v", e.Disk, e.Missing, e.Err)
}

func (e *NotFilledError) Unwrap() error { return e.Err }

// AboutDisk implements [chain.AboutDisk].
func (e *NotFilledError) AboutDisk() string { return e.Disk }

// fillerCache is what the fill keeps of chunks, bytes: it reads on and on, and what it has
// read pushes nothing out that a guest may want again.
const (
	fillerCache = 16 << 20
	farFiller   = 64 << 20 // what is on its way takes room, too
)

// Run returns when all disks are complete, or when ctx ends, with its cause. A disk that cannot
// become so is a [NotFilledError]; the others are filled all the same. A store that fails and
// room that is missing are waited for, and the Cow's note tells of it.
func (f *Filler) Run(ctx context.Context) error {
	var open []string
	for _, c := range f.Cows {
		if !c.Complete() {
			open = append(open, c.Name())
		}
	}
	var from *view.Checkpoint
	var errs []error
	for _, c := range f.Cows {
		if from == nil && len(open) > 0 {
			if err := f.insist(ctx, c, func() (err error) {
				from, err = view.Open(ctx, f.Repo, f.Manifest, open, f.options())
				return err
			}); err != nil {
				return err
			}
			defer from.Close()
		}
		w := &filling{f: f, c: c}
		for i := range open {
			if open[i] == c.Name() {
				w.base = from.Disks[i]
			}
		}
		var missing *NotFilledError
		switch err := w.run(ctx); {
		case errors.As(err, &missing):
			errs = append(errs, err)
		case err != nil:
			return err
		}
	}
	return errors.Join(errs...)
}

func (f *Filler) options() view.Options {
	far := objstore.Connections(f.Repo.Store) > 0
	o := view.Options{Cache: fillerCache, NoAhead: !far}
	if far {
		o.Cache = farFiller
	}
	o.Cache = f.Repo.Memory.Part(o.Cache, fillerCache/2)
	return o
}

// insist tries again and again what fails by a store's fault, or for want of room.
func (f *Filler) insist(ctx context.Context, c *Cow, try func() error) error {
	patience := f.Patience
	if patience == 0 {
		patience = 10 * time.Second
	}
	told, toldFull := "", false
	for {
		err := try()
		var full *noRoom
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
			if told != "" {
				c.note("filling " + c.Path() + " goes on")
			}
			return nil
		case notThere(err):
			return err
		}
		msg := fmt.Sprintf("filling %s waits, and tries again: %v", c.Path(), err)
		if errors.As(err, &full) {
			msg = fmt.Sprintf("filling %s waits until there is room: up to %d MiB more are needed, and its file system is full but for the %d MiB that are left to the guest",
				c.Path(), c.Missing()>>20, spare>>20)
		}
		if msg != told && (full == nil || !toldFull) {
			c.note(msg)
			told, toldFull = msg, toldFull || full != nil
		}
		wait := time.NewTimer(patience)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return context.Cause(ctx)
		}
	}
}

// notThere reports whether waiting does not help: what is wanted is damaged, lost or
// forgotten, or what was written can't be relied on.
func notThere(err error) bool {
	var lost *chain.LostError
	var gone *chain.GoneError
	var flush *flushError
	return archive.IsDamage(err) || errors.As(err, &lost) || errors.As(err, &gone) || errors.As(err, &flush)
}

// filling is one disk on its way.
type filling struct {
	f    *Filler
	c    *Cow
	base *view.Disk // nil: nothing is missing

	buf     [fillUnit]byte
	dirty   int64 // bytes that were written and are not durable yet
	skipped int64 // bytes that cannot be had
	first   error // why
}

func (w *filling) run(ctx context.Context) error {
	w.tell()
	for pos := int64(0); pos < w.c.size; {
		from, to := w.c.missing(pos, w.c.size)
		if from == to {
			break
		}
		to = min(to, from+zeroUnit)
		if err := w.part(ctx, from, to); err != nil {
			return err
		}
		pos = to
	}
	// What a guest has written is as durable as what was filled.
	if err := w.c.makeDurable(); err != nil {
		return err
	}
	w.tell()
	if w.skipped > 0 && !w.c.Complete() {
		return &NotFilledError{w.c.Name(), w.c.Missing(), w.first}
	}
	if w.f.Filled != nil {
		return w.f.Filled(w.c)
	}
	return nil
}

// part fills [start, end), of which nothing was in the scratch file: zeros first where they
// are whole blocks, then what is between them.
func (w *filling) part(ctx context.Context, start, end int64) error {
	var zeros []bitmapstore.Run
	err := w.f.insist(ctx, w.c, func() error {
		zeros = zeros[:0]
		for run, err := range w.base.Zeros(ctx, start, end) {
			if err != nil {
				return err
			}
			first, last := (run.Start+blockSize-1)/blockSize*blockSize, run.End
			if last != w.c.size {
				last -= last % blockSize
			}
			if first < last {
				zeros = append(zeros, bitmapstore.Run{Start: first, End: last})
			}
		}
		return nil
	})
	if err != nil {
		if notThere(err) && ctx.Err() == nil {
			return w.skip(end-start, err)
		}
		return err
	}
	pos := start
	for _, z := range zeros {
		if err := w.data(ctx, pos, z.Start); err != nil {
			return err
		}
		err := w.f.insist(ctx, w.c, func() error { return w.c.roomError(w.c.fillZeros(ctx, z.Start, z.End)) })
		if err != nil {
			return err
		}
		pos = z.End
	}
	return w.data(ctx, pos, end)
}

// data fills [start, end), which begins and ends with blocks.
func (w *filling) data(ctx context.Context, start, end int64) error {
	for pos := start; pos < end; {
		from, to := w.c.missing(pos, min(end, pos-pos%fillUnit+fillUnit))
		if from < to {
			began := time.Now()
			if err := w.piece(ctx, from, to); err != nil {
				return err
			}
			w.rest(ctx, time.Since(began))
		}
		pos = to
	}
	return nil
}

// rest leaves a guest that is at work half of the time.
func (w *filling) rest(ctx context.Context, worked time.Duration) {
	if !w.c.traffic.busy() {
		return
	}
	pause := time.NewTimer(min(worked, mostYield))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
	}
}

// piece fills at most fillUnit. What cannot be had of it is left out, block by block.
func (w *filling) piece(ctx context.Context, start, end int64) error {
	if err := w.wait(ctx, int(end-start)); err != nil {
		return err
	}
	w.c.traffic.yield(ctx)
	p := w.buf[:end-start]
	err := w.f.insist(ctx, w.c, func() error {
		if err := w.base.ReadAt(ctx, p, start); err != nil {
			return err
		}
		return w.write(p, start)
	})
	switch {
	case err == nil:
	case ctx.Err() != nil || !notThere(err) || errors.As(err, new(*flushError)):
		return err
	case end-start > blockSize:
		for pos := start; pos < end; pos += blockSize {
			if err := w.piece(ctx, pos, min(pos+blockSize, end)); err != nil {
				return err
			}
		}
	default:
		return w.skip(end-start, err)
	}
	return nil
}

// write puts proven bytes into the scratch file. It may be called again with the same.
func (w *filling) write(p []byte, start int64) error {
	c := w.c
	if err := c.checkRoom(int64(len(p))); err != nil {
		return err
	}
	if err := c.fillData(p, start); err != nil {
		return c.roomError(err)
	}
	c.file.writeback(start, start+int64(len(p)))
	w.tell()
	if w.dirty += int64(len(p)); w.dirty < syncEach {
		return nil
	}
	w.dirty = 0
	return c.makeDurable()
}

// syncEach is how much is filled before it is made durable, bytes: what a kill, and then a power
// cut, costs at most; and what a guest's flush has to wait for.
const syncEach = 32 << 20

func (w *filling) wait(ctx context.Context, n int) error {
	for limit := w.f.Limit; limit != nil && n > 0; {
		part := min(n, max(limit.Burst(), 1))
		if err := limit.WaitN(ctx, part); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		}
		n -= part
	}
	return nil
}

func (w *filling) skip(n int64, err error) error {
	if w.first == nil {
		w.first = err
		w.c.note(fmt.Sprintf("filling %s: it will not be complete, and goes on with the rest: %v", w.c.Path(), err))
	}
	w.skipped += n
	return nil
}

func (w *filling) tell() {
	if w.f.Progress != nil {
		w.f.Progress(w.c.Name(), w.c.size-w.c.Missing(), w.c.size)
	}
}
