// SPDX-License-Identifier: Apache-2.0

package known

import (
	"bufio"
	"bytes"
	"container/heap"
	"context"
	"errors"
	"io"
)

// source gives sorted records one after the other.
type source struct {
	in     *bufio.Reader
	record []byte
	// pack gives the number of a pack in what is written; false: the record is left out.
	// nil: it stays as it is.
	pack func(number uint32) (uint32, bool)
}

// next reads the next record that is not left out; false: there is none.
func (s *source) next(key int) (bool, error) {
	for {
		if _, err := io.ReadFull(s.in, s.record); err != nil {
			if errors.Is(err, io.EOF) {
				return false, nil
			}
			return false, err
		}
		if s.pack == nil {
			return true, nil
		}
		number, offset, length := getPlace(s.record[key:])
		if number, ok := s.pack(number); ok {
			putPlace(s.record[key:], number, offset, length)
			return true, nil
		}
	}
}

// sources is a heap of them, by the records that are next.
type sources struct {
	all []*source
	key int
}

func (h *sources) Len() int { return len(h.all) }
func (h *sources) Less(i, j int) bool {
	return bytes.Compare(h.all[i].record[:h.key], h.all[j].record[:h.key]) < 0
}
func (h *sources) Swap(i, j int) { h.all[i], h.all[j] = h.all[j], h.all[i] }
func (h *sources) Push(x any)    { h.all = append(h.all, x.(*source)) }
func (h *sources) Pop() any {
	last := h.all[len(h.all)-1]
	h.all = h.all[:len(h.all)-1]
	return last
}

// merge writes the records of all sources, sorted.
func merge(ctx context.Context, from []*source, to *sortedWriter) error {
	h := &sources{key: to.key}
	for _, s := range from {
		s.record = make([]byte, to.key+placeLen)
		more, err := s.next(to.key)
		if err != nil {
			return err
		}
		if more {
			h.all = append(h.all, s)
		}
	}
	heap.Init(h)
	for h.Len() > 0 {
		if to.count%(1<<16) == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s := h.all[0]
		if err := to.add(s.record); err != nil {
			return err
		}
		more, err := s.next(to.key)
		switch {
		case err != nil:
			return err
		case more:
			heap.Fix(h, 0)
		default:
			heap.Pop(h)
		}
	}
	return to.w.Flush()
}
