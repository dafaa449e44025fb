// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/qcow2"
)

// readDisk feeds one disk's map: the whole disk, the dirty ranges, or what
// differs from the archived state it builds on.
func (s *archiver) readDisk(ctx context.Context, d *disk, p *DiskPlan, w *archive.Writer) (*archive.MapWriter, error) {
	m := w.NewMap(p.Disk, p.VirtualSize, p.Mode == Full)
	if p.Detection == ByContent {
		base, err := s.states.open(ctx, p.base.Disk)
		if err != nil {
			return nil, err
		}
		return m, s.readByContent(ctx, d, p, base, m)
	}
	what := bitmapstore.Between(0, p.VirtualSize)
	switch p.Detection {
	case ByTimes:
		return m, nil
	case ByBitmap:
		what = p.verdict.Dirty
	}
	return m, s.readRanges(ctx, d, what, m)
}

// readRanges archives what the image holds in the given ranges, cell by cell.
// Ranges that read as zeros are recorded as zeros; in a full map that is what
// is left out, too.
func (s *archiver) readRanges(ctx context.Context, d *disk, what bitmapstore.Runs, m *archive.MapWriter) error {
	data := cells{out: func(runs []bitmapstore.Run) error {
		first, last := runs[0].Start, runs[len(runs)-1].End
		return m.Add(ctx, first, last-first, func(ctx context.Context, buf []byte) ([]archive.Piece, error) {
			return s.readPieces(ctx, d, runs, buf)
		})
	}}
	for run, err := range what {
		if err != nil {
			return err
		}
		for e, err := range d.image.Extents(run.Start, run.End) {
			if err == nil {
				err = ctx.Err()
			}
			switch {
			case err != nil:
			case e.Kind == qcow2.Hole || e.Kind == qcow2.Zero:
				if err = data.end(); err == nil {
					err = m.Zero(e.Offset, e.Length)
				}
			default:
				err = data.add(e.Offset, e.Offset+e.Length)
			}
			if err != nil {
				return err
			}
		}
	}
	return data.end()
}

// cells gathers ascending ranges, and hands them out by grid cells.
type cells struct {
	out  func([]bitmapstore.Run) error
	at   int64 // the cell that is gathered
	runs []bitmapstore.Run
}

func (c *cells) add(start, end int64) error {
	for start < end {
		if at := start / archive.GridSize; at != c.at {
			if err := c.end(); err != nil {
				return err
			}
			c.at = at
		}
		stop := min(end, (c.at+1)*archive.GridSize)
		if n := len(c.runs); n > 0 && c.runs[n-1].End == start {
			c.runs[n-1].End = stop
		} else {
			c.runs = append(c.runs, bitmapstore.Run{Start: start, End: stop})
		}
		start = stop
	}
	return nil
}

// end hands out what has been gathered.
func (c *cells) end() error {
	if len(c.runs) == 0 {
		return nil
	}
	mine := slices.Clone(c.runs)
	c.runs = c.runs[:0]
	return c.out(mine)
}

// readPieces reads runs of one cell, each a piece.
func (s *archiver) readPieces(ctx context.Context, d *disk, runs []bitmapstore.Run, buf []byte) ([]archive.Piece, error) {
	pieces := make([]archive.Piece, 0, len(runs))
	for _, r := range runs {
		part := buf[:r.Len():r.Len()]
		buf = buf[r.Len():]
		if err := s.readGuest(ctx, d, part, r.Start); err != nil {
			return nil, err
		}
		s.count(d, r.Len())
		pieces = append(pieces, archive.Piece{Offset: r.Start, Length: r.Len(), Data: part})
	}
	return pieces, nil
}
