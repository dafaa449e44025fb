// SPDX-License-Identifier: Apache-2.0

package view

import (
	"context"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
)

// OpenTolerant opens a layout of which zeros take the place of what is damaged in the maps.
// lose is told of each such range, as often as it is met, from several goroutines at once,
// and first of what the manifest says to be lost. A disk of which a map is missing is lost
// as a whole.
func OpenTolerant(ctx context.Context, repo *chain.Repository, d *chain.Disk, lose func(chain.Lost)) (*Layout, error) {
	for _, l := range d.Lost {
		lose(l)
	}
	l, err := OpenLayout(ctx, repo, d)
	if archive.IsDamage(err) {
		l = &Layout{Name: d.Name, size: d.Size}
		if d.Size > 0 {
			lose(chain.Lost{Length: d.Size, Reason: err.Error()})
		}
		err = nil
	}
	if err != nil {
		return nil, err
	}
	l.lose = lose
	return l, nil
}

// tolerant yields [start, end), which lies within the disk, and reports whether to go on.
func (l *Layout) tolerant(ctx context.Context, start, end int64, yield func(archive.Entry, error) bool) bool {
	if len(l.maps) == 0 {
		return yield(archive.Entry{Offset: start, Length: end - start, Zero: true}, nil)
	}
	pos := start
	for e, err := range archive.Replay(ctx, l.maps, start, end) {
		if archive.IsDamage(err) {
			return l.around(ctx, pos, end, err, yield)
		}
		if !yield(e, err) || err != nil {
			return false
		}
		pos = e.End()
	}
	return true
}

// around yields a range in which the maps are damaged, in halves: a frame of a map that is
// damaged is asked for only where it may have runs.
func (l *Layout) around(ctx context.Context, start, end int64, damage error, yield func(archive.Entry, error) bool) bool {
	unit := l.lostUnit()
	if end-start <= unit {
		l.lose(chain.Lost{Offset: start, Length: end - start, Reason: damage.Error()})
		return yield(archive.Entry{Offset: start, Length: end - start, Zero: true}, nil)
	}
	middle := start + (end-start)/2
	if at := middle - middle%unit; at > start {
		middle = at
	}
	return l.tolerant(ctx, start, middle, yield) && l.tolerant(ctx, middle, end, yield)
}

// lostUnit is what is given up at once where a map is damaged, bytes: so much that a large
// disk is not asked for more often than its manifest could say.
func (l *Layout) lostUnit() int64 {
	unit := int64(archive.GridSize)
	for unit < l.size/chain.MaxLost {
		unit *= 2
	}
	return unit
}

// tolerate reports whether zeros take the place of an entry that cannot be had, and tells
// that it is lost.
func (l *Layout) tolerate(e *archive.Entry, err error) bool {
	if l.lose == nil || !archive.IsDamage(err) {
		return false
	}
	l.lose(chain.Lost{Offset: e.Offset, Length: e.Length, Reason: err.Error()})
	return true
}
