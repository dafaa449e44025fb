// SPDX-License-Identifier: Apache-2.0

package bitmapstore

import (
	"fmt"
	"iter"
)

// Union is the set of bytes that are in any of sets.
func Union(sets ...Runs) Runs {
	switch len(sets) {
	case 0:
		return Of()
	case 1:
		return Runs(sets[0].seq())
	}
	return func(yield func(Run, error) bool) {
		cursors := make([]*cursor, 0, len(sets))
		defer func() {
			for _, c := range cursors {
				c.close()
			}
		}()
		for _, s := range sets {
			c := newCursor(s)
			cursors = append(cursors, c)
		}
		m := merger{yield: yield}
		heap := newCursorHeap(cursors)
		for len(heap) > 0 {
			first := heap[0]
			if first.err != nil {
				if m.flush() {
					yield(Run{}, first.err)
				}
				return
			}
			if !m.add(first.run) {
				return
			}
			first.next()
			heap.fix()
		}
		m.flush()
	}
}

// Intersect is the set of bytes that are in a and in b.
func Intersect(a, b Runs) Runs {
	return func(yield func(Run, error) bool) {
		x, y := newCursor(a), newCursor(b)
		defer x.close()
		defer y.close()
		for x.ok && y.ok {
			if err := firstError(x, y); err != nil {
				yield(Run{}, err)
				return
			}
			if r := (Run{max(x.run.Start, y.run.Start), min(x.run.End, y.run.End)}); r.Start < r.End && !yield(r, nil) {
				return
			}
			if x.run.End <= y.run.End {
				x.next()
			} else {
				y.next()
			}
		}
	}
}

// Subtract is the set of bytes that are in a and not in b.
func Subtract(a, b Runs) Runs {
	return func(yield func(Run, error) bool) {
		x, y := newCursor(a), newCursor(b)
		defer x.close()
		defer y.close()
		for x.ok {
			if err := firstError(x, y); err != nil {
				yield(Run{}, err)
				return
			}
			switch {
			case !y.ok || x.run.End <= y.run.Start:
				if !yield(x.run, nil) {
					return
				}
				x.next()
			case y.run.End <= x.run.Start:
				y.next()
			default:
				if x.run.Start < y.run.Start && !yield(Run{x.run.Start, y.run.Start}, nil) {
					return
				}
				if x.run.End <= y.run.End {
					x.next()
				} else {
					x.run.Start = y.run.End
					y.next()
				}
			}
		}
	}
}

// Equal reports whether a and b hold the same bytes.
func Equal(a, b Runs) (bool, error) {
	x, y := newCursor(a), newCursor(b)
	defer x.close()
	defer y.close()
	for x.ok && y.ok {
		if err := firstError(x, y); err != nil {
			return false, err
		}
		if x.run != y.run {
			return false, nil
		}
		x.next()
		y.next()
	}
	if err := firstError(x, y); err != nil {
		return false, err
	}
	return !x.ok && !y.ok, nil
}

// Contains reports whether every byte of b is in a.
func Contains(a, b Runs) (bool, error) {
	for _, err := range Subtract(b, a) {
		return false, err
	}
	return true, nil
}

func errGranularity(g int64) error {
	return fmt.Errorf("bitmapstore: granularity %d: it must be more than 0", g)
}

func firstError(x, y *cursor) error {
	if x.err != nil {
		return x.err
	}
	return y.err
}

// batchSize is the number of runs that cross from producer to consumer at once: a switch between
// the two costs some hundred nanoseconds, a run in a batch about one.
const batchSize = 512

// cursor reads a set run by run.
type cursor struct {
	run Run   // where it stands
	err error // the error that ended the set; ok is then true, so that it is seen
	ok  bool  // false: the set has ended

	batch   []Run
	batches func() ([]Run, error, bool)
	stop    func()
}

// newCursor stands on the first run of the set. It must be closed.
func newCursor(r Runs) *cursor {
	c := &cursor{ok: true}
	c.batches, c.stop = iter.Pull2(batched(r))
	c.next()
	return c
}

func (c *cursor) close() { c.stop() }

func (c *cursor) next() {
	if len(c.batch) == 0 && c.err == nil && c.ok {
		c.batch, c.err, c.ok = c.batches()
	}
	if len(c.batch) > 0 {
		c.run, c.batch = c.batch[0], c.batch[1:]
	}
}

// batched yields the runs of r in batches that are valid until the next one is asked for. An error
// comes with an empty batch, last.
func batched(r Runs) iter.Seq2[[]Run, error] {
	return func(yield func([]Run, error) bool) {
		// The first batches are small: most bitmaps have few runs, and a reader may need just one.
		buf := make([]Run, 0, 16)
		for run, err := range r.seq() {
			if err != nil {
				if len(buf) == 0 || yield(buf, nil) {
					yield(nil, err)
				}
				return
			}
			buf = append(buf, run)
			if len(buf) == cap(buf) {
				if !yield(buf, nil) {
					return
				}
				if cap(buf) < batchSize {
					buf = make([]Run, 0, 2*cap(buf))
				}
				buf = buf[:0]
			}
		}
		if len(buf) > 0 {
			yield(buf, nil)
		}
	}
}

// cursorHeap is a binary heap of the cursors that have not ended: errors first, then by start.
type cursorHeap []*cursor

func newCursorHeap(cursors []*cursor) cursorHeap {
	h := make(cursorHeap, 0, len(cursors))
	for _, c := range cursors {
		if c.ok {
			h = append(h, c)
		}
	}
	for i := len(h)/2 - 1; i >= 0; i-- {
		h.down(i)
	}
	return h
}

// fix restores the order after the first cursor has moved on.
func (h *cursorHeap) fix() {
	s := *h
	if !s[0].ok {
		s[0] = s[len(s)-1]
		s = s[:len(s)-1]
		*h = s
	}
	if len(s) > 0 {
		s.down(0)
	}
}

func (h cursorHeap) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(h) {
			return
		}
		if child+1 < len(h) && h[child+1].before(h[child]) {
			child++
		}
		if !h[child].before(h[i]) {
			return
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
}

func (c *cursor) before(d *cursor) bool {
	if c.err != nil || d.err != nil {
		return c.err != nil && d.err == nil
	}
	return c.run.Start < d.run.Start
}
