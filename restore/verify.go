// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/zero"
	"github.com/imgbackup/imgbackup/qcow2"
)

// written is a disk as it reads from its target.
type written interface {
	// ReadAt fills p with the bytes at off, or fails.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// mayHold yields the ranges of [start, end) that may hold anything but
	// zeros, in ascending order.
	mayHold(start, end int64) iter.Seq2[[2]int64, error]
}

// verify reads the finished target and compares it with what the repository
// says: by the fingerprints that were taken when it was proven and written, else by digests or
// by bytes, and all else with zeros. It reads what is on the medium, not what is still in
// memory, as far as the kernel gives up its cache.
func (s *source) verify(ctx context.Context, j *job, workers int, p *progress) error {
	out := j.out
	var w written
	if out.Creator == nil {
		raw := rawTarget{out.File(), sys.OpenDirect(out.File())}
		defer raw.direct.Close()
		w = raw
		if st, err := out.File().Stat(); err != nil || !out.Device && st.Size() != s.Size() {
			return errors.Join(err, &VerifyError{Disk: s.Name, Path: out.Path, End: s.Size(), What: "the file's length is not the disk's"})
		}
	} else {
		c, err := qcow2.Open(out.NowAt(), qcow2.Qcow2, qcow2.OpenOptions{})
		if err != nil {
			return &VerifyError{Disk: s.Name, Path: out.Path, End: s.Size(), What: err.Error()}
		}
		defer func() { _ = c.Close() }()
		c.ReadDirect()
		if err := checkImage(c, j); err != nil {
			return &VerifyError{Disk: s.Name, Path: out.Path, End: s.Size(), What: err.Error()}
		}
		w = qcow2Target{c}
	}
	v := &verifier{source: s, path: out.Path, device: out.Device, w: w, workers: workers, tell: p.add}
	return v.run(ctx)
}

// checkImage checks what a qcow2 image says of itself.
func checkImage(c *qcow2.Image, j *job) error {
	if c.Size() != j.disk.Size || len(c.Layers) != 1 {
		return fmt.Errorf("the image has %d bytes and %d layers", c.Size(), len(c.Layers))
	}
	l := c.Layers[0]
	if l.BitmapsErr != nil {
		return l.BitmapsErr
	}
	if !j.continues {
		return nil
	}
	if len(l.Bitmaps) != 1 {
		return fmt.Errorf("the image has %d bitmaps", len(l.Bitmaps))
	}
	b := l.Bitmaps[0]
	if b.Name != j.disk.Bitmap || b.Granularity != j.disk.Granularity || !b.Enabled || b.InUse || b.Problem != nil {
		return errors.Join(errors.New("the image's bitmap is not as it was made"), b.Problem)
	}
	if n, err := b.DirtyBytes(); err != nil || n != 0 {
		return errors.Join(fmt.Errorf("the image's bitmap has %d dirty bytes", n), err)
	}
	return nil
}

type verifier struct {
	*source
	path    string
	device  bool // zeros count, too, where progress is told
	w       written
	workers int
	tell    func(n int64)
	pool    sync.Pool // of *[]byte, archive.GridSize long

	mu   sync.Mutex
	slow []archive.Entry // to be compared by their bytes
}

func (v *verifier) run(ctx context.Context) error {
	v.pool.New = func() any { b := make([]byte, archive.GridSize); return &b }
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(v.workers, 1))
	var next []archive.Entry // that lie together
	flush := func() {
		if group := next; len(group) > 0 {
			next = nil
			g.Go(func() error { return v.digests(gctx, group) })
		}
	}
	err := v.each(gctx, func(e archive.Entry) error {
		if err := gctx.Err(); err != nil {
			return err
		}
		if n := len(next); n > 0 && (e.Zero || e.Offset != next[n-1].End() || e.End()-next[0].Offset > archive.GridSize) {
			flush()
		}
		if e.Zero {
			return v.zeros(gctx, e.Offset, e.End())
		}
		next = append(next, e)
		if v.pending() < batchEntries {
			return nil
		}
		// Entries that are still at work go into the next round.
		return v.compare(gctx)
	})
	flush()
	// A worker's error is the cause of the cancellation that the other sees.
	if werr := g.Wait(); werr != nil {
		return werr
	}
	if err != nil {
		return err
	}
	return v.compare(ctx)
}

func (v *verifier) pending() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.slow)
}

func (v *verifier) wrong(start, end int64, what string) error {
	return &VerifyError{Disk: v.Name, Path: v.path, Start: start, End: end, What: what}
}

func (v *verifier) read(ctx context.Context, p []byte, off int64) error {
	if err := v.w.ReadAt(ctx, p, off); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return v.wrong(off, off+int64(len(p)), fmt.Sprintf("it cannot be read: %v", err))
	}
	return nil
}

// zeros proves that a range reads as zeros.
func (v *verifier) zeros(ctx context.Context, start, end int64) error {
	buf := v.pool.Get().(*[]byte)
	defer v.pool.Put(buf)
	for r, err := range v.w.mayHold(start, end) {
		if err != nil {
			return v.wrong(start, end, err.Error())
		}
		for pos := r[0]; pos < r[1]; {
			if err := ctx.Err(); err != nil {
				return err
			}
			p := (*buf)[:min(int64(len(*buf)), r[1]-pos)]
			if err := v.read(ctx, p, pos); err != nil {
				return err
			}
			if !zero.Is(p) {
				return v.wrong(pos, pos+int64(len(p)), "it should be zeros")
			}
			pos += int64(len(p))
		}
	}
	if v.device {
		v.tell(end - start)
	}
	return nil
}

// digests proves entries that lie together, and are read at once. Those that are not known by a
// fingerprint or digest, or do not have it, are left for compare.
func (v *verifier) digests(ctx context.Context, entries []archive.Entry) error {
	buf := v.pool.Get().(*[]byte)
	defer v.pool.Put(buf)
	start, end := entries[0].Offset, entries[len(entries)-1].End()
	p := (*buf)[:end-start]
	if err := v.read(ctx, p, start); err != nil {
		return err
	}
	for i := range entries {
		e := &entries[i]
		if known, ok := v.sums.of(e); ok && known.is(p[e.Offset-start:e.End()-start]) {
			v.tell(e.Length)
			continue
		}
		v.mu.Lock()
		v.slow = append(v.slow, *e)
		v.mu.Unlock()
	}
	return nil
}

// compare reads the chunks of the entries that are left, and compares bytes.
func (v *verifier) compare(ctx context.Context) error {
	v.mu.Lock()
	entries := v.slow
	v.slow = nil
	v.mu.Unlock()
	return v.fetch(ctx, entries, func(i int, data []byte, _ bool) error {
		buf := v.pool.Get().(*[]byte)
		defer v.pool.Put(buf)
		p := (*buf)[:len(data)]
		e := &entries[i]
		if err := v.read(ctx, p, e.Offset); err != nil {
			return err
		}
		if !bytes.Equal(p, data) {
			return v.wrong(e.Offset, e.End(), "it is not what the repository holds")
		}
		v.tell(e.Length)
		return nil
	})
}

// rawTarget is a raw file or a device.
type rawTarget struct {
	*os.File
	direct *sys.Direct
}

func (r rawTarget) ReadAt(_ context.Context, p []byte, off int64) error {
	if r.direct.Read(p, off) {
		return nil
	}
	n, err := r.File.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	return err
}

func (r rawTarget) mayHold(start, end int64) iter.Seq2[[2]int64, error] {
	return func(yield func([2]int64, error) bool) {
		for pos := start; pos < end; {
			from, to := sys.NextData(r.File, pos, end)
			if from == to || !yield([2]int64{from, to}, nil) {
				return
			}
			pos = to
		}
	}
}

// qcow2Target is a qcow2 image, as our own reader sees it.
type qcow2Target struct{ *qcow2.Image }

func (q qcow2Target) mayHold(start, end int64) iter.Seq2[[2]int64, error] {
	return func(yield func([2]int64, error) bool) {
		for e, err := range q.Extents(start, end) {
			if err == nil && (e.Kind == qcow2.Hole || e.Kind == qcow2.Zero) {
				continue
			}
			if !yield([2]int64{e.Offset, e.Offset + e.Length}, err) {
				return
			}
		}
	}
}
