// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/internal/zero"
)

// A host of an encrypted repository can't read what it has stored. It compares by the digests
// of chunks' parts, as a whole: what differs elsewhere in a part counts as a difference.

// partsOf compares a range of a disk with an archived state for such a host.
type partsOf struct {
	*archived
	disk   trust.Reader
	run    bitmapstore.Run
	counts func(bitmapstore.Run) (bool, error)
	buf    []byte
	found  trust.Comparison
}

// compareParts is Compare for such a host. A part that lies only partly in the run is
// read whole.
func (a *archived) compareParts(ctx context.Context, disk trust.Reader, run bitmapstore.Run, counts func(bitmapstore.Run) (bool, error)) (trust.Comparison, error) {
	c := &partsOf{a, disk, run, counts, make([]byte, archive.DiffSize), trust.Comparison{Same: true, Zeros: true}}
	known := min(run.End, max(a.Size(), run.Start))
	// Where a part reaches beyond the run, the state has to have all of it.
	around := bitmapstore.Run{Start: max(0, run.Start-archive.DiffSize), End: max(known, min(a.Size(), run.End+archive.DiffSize))}
	if known > run.Start {
		for e, err := range a.Entries(ctx, around.Start, around.End) {
			if err == nil {
				err = c.entry(ctx, &e)
			}
			if err != nil || !c.found.Same {
				return trust.Comparison{}, err
			}
		}
	}
	same, err := readsAsZeros(ctx, disk, known, run.End, c.buf)
	c.found.Same = same
	return c.found, err
}

// entry compares what of an entry lies in the run.
func (c *partsOf) entry(ctx context.Context, e *archive.Entry) error {
	start, end := max(e.Offset, c.run.Start), min(e.End(), c.run.End)
	if start >= end {
		return nil
	}
	if e.Zero {
		same, err := readsAsZeros(ctx, c.disk, start, end, c.buf)
		c.found.Same = same
		return err
	}
	parts, err := c.parts.Of(ctx, e)
	if err != nil {
		return err
	}
	begin := e.Offset - int64(e.ChunkOffset) // of the chunk, on the disk
	for start < end && c.found.Same {
		from, to := parts.Part(start - begin)
		part := bitmapstore.Run{Start: begin + from, End: begin + to}
		mine := bitmapstore.Run{Start: start, End: min(part.End, end)}
		whole := e.Offset <= part.Start && part.End <= e.End()
		if err := c.part(ctx, part, mine, whole, func(now []byte) bool { return parts.Is(from, now) }); err != nil {
			return err
		}
		start = mine.End
	}
	return nil
}

// part compares one part, of which mine lies in the run. whole says that the state has all of it.
// What differs, or can't be read, in a part that the bitmap does not vouch for may be in the rest.
func (c *partsOf) part(ctx context.Context, part, mine bitmapstore.Run, whole bool, is func(now []byte) bool) error {
	now := c.buf[:part.Len()]
	err := c.disk.ReadAt(ctx, now, part.Start)
	if err == nil && is(now) {
		c.found.Zeros = c.found.Zeros && zero.Is(now[mine.Start-part.Start:mine.End-part.Start])
		return nil
	}
	if part != mine && ctx.Err() == nil {
		counts := whole
		if whole {
			var cerr error
			if counts, cerr = c.counts(part); cerr != nil {
				return cerr
			}
		}
		if !counts {
			c.found.Untold = append(c.found.Untold, mine)
			return nil
		}
	}
	c.found.Same = false
	return err
}

func readsAsZeros(ctx context.Context, disk trust.Reader, start, end int64, buf []byte) (bool, error) {
	for start < end {
		now := buf[:min(end-start, int64(len(buf)))]
		if err := disk.ReadAt(ctx, now, start); err != nil {
			return false, err
		}
		if !zero.Is(now) {
			return false, nil
		}
		start += int64(len(now))
	}
	return true, nil
}

// compareParts adds the parts of an entry, in a cell that reads as now, that are not as its
// chunk says.
func (c *comparedCell) compareParts(ctx context.Context, pieces []archive.Piece, e *archive.Entry, now []byte) ([]archive.Piece, error) {
	parts, err := c.s.states.parts.Of(ctx, e)
	var damage *archive.DamageError
	if errors.As(err, &damage) {
		c.disk.damage.CompareAndSwap(nil, damage)
		return appendPiece(pieces, e.Offset, now[e.Offset-c.start:e.End()-c.start]), nil
	}
	if err != nil {
		return nil, err
	}
	begin := e.Offset - int64(e.ChunkOffset)
	for pos := e.Offset; pos < e.End(); {
		from, to := parts.Part(pos - begin)
		end := min(begin+to, e.End())
		if !c.holds(begin+from, begin+to) || !parts.Is(from, now[begin+from-c.start:begin+to-c.start]) {
			whole := begin+from >= e.Offset && begin+to <= e.End()
			c.disk.audit.differs(c.clean, bitmapstore.Run{Start: pos, End: end}, whole)
			pieces = appendPiece(pieces, pos, now[pos-c.start:end-c.start])
		}
		pos = end
	}
	return pieces, nil
}

// holds reports whether a range lies in the cell, as all of a chunk does unless the disk was cut.
func (c *comparedCell) holds(from, to int64) bool { return from >= c.start && to <= c.end }
