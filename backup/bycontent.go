// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"bytes"
	"context"
	"errors"
	"iter"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/internal/zero"
)

// readByContent reads everything and archives what differs from base, in
// pieces of [archive.DiffSize].
func (s *archiver) readByContent(ctx context.Context, d *disk, p *DiskPlan, base *archived, m *archive.MapWriter) error {
	data := d.image.Data(ctx)
	then := base.Data(ctx, p.VirtualSize)
	// Cells that hold nothing now and held nothing then need no look; every
	// other is compared as a whole.
	cells := bitmapstore.Union(data, then).Clip(p.VirtualSize).Round(archive.GridSize, p.VirtualSize)
	if p.above != nil {
		cells = bitmapstore.Intersect(cells, p.above)
	}
	nextEntry, stop := iter.Pull2(base.Entries(ctx, 0, p.VirtualSize))
	defer stop()
	pull := entryCursor{next: nextEntry}
	// A disk that grew since holds nothing known there; the base's view reads
	// as zeros beyond its size, so the delta need not say so.
	nextData, stopData := iter.Pull2(iter.Seq2[bitmapstore.Run, error](data))
	defer stopData()
	have := runCursor{next: nextData}
	nextClean, stopClean := iter.Pull2(iter.Seq2[bitmapstore.Run, error](d.audit.clean(p.VirtualSize).Clip(p.VirtualSize)))
	defer stopClean()
	clean := runCursor{next: nextClean}
	for run, err := range cells {
		if err != nil {
			return err
		}
		for start := run.Start; start < run.End; {
			end := min(run.End, start+archive.GridSize)
			entries, err := pull.take(start, end)
			if err != nil {
				return err
			}
			runs, err := have.take(start, end)
			if err != nil {
				return err
			}
			unmarked, err := clean.take(start, end)
			if err != nil {
				return err
			}
			cell := comparedCell{s: s, disk: d, start: start, end: end, runs: runs, clean: unmarked, entries: entries}
			if err := m.Add(ctx, start, end-start, cell.produce); err != nil {
				return err
			}
			start = end
		}
	}
	return nil
}

// comparedCell is a grid cell that is compared with its archived state.
type comparedCell struct {
	s          *archiver
	disk       *disk
	start, end int64
	runs       []bitmapstore.Run // where the image holds data
	clean      []bitmapstore.Run // what a bitmap that is audited calls unchanged
	entries    []archive.Entry   // the archived state, without gaps
}

// produce returns the pieces that differ.
func (c *comparedCell) produce(ctx context.Context, buf []byte) ([]archive.Piece, error) {
	now := buf[:c.end-c.start]
	clear(now)
	for _, r := range c.runs {
		if err := c.s.readGuest(ctx, c.disk, now[r.Start-c.start:r.End-c.start], r.Start); err != nil {
			return nil, err
		}
		c.s.count(c.disk, r.Len())
	}
	var pieces []archive.Piece
	var chunk []byte // of the archive; as a buffer, made when the first is needed
	for _, e := range c.entries {
		mine := now[e.Offset-c.start:][:e.Length]
		switch {
		case e.Zero && zero.Is(mine):
		case e.Zero:
			c.disk.audit.compare(c.clean, e.Offset, mine, zeroBlock[:])
			pieces = appendDiffering(pieces, e.Offset, mine, zeroBlock[:])
		case e.ChunkOffset == 0 && archive.ChunkDigest(c.s.states.keys, mine) == e.Chunk:
			// Most chunks are wholly unchanged, which their digest tells without
			// fetching them.
		case c.s.states.parts != nil:
			var err error
			if pieces, err = c.compareParts(ctx, pieces, &e, now); err != nil {
				return nil, err
			}
		default:
			if chunk == nil {
				chunk = make([]byte, 0, archive.GridSize)
			}
			var err error
			if pieces, err = c.compare(ctx, pieces, e, mine, chunk); err != nil {
				return nil, err
			}
		}
	}
	return pieces, nil
}

// compare adds the pieces of mine that are not as the entry's chunk says. What is damaged
// in the archive cannot be compared, and is stored again.
func (c *comparedCell) compare(ctx context.Context, pieces []archive.Piece, e archive.Entry, mine, buf []byte) ([]archive.Piece, error) {
	var then []byte
	whole, err := c.s.states.fetch.Chunk(ctx, e, buf)
	if err == nil {
		then, err = e.In(whole)
	}
	var damage *archive.DamageError
	switch {
	case err == nil:
		c.disk.audit.compare(c.clean, e.Offset, mine, then)
		return appendDiffering(pieces, e.Offset, mine, then), nil
	case errors.As(err, &damage):
		c.disk.damage.CompareAndSwap(nil, damage)
		return appendPiece(pieces, e.Offset, mine), nil
	}
	return nil, err
}

// appendDiffering adds the parts of now, cut at multiples of [archive.DiffSize]
// of the disk, that differ from then, which repeats when it is shorter.
func appendDiffering(pieces []archive.Piece, off int64, now, then []byte) []archive.Piece {
	for at := int64(0); at < int64(len(now)); {
		n := min(archive.DiffSize-(off+at)%archive.DiffSize, int64(len(now))-at)
		part := now[at : at+n]
		old := then
		if len(then) == len(now) {
			old = then[at:]
		}
		if !bytes.Equal(part, old[:n]) {
			pieces = appendPiece(pieces, off+at, part)
		}
		at += n
	}
	return pieces
}

// appendPiece adds a part, joined to the piece before it where they touch.
func appendPiece(pieces []archive.Piece, off int64, part []byte) []archive.Piece {
	zeros := zero.Is(part)
	if n := len(pieces); n > 0 {
		last := &pieces[n-1]
		if last.Zero == zeros && last.Offset+last.Length == off {
			last.Length += int64(len(part))
			if !zeros {
				// Both lie in the same buffer, one behind the other.
				last.Data = last.Data[:len(last.Data)+len(part)]
			}
			return pieces
		}
	}
	p := archive.Piece{Offset: off, Length: int64(len(part)), Zero: zeros}
	if !zeros {
		p.Data = part
	}
	return append(pieces, p)
}

// entryCursor hands out ascending ranges of a stream of entries.
type entryCursor struct {
	next func() (archive.Entry, error, bool)
	held []archive.Entry
}

// take returns the entries of [start, end), cut to it.
func (c *entryCursor) take(start, end int64) ([]archive.Entry, error) {
	var out []archive.Entry
	for {
		if len(c.held) == 0 {
			e, err, ok := c.next()
			if err != nil {
				return nil, err
			}
			if !ok {
				return out, nil
			}
			c.held = append(c.held, e)
		}
		e := c.held[0]
		if e.Offset >= end {
			return out, nil
		}
		if e.End() > start {
			part := e
			part.Clip(start, end)
			out = append(out, part)
		}
		if e.End() > end {
			return out, nil
		}
		c.held = c.held[:0]
	}
}

// runCursor does the same for runs.
type runCursor struct {
	next func() (bitmapstore.Run, error, bool)
	held bitmapstore.Run
	done bool
}

func (c *runCursor) take(start, end int64) ([]bitmapstore.Run, error) {
	var out []bitmapstore.Run
	for {
		if c.held.Len() == 0 && !c.done {
			run, err, ok := c.next()
			if err != nil {
				return nil, err
			}
			c.held, c.done = run, !ok
		}
		if c.done || c.held.Start >= end {
			return out, nil
		}
		if c.held.End > start {
			out = append(out, bitmapstore.Run{Start: max(start, c.held.Start), End: min(end, c.held.End)})
		}
		if c.held.End > end {
			return out, nil
		}
		c.held = bitmapstore.Run{}
	}
}
