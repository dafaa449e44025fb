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

// compareParts is Compare for such a host. A part that lies only partly in the run is
// read whole.
func (a *archived) compareParts(ctx context.Context, disk trust.Reader, run bitmapstore.Run) (same, zeros bool, err error) {
	zeros = true
	buf := make([]byte, archive.DiffSize)
	known := min(run.End, max(a.Size(), run.Start))
	for e, err := range a.Entries(ctx, run.Start, known) {
		if err != nil {
			return false, false, err
		}
		same, zero, err := a.compareEntry(ctx, disk, &e, buf)
		if err != nil || !same {
			return false, false, err
		}
		zeros = zeros && zero
	}
	same, err = readsAsZeros(ctx, disk, known, run.End, buf)
	return same, zeros && same, err
}

func (a *archived) compareEntry(ctx context.Context, disk trust.Reader, e *archive.Entry, buf []byte) (same, zeros bool, err error) {
	if e.Zero {
		same, err = readsAsZeros(ctx, disk, e.Offset, e.End(), buf)
		return same, same, err
	}
	parts, err := a.parts.Of(ctx, e)
	if err != nil {
		return false, false, err
	}
	zeros = true
	begin := e.Offset - int64(e.ChunkOffset) // of the chunk, on the disk
	for pos := e.Offset; pos < e.End(); {
		from, to := parts.Part(pos - begin)
		now := buf[:to-from]
		err := disk.ReadAt(ctx, now, begin+from)
		if err != nil && begin+to > e.End() && ctx.Err() == nil {
			return false, false, nil // what is behind it may be beyond the end of the disk by now
		}
		if err != nil {
			return false, false, err
		}
		if !parts.Is(from, now) {
			return false, false, nil
		}
		end := min(begin+to, e.End())
		zeros = zeros && zero.Is(now[pos-begin-from:end-begin-from])
		pos = end
	}
	return true, zeros, nil
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
