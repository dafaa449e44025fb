// SPDX-License-Identifier: Apache-2.0

package view

import (
	"context"
	"iter"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
)

// Layout is what the bytes of one disk of a checkpoint are made of: its maps, as one.
// It has no data, and keeps nothing: each call reads what it needs of the maps, as a
// stream. It is safe for concurrent use and needs no closing.
type Layout struct {
	Name string // vda
	size int64
	maps []*archive.Map // newest first; none: see [OpenTolerant]
	lose func(chain.Lost)
	lost bitmapstore.Runs // what the checkpoint has lost: nobody knows what it was
}

// OpenLayout opens the maps of a disk, several at once. One that is missing or is not
// what the manifest says is an [archive.DamageError].
func OpenLayout(ctx context.Context, repo *chain.Repository, d *chain.Disk) (*Layout, error) {
	maps, err := chain.ReplayMaps(ctx, repo, d)
	if err != nil {
		return nil, err
	}
	return &Layout{Name: d.Name, size: d.Size, maps: maps, lost: d.LostRuns()}, nil
}

// Size is the disk's virtual size, bytes.
func (l *Layout) Size() int64 { return l.size }

// Maps are what the layout is merged of, newest first. The slice must not be changed.
func (l *Layout) Maps() []*archive.Map { return l.maps }

// With is the layout as a newer map of the disk changes it.
func (l *Layout) With(newer *archive.Map) *Layout {
	return &Layout{Name: newer.Disk(), size: newer.Size(), maps: append([]*archive.Map{newer}, l.maps...), lose: l.lose}
}

// Entries yields what [start, end) is made of, in order, clipped to it and without gaps.
// What lies beyond the disk's size reads as zeros. An error comes last.
func (l *Layout) Entries(ctx context.Context, start, end int64) iter.Seq2[archive.Entry, error] {
	return func(yield func(archive.Entry, error) bool) {
		inside := min(end, l.size)
		if start < inside {
			if l.lose != nil {
				if !l.tolerant(ctx, start, inside, yield) {
					return
				}
			} else if !l.strict(ctx, start, inside, yield) {
				return
			}
		}
		if behind := max(start, inside); behind < end {
			yield(archive.Entry{Offset: behind, Length: end - behind, Zero: true}, nil)
		}
	}
}

// strict yields [start, end), which lies within the disk, and reports whether to go on.
func (l *Layout) strict(ctx context.Context, start, end int64, yield func(archive.Entry, error) bool) bool {
	for e, err := range archive.Replay(ctx, l.maps, start, end) {
		if !yield(e, err) || err != nil {
			return false
		}
	}
	return true
}

// Runs is the part of [start, end) whose entries satisfy keep.
func (l *Layout) Runs(ctx context.Context, start, end int64, keep func(*archive.Entry) bool) bitmapstore.Runs {
	return bitmapstore.Join(func(yield func(bitmapstore.Run, error) bool) {
		for e, err := range l.Entries(ctx, start, end) {
			if (err != nil || keep(&e)) && !yield(bitmapstore.Run{Start: e.Offset, End: e.End()}, err) {
				return
			}
		}
	})
}

// Data is where the disk has data in the repository, of the part in [start, end).
func (l *Layout) Data(ctx context.Context, start, end int64) bitmapstore.Runs {
	return l.Runs(ctx, start, end, func(e *archive.Entry) bool { return !e.Zero })
}

// ChangedSince is where the disk may read otherwise than older, of the part in
// [start, end), which lies within the disk: see [archive.Diff]; and what either has lost.
func (l *Layout) ChangedSince(ctx context.Context, older *Layout, start, end int64) bitmapstore.Runs {
	changed := archive.Diff(ctx, l.maps, older.maps, start, end)
	if l.lost == nil && older.lost == nil {
		return changed
	}
	return bitmapstore.Union(changed, bitmapstore.Intersect(bitmapstore.Union(l.lost, older.lost), bitmapstore.Between(start, end)))
}
