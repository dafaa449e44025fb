// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
)

// MaxReplay is the largest number of maps that Replay merges.
const MaxReplay = 256

// aheadMaps is the number of maps up to which frames are decoded ahead; beyond
// it, memory counts more.
const aheadMaps = 4

// Replay merges maps, newest first, into entries that cover [start, end) without
// gaps, in order; end may be at most the size of maps[0]. Each byte comes from the
// newest map that has it. An older map counts only below the smallest size that
// it and all newer ones have: what lies beyond was cut off in between and is
// zero. The first full map ends the list; without one, Replay fails. Readers need
// not look for gaps: where the maps left one, Replay would fail.
//
// It streams: at most one decoded frame of each map (two with up to 4 maps) is in
// memory, and some 16 MiB of stored ones, which are fetched ahead.
// An error comes last.
func Replay(ctx context.Context, maps []*Map, start, end int64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		r, err := newReplay(ctx, maps, start, end, false)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		defer r.close()
		r.run(yield)
	}
}

// Merge merges maps that follow one another in a list, newest first, into what can stand
// there in their place: with a full one at the end all of the disk, as Replay; else what
// any of them has, and zeros where the disk was cut off in between and had grown again.
// As Replay, it streams, and an error comes last.
func Merge(ctx context.Context, maps []*Map) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if len(maps) == 0 {
			yield(Entry{}, errors.New("there are no maps to be merged"))
			return
		}
		r, err := newReplay(ctx, maps, 0, maps[0].head.size, true)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		defer r.close()
		r.run(yield)
	}
}

type replay struct {
	// below: below this offset what no map has is left out; beyond it, and if it is
	// zero, it reads as zeros.
	below   int64
	maps    []*Map
	cursors []*cursor
	from    []int64 // of each cursor's current run, math.MaxInt64 at the end
	to      []int64
	limit   []int64 // up to where each map counts
	dec     *decoder
	pos     int64
	end     int64
}

func newReplay(ctx context.Context, maps []*Map, start, end int64, partial bool) (*replay, error) {
	if len(maps) == 0 || len(maps) > MaxReplay {
		return nil, fmt.Errorf("can't merge %d maps: 1 to %d are possible", len(maps), MaxReplay)
	}
	if err := maps[0].checkRange(start, end); err != nil {
		return nil, err
	}
	r := &replay{pos: start, end: end}
	size := int64(math.MaxInt64)
	for i, m := range maps {
		size = min(size, m.head.size)
		r.limit = append(r.limit, size)
		r.maps = maps[:i+1]
		if m.head.full {
			break
		}
	}
	if n := len(r.maps); !r.maps[n-1].head.full {
		if !partial {
			return nil, errors.New("the list of maps does not end with a full one")
		}
		r.below = size
	}
	r.from = make([]int64, len(r.maps))
	r.to = make([]int64, len(r.maps))
	var err error
	if r.dec, err = newDecoder(); err != nil {
		return nil, err
	}
	for i, m := range r.maps {
		c, err := r.cursor(ctx, m, min(end, r.limit[i]))
		if err != nil {
			r.close()
			return nil, err
		}
		c.loader.spans.begin(start)
		r.cursors = append(r.cursors, c)
	}
	for i := range r.cursors {
		if err := r.advance(i); err != nil {
			r.close()
			return nil, err
		}
	}
	return r, nil
}

func (r *replay) cursor(ctx context.Context, m *Map, end int64) (*cursor, error) {
	if n := len(r.maps); n > aheadMaps {
		return newSharedCursor(ctx, m, end, n, r.dec), nil
	}
	return newCursor(ctx, m, end, len(r.maps))
}

func (r *replay) close() {
	for _, c := range r.cursors {
		c.close()
	}
	r.dec.close()
}

// advance moves map i to its first run that ends after pos and counts.
func (r *replay) advance(i int) error {
	c := r.cursors[i]
	ok, err := c.next(r.pos)
	if err != nil {
		return err
	}
	if !ok || c.run.off >= r.limit[i] || c.run.off >= r.end {
		r.from[i], r.to[i] = math.MaxInt64, math.MaxInt64
		return nil
	}
	r.from[i], r.to[i] = c.run.off, min(c.run.end(), r.limit[i])
	if r.to[i] <= r.pos { // what is left of the run is cut off
		r.from[i], r.to[i] = math.MaxInt64, math.MaxInt64
	}
	return nil
}

// step finds who has the byte at pos, and up to where; -1 means nobody.
func (r *replay) step() (who int, to int64, err error) {
	to = r.end
	for i := range r.from {
		for r.to[i] <= r.pos {
			if err := r.advance(i); err != nil {
				return 0, 0, err
			}
		}
		if r.from[i] <= r.pos {
			return i, min(to, r.to[i]), nil
		}
		to = min(to, r.from[i])
	}
	return -1, to, nil
}

func (r *replay) run(yield func(Entry, error) bool) {
	var out Entry
	for r.pos < r.end {
		who, to, err := r.step()
		if err == nil && (to <= r.pos || to > r.end) { // whoever reads on relies on it
			err = fmt.Errorf("the maps of disk %s give bytes %d to %d after %d", r.maps[0].head.disk, r.pos, to-1, r.pos)
		}
		if err != nil {
			yield(Entry{}, err)
			return
		}
		if who < 0 && r.pos < r.below {
			r.pos = min(to, r.below) // as in the parent
			continue
		}
		e := Entry{Offset: r.pos, Length: to - r.pos, Zero: true}
		if who >= 0 && !r.cursors[who].run.zero {
			e = r.maps[who].entry(&r.cursors[who].run)
			e.Clip(r.pos, to)
		}
		r.pos = to
		switch {
		case out.Length == 0:
			out = e
		case out.End() == e.Offset && out.continuedBy(&e):
			out.Length += e.Length
		default:
			if !yield(out, nil) {
				return
			}
			out = e
		}
	}
	if out.Length > 0 {
		yield(out, nil)
	}
}
