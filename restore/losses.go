// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"errors"
	"sync"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
)

// fewEntries is how many entries are fetched together where damage has been met.
const fewEntries = 64

// fetchWhatIsLeft is fetch with zeros for what is damaged.
func (s *source) fetchWhatIsLeft(ctx context.Context, entries []archive.Entry, fn taker) error {
	done := make([]bool, len(entries))
	var mu sync.Mutex
	some := func(at []int) error {
		part := make([]archive.Entry, len(at))
		for k, i := range at {
			part[k] = entries[i]
		}
		err := s.fetcher.Slices(ctx, part, func(k int, data []byte, whole bool) error {
			if err := fn(at[k], data, whole); err != nil {
				return err
			}
			mu.Lock()
			done[at[k]] = true
			mu.Unlock()
			return nil
		})
		var in *archive.EntryError
		switch {
		case !errors.As(err, &in):
			return err
		case !archive.IsDamage(err):
			return s.damage(err, in.Entry.Offset, in.Entry.End())
		}
		for _, k := range in.Indexes {
			if err := s.fetchOne(ctx, entries[at[k]], at[k], fn); err != nil {
				return err
			}
			done[at[k]] = true
		}
		return nil
	}
	for size := len(entries); ; size = fewEntries {
		left := undone(done, size)
		if len(left) == 0 {
			return nil
		}
		if err := some(left); err != nil {
			return err
		}
	}
}

// undone are the first of those that are not done.
func undone(done []bool, most int) (left []int) {
	for i := range done {
		if !done[i] && len(left) < most {
			left = append(left, i)
		}
	}
	return left
}

// fetchOne fetches one entry's bytes, or takes zeros for them.
func (s *source) fetchOne(ctx context.Context, e archive.Entry, i int, fn taker) error {
	var data []byte
	chunk, err := s.fetcher.Chunk(ctx, e, make([]byte, 0, archive.GridSize))
	if err == nil {
		data, err = e.In(chunk)
	}
	if archive.IsDamage(err) {
		s.lost.Add(chain.Lost{Offset: e.Offset, Length: e.Length, Reason: err.Error()})
		data, err = make([]byte, e.Length), nil
	}
	if err != nil {
		return s.damage(err, e.Offset, e.End())
	}
	return fn(i, data, len(data) == len(chunk))
}
