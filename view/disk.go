// SPDX-License-Identifier: Apache-2.0

package view

import (
	"context"
	"sort"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
)

// Disk is one disk of a checkpoint, to be read from anywhere: its layout, parts of
// which it keeps, and the chunks that its [Reader] keeps. It is safe for concurrent use.
type Disk struct {
	*Layout
	windows windows
	chunks  *chunks
	ahead   *ahead                                                                  // nil: nothing is read ahead
	near    func(ctx context.Context, disk string, e *archive.Entry, p []byte) bool // nil: nothing is
	lost    *chain.Disk                                                             // has lost what is not to be read; nil: it has not, or zeros are read there
}

// ReadAt fills p with the bytes at off, all of which lie within the disk. What is
// missing or damaged is an [archive.DamageError], and what the checkpoint has lost a
// [chain.LostError], of what p needs and of nothing else; with [Options.Lose], zeros.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	if err := d.checkLost(off, off+int64(len(p))); err != nil {
		return err
	}
	for try := 0; ; try++ {
		layout := d.windows.current()
		err := d.readAt(ctx, p, off)
		if err == nil || try == renewals {
			return err
		}
		if err := d.windows.renew(ctx, layout, err); err != nil {
			return err
		}
	}
}

// renewals is how often a read begins anew because the checkpoint was repacked meanwhile.
const renewals = 5

func (d *Disk) readAt(ctx context.Context, p []byte, off int64) error {
	begin, end := off, off+int64(len(p))
	for pos := begin; pos < end; {
		parts, err := d.windows.next(ctx, pos, end, d.chunks.batchEntries())
		if err != nil {
			return err
		}
		if d.ahead != nil && pos == begin {
			d.ahead.read(d, begin, end)
		}
		pos = parts[len(parts)-1].End()
		if d.near != nil {
			parts = d.readNear(ctx, p, off, parts)
		}
		b, err := d.chunks.acquire(ctx, parts)
		if err != nil {
			return err
		}
		err = b.each(ctx, func(e *archive.Entry, data []byte) {
			to := p[e.Offset-off : e.End()-off]
			clear(to[copy(to, data):]) // there are no data of zeros
		}, d.tolerate)
		d.chunks.release(b)
		if err != nil {
			return err
		}
	}
	return nil
}

// Lend returns what [off, off+length) reads as, as it lies in the memory for chunks: in
// pieces, in their order, which stay there until giveBack is called. None where ReadAt has to be
// asked: since so much is lent already, or since it may fail.
func (d *Disk) Lend(ctx context.Context, off int64, length int) (pieces [][]byte, giveBack func()) {
	end := off + int64(length)
	if length <= 0 || d.near != nil || d.lose != nil || d.checkLost(off, end) != nil {
		return nil, nil
	}
	parts, err := d.windows.next(ctx, off, end, d.chunks.batchEntries())
	if err != nil || parts[len(parts)-1].End() < end {
		return nil, nil
	}
	if d.ahead != nil {
		d.ahead.read(d, off, end)
	}
	b, err := d.chunks.acquire(ctx, parts)
	if err != nil {
		return nil, nil
	}
	err = b.each(ctx, func(e *archive.Entry, data []byte) {
		for left := e.Length - int64(len(data)); left > 0; left -= archive.GridSize { // there are no data of zeros
			pieces = append(pieces, d.chunks.zeros[:min(left, archive.GridSize)])
		}
		if len(data) > 0 {
			pieces = append(pieces, data)
		}
	}, nil)
	if err != nil || !d.chunks.lend(b) {
		d.chunks.release(b)
		return nil, nil
	}
	return pieces, func() { d.chunks.release(b) }
}

// readNear fills p, which begins at off, with the parts that are to be had near, and returns
// the others.
func (d *Disk) readNear(ctx context.Context, p []byte, off int64, parts []part) (far []part) {
	for i := range parts {
		e := parts[i].Entry
		if e.Zero {
			clear(p[e.Offset-off : e.End()-off])
			continue
		}
		whole := parts[i].whole()
		to := p[e.Offset-off : e.End()-off]
		if e.Length == whole.Length {
			if !d.near(ctx, d.Name, &whole, to) {
				far = append(far, parts[i])
			}
			continue
		}
		buf := d.chunks.bufs.Get().(*gridBuffer)
		if d.near(ctx, d.Name, &whole, buf[:whole.Length]) {
			copy(to, buf[e.Offset-whole.Offset:])
		} else {
			far = append(far, parts[i])
		}
		d.chunks.bufs.Put(buf)
	}
	return far
}

// checkLost returns an error if the checkpoint has lost any of [start, end).
func (d *Disk) checkLost(start, end int64) error {
	if d.lost == nil {
		return nil
	}
	lost := d.lost.Lost
	i := sort.Search(len(lost), func(i int) bool { return lost[i].End() > start })
	if i < len(lost) && lost[i].Offset < end {
		return &chain.LostError{Disk: d.lost}
	}
	return nil
}

// Prefetch fetches what the parts are made of, together, as far as the cache has room
// for it. What cannot be had is an error only of the read that wants it; only the end
// of ctx is one here.
func (d *Disk) Prefetch(ctx context.Context, parts []bitmapstore.Run) error {
	var wanted []part
	room := d.chunks.limit / archive.GridSize
	for _, run := range parts {
		for pos := run.Start; pos < min(run.End, d.size) && int64(len(wanted)) < room; {
			next, err := d.windows.next(ctx, pos, min(run.End, d.size), d.chunks.batchEntries())
			if err != nil {
				return ctx.Err()
			}
			for _, p := range next {
				if !p.Zero {
					wanted = append(wanted, p)
				}
			}
			pos = next[len(next)-1].End()
		}
	}
	for len(wanted) > 0 && ctx.Err() == nil {
		n := min(len(wanted), d.chunks.batchEntries())
		b, err := d.chunks.acquire(ctx, wanted[:n])
		if err != nil {
			return err
		}
		_ = b.each(ctx, func(*archive.Entry, []byte) {}, nil)
		d.chunks.release(b)
		wanted = wanted[n:]
	}
	return ctx.Err()
}

// Zeros is where the repository holds the part of the disk in [start, end) as zeros. What the
// checkpoint has lost is none: who is told of zeros does not read them, and would never learn of it.
func (d *Disk) Zeros(ctx context.Context, start, end int64) bitmapstore.Runs {
	if d.lost == nil || len(d.lost.Lost) == 0 {
		return d.zeros(ctx, start, end)
	}
	return bitmapstore.Subtract(d.zeros(ctx, start, end), d.lost.LostRuns())
}

// zeros is Zeros by the maps, in which what is lost is zeros, too.
func (d *Disk) zeros(ctx context.Context, start, end int64) bitmapstore.Runs {
	return bitmapstore.Join(func(yield func(bitmapstore.Run, error) bool) {
		for pos := start; pos < end; {
			w, err := d.windows.at(ctx, pos)
			if err != nil {
				yield(bitmapstore.Run{}, err)
				return
			}
			for _, e := range w.from(pos) {
				if e.Offset >= end {
					return
				}
				run := bitmapstore.Run{Start: max(e.Offset, start), End: min(e.End(), end)}
				if e.Zero && !yield(run, nil) {
					return
				}
			}
			pos = w.end
		}
	})
}
