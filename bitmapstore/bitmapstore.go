// SPDX-License-Identifier: Apache-2.0

// Package bitmapstore holds dirty bitmaps as values: sets of byte ranges of a virtual disk that are
// iterated, united, intersected, clipped and rounded without ever being held in memory as a whole,
// and the form in which they are stored.
//
// Invariants of every [Runs]: its runs are non-empty, sorted, disjoint and do not touch each other;
// all offsets are bytes, 0 or more; each iteration begins anew; an error, if there is one, comes
// last and alone. All operations are lazy: nothing is read before the result is iterated. An
// operation that has its answer before an operand ends does not read the rest of that operand. A
// nil Runs is the empty set.
package bitmapstore

import (
	"iter"
	"slices"
)

// Run is a half-open byte range [Start, End) of a virtual disk.
type Run struct{ Start, End int64 }

// Len is the number of bytes of the run.
func (r Run) Len() int64 { return r.End - r.Start }

// Runs is a set of bytes of a virtual disk. See the package documentation for what every Runs
// promises.
type Runs iter.Seq2[Run, error]

// Between is the set of the bytes from start on that lie before end, if there are any.
func Between(start, end int64) Runs { return Of(Run{Start: start, End: end}) }

// Of is the set of all bytes of runs, which may come in any order, overlap, touch and be empty.
// What lies below 0 is left out.
func Of(runs ...Run) Runs {
	sorted := make([]Run, 0, len(runs))
	for _, r := range runs {
		r.Start = max(r.Start, 0)
		if r.Start < r.End {
			sorted = append(sorted, r)
		}
	}
	slices.SortFunc(sorted, func(a, b Run) int {
		switch {
		case a.Start < b.Start:
			return -1
		case a.Start > b.Start:
			return 1
		}
		return 0
	})
	return func(yield func(Run, error) bool) {
		m := merger{yield: yield}
		for _, r := range sorted {
			if !m.add(r) {
				return
			}
		}
		m.flush()
	}
}

// Join is the set of the bytes of runs that come in ascending order of their starts; they may
// touch, overlap and be empty. An error ends them.
func Join(runs iter.Seq2[Run, error]) Runs {
	return func(yield func(Run, error) bool) {
		m := merger{yield: yield}
		for run, err := range runs {
			if err != nil {
				if m.flush() {
					yield(Run{}, err)
				}
				return
			}
			if run.Start < run.End && !m.add(run) {
				return
			}
		}
		m.flush()
	}
}

// Fail is a set that cannot be read: its iteration yields err and nothing else. A nil err gives the
// empty set.
func Fail(err error) Runs {
	return func(yield func(Run, error) bool) {
		if err != nil {
			yield(Run{}, err)
		}
	}
}

// Bytes is the number of bytes in the set.
func (r Runs) Bytes() (int64, error) {
	var sum int64
	for run, err := range r.seq() {
		if err != nil {
			return 0, err
		}
		sum += run.Len()
	}
	return sum, nil
}

// Collect reads the whole set into memory: for small sets and tests.
func (r Runs) Collect() ([]Run, error) {
	var all []Run
	for run, err := range r.seq() {
		if err != nil {
			return nil, err
		}
		all = append(all, run)
	}
	return all, nil
}

// Clip is the part of the set that lies in [0, size).
func (r Runs) Clip(size int64) Runs {
	return func(yield func(Run, error) bool) {
		if size <= 0 {
			return
		}
		for run, err := range r.seq() {
			if err != nil {
				yield(Run{}, err)
				return
			}
			if run.Start >= size {
				return
			}
			run.End = min(run.End, size)
			if !yield(run, nil) || run.End == size {
				return
			}
		}
	}
}

// Round is the set with every run widened to multiples of granularity (bytes, more than 0), clipped
// to [0, size): what a coarser bitmap of a disk of that size would say.
func (r Runs) Round(granularity, size int64) Runs {
	if granularity <= 0 {
		return Fail(errGranularity(granularity))
	}
	return Join(func(yield func(Run, error) bool) {
		for run, err := range r.Clip(size) {
			run.Start -= run.Start % granularity
			if base := run.End - run.End%granularity; base != run.End {
				run.End = base + min(granularity, size-base)
			}
			if !yield(run, err) {
				return
			}
		}
	})
}

// seq is r as something that can be ranged over even when it is nil.
func (r Runs) seq() iter.Seq2[Run, error] {
	if r == nil {
		return func(func(Run, error) bool) {}
	}
	return iter.Seq2[Run, error](r)
}

// merger yields runs that are added in order of their starts, united where they overlap or touch.
type merger struct {
	yield func(Run, error) bool
	run   Run // pending; empty at first
}

// add takes the next run; false: the consumer has stopped.
func (m *merger) add(r Run) bool {
	if r.Start <= m.run.End && m.run.Start < m.run.End {
		m.run.End = max(m.run.End, r.End)
		return true
	}
	if !m.flush() {
		return false
	}
	m.run = r
	return true
}

// flush yields the pending run; false: the consumer has stopped.
func (m *merger) flush() bool {
	if m.run.Start == m.run.End {
		return true
	}
	r := m.run
	m.run = Run{}
	return m.yield(r, nil)
}
