// SPDX-License-Identifier: Apache-2.0

package known

import (
	"context"
	"os"
)

// Spill holds what a session has learnt of chunks, with their whole digests, in files
// without a name. It must be closed. Find may be called from several goroutines, but not
// while Add is at work.
type Spill struct {
	Dir string // of the files; empty: the system's

	runs []*spillRun // the largest first
}

type spillRun struct {
	file *os.File
	sorted
}

// Learnt is a chunk and the three numbers that a session keeps of it.
type Learnt struct {
	Chunk                Digest
	Pack, Offset, Length uint32
}

// Add takes chunks, sorted by their digests.
func (s *Spill) Add(ctx context.Context, chunks []Learnt) error {
	r, err := s.write(func(w *sortedWriter) error {
		var buf [spillKey + placeLen]byte
		for i := range chunks {
			c := &chunks[i]
			copy(buf[:], c.Chunk[:])
			putPlace(buf[spillKey:], c.Pack, c.Offset, c.Length)
			if err := w.add(buf[:]); err != nil {
				return err
			}
		}
		return w.w.Flush()
	})
	if err != nil {
		return err
	}
	s.runs = append(s.runs, r)
	from := similar(len(s.runs), func(i int) int64 { return s.runs[i].count })
	if from == len(s.runs)-1 {
		return nil
	}
	return s.merge(ctx, from)
}

// merge makes one of the runs from that one on.
func (s *Spill) merge(ctx context.Context, from int) error {
	var sources []*source
	for _, r := range s.runs[from:] {
		sources = append(sources, &source{in: r.reader()})
	}
	r, err := s.write(func(w *sortedWriter) error { return merge(ctx, sources, w) })
	if err != nil {
		return err
	}
	for _, old := range s.runs[from:] {
		_ = old.file.Close() // it has no name, and is gone
	}
	s.runs = append(s.runs[:from], r)
	return nil
}

func (s *Spill) write(records func(*sortedWriter) error) (_ *spillRun, err error) {
	f, err := os.CreateTemp(s.Dir, "imgbackup-*.tmp")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // it has no name, and is gone
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	w := newSortedWriter(f, spillKey)
	if err := records(w); err != nil {
		return nil, err
	}
	return &spillRun{file: f, sorted: sorted{in: f, count: w.count, key: spillKey, fences: w.fences}}, nil
}

// Find returns what was learnt of a chunk last.
func (s *Spill) Find(chunk *Digest) (l Learnt, ok bool, err error) {
	for i := len(s.runs) - 1; i >= 0 && !ok; i-- {
		_, err = s.runs[i].find(chunk, func(pack, offset, length uint32) bool {
			l, ok = Learnt{*chunk, pack, offset, length}, true
			return false
		})
		if err != nil {
			return Learnt{}, false, err
		}
	}
	return l, ok, nil
}

// Close gives the files back; it may be called again.
func (s *Spill) Close() {
	for _, r := range s.runs {
		_ = r.file.Close() // they have no names, and are gone
	}
	s.runs = nil
}

// growth is how much larger a run must be than all smaller ones together to be left
// alone when they are merged.
const growth = 3

// similar returns from which on of n runs, the largest first, they are to be merged into
// one, so that each is larger by far than all that follow; n-1: none.
func similar(n int, count func(int) int64) int {
	if n == 0 {
		return 0
	}
	from, sum := n-1, count(n-1)
	for i := n - 2; i >= 0; i-- {
		if count(i) < growth*sum {
			from = i
		}
		sum += count(i)
	}
	return from
}
