// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"errors"
	"iter"

	"github.com/imgbackup/imgbackup/bitmapstore"
)

var errNoMaps = errors.New("a state without maps has no differences")

// Diff is where, in [start, end), a state of a disk may read otherwise than an older
// one, each given by the maps of its replay, newest first; end may be at most the
// newer state's size. It covers every difference; what lies beyond the smaller size
// counts as one. Ranges that hold the same bytes are reported too where the maps do
// not show that they are the same.
//
// It streams, in as much memory as two replays take, and reads of the maps what it
// needs. Where the newer state builds on the older one, only the maps of what came
// after are read.
func Diff(ctx context.Context, newer, older []*Map, start, end int64) bitmapstore.Runs {
	if len(newer) == 0 || len(older) == 0 {
		return bitmapstore.Fail(errNoMaps)
	}
	if err := newer[0].checkRange(start, end); err != nil {
		return bitmapstore.Fail(err)
	}
	newer, older = replayed(newer), replayed(older)
	both := min(newer[0].Size(), older[0].Size())
	if since := len(newer) - len(older); since >= 0 && sameMaps(newer[since:], older) {
		sets := []bitmapstore.Runs{}
		for _, m := range newer[:since] {
			// A disk that shrank and grew again lost what it had beyond.
			both = min(both, m.Size())
			if to := min(end, m.Size()); start < to {
				sets = append(sets, covered(ctx, m, start, to))
			}
		}
		sets = append(sets, tail(max(both, start), end))
		return bitmapstore.Union(sets...)
	}
	sets := []bitmapstore.Runs{tail(max(both, start), end)}
	if to := min(end, both); start < to {
		sets = append(sets, differing(ctx, newer, older, start, to))
	}
	return bitmapstore.Union(sets...)
}

// replayed cuts off what a replay does not read: all behind the first full map.
func replayed(maps []*Map) []*Map {
	for i, m := range maps {
		if m.Full() {
			return maps[:i+1]
		}
	}
	return maps
}

// sameMaps reports whether both are the same objects.
func sameMaps(a, b []*Map) bool {
	for i := range a {
		if a[i].ref != b[i].ref {
			return false
		}
	}
	return true
}

func tail(from, end int64) bitmapstore.Runs {
	if from >= end {
		return bitmapstore.Of()
	}
	return bitmapstore.Of(bitmapstore.Run{Start: from, End: end})
}

// covered is where a map has entries in [start, end).
func covered(ctx context.Context, m *Map, start, end int64) bitmapstore.Runs {
	return bitmapstore.Join(func(yield func(bitmapstore.Run, error) bool) {
		for e, err := range m.Entries(ctx, start, end) {
			if !yield(bitmapstore.Run{Start: e.Offset, End: e.End()}, err) || err != nil {
				return
			}
		}
	})
}

// differing compares two replays of [start, end) entry by entry.
func differing(ctx context.Context, newer, older []*Map, start, end int64) bitmapstore.Runs {
	return bitmapstore.Join(func(yield func(bitmapstore.Run, error) bool) {
		next, stop := iter.Pull2(Replay(ctx, older, start, end))
		defer stop()
		var was Entry
		for is, err := range Replay(ctx, newer, start, end) {
			for err == nil && is.Length > 0 {
				if was.Length == 0 {
					var ok bool
					if was, err, ok = next(); err == nil && !ok {
						err = errors.New("the older state's maps end early")
					}
					continue
				}
				a, b := is, was
				end := min(a.End(), b.End())
				a.Clip(is.Offset, end)
				b.Clip(is.Offset, end)
				if !sameBytes(a, b) && !yield(bitmapstore.Run{Start: a.Offset, End: end}, nil) {
					return
				}
				is = rest(is, end)
				was = rest(was, end)
			}
			if err != nil {
				yield(bitmapstore.Run{}, err)
				return
			}
		}
	})
}

// rest is what an entry has from at on; its Length is 0 when that is nothing.
func rest(e Entry, at int64) Entry {
	if at >= e.End() {
		return Entry{}
	}
	e.Clip(at, e.End())
	return e
}

// sameBytes reports whether two entries of the same range are the same slice of
// the same chunk, or both zeros.
func sameBytes(a, b Entry) bool {
	if a.Zero || b.Zero {
		return a.Zero && b.Zero
	}
	return a.Chunk == b.Chunk && a.ChunkOffset == b.ChunkOffset
}
