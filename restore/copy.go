// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"errors"

	"golang.org/x/time/rate"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/outfile"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/view"
)

// A batch is the part of a disk's content whose chunks are fetched together,
// sorted by pack. Its limits bound memory (some 20 MiB) and are far beyond what
// keeps all workers busy.
const (
	batchEntries = 32 << 10
	batchRuns    = 256 << 10
)

// batch collects entries with data and where their bytes go.
type batch struct {
	entries []archive.Entry
	runs    []qcow2.HostRun
	first   []int // index in runs of each entry's first
}

func (b *batch) add(e archive.Entry, runs []qcow2.HostRun) {
	b.entries = append(b.entries, e)
	b.first = append(b.first, len(b.runs))
	b.runs = append(b.runs, runs...)
}

func (b *batch) full() bool { return len(b.entries) >= batchEntries || len(b.runs) >= batchRuns }

// of returns where entry i goes.
func (b *batch) of(i int) []qcow2.HostRun {
	if i+1 < len(b.first) {
		return b.runs[b.first[i]:b.first[i+1]]
	}
	return b.runs[b.first[i]:]
}

func (b *batch) reset() { b.entries, b.runs, b.first = b.entries[:0], b.runs[:0], b.first[:0] }

// source is one disk's content in the repository. Every chunk is used once, or for
// entries that lie together: nothing is kept.
type source struct {
	*view.Layout
	fetcher *archive.Fetcher
	lost    *chain.LossSet // nil: nothing may be
	sums    *Sums          // of what is written; nil: nobody wants them
}

// taker takes an entry's bytes, by its index, and whether they are its whole chunk.
type taker func(i int, data []byte, whole bool) error

// each calls fn for all entries of the disk.
func (s *source) each(ctx context.Context, fn func(archive.Entry) error) error {
	var pos int64
	for e, err := range s.Entries(ctx, 0, s.Size()) {
		if err != nil {
			return s.damage(err, pos, s.Size())
		}
		pos = e.End()
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}

// fetch fetches the chunks of entries. fn gets each entry's index and bytes,
// from several goroutines at once.
func (s *source) fetch(ctx context.Context, entries []archive.Entry, fn taker) error {
	if s.lost != nil {
		return s.fetchWhatIsLeft(ctx, entries, fn)
	}
	err := s.fetcher.Slices(ctx, entries, fn)
	var in *archive.EntryError
	if errors.As(err, &in) {
		return s.damage(err, in.Entry.Offset, in.Entry.End())
	}
	return err
}

// damage is [damage] of this disk.
func (s *source) damage(err error, start, end int64) error { return damage(s.Name, err, start, end) }

// count reads the maps alone.
func (s *source) count(ctx context.Context) (a outfile.Amounts, err error) {
	err = s.each(ctx, func(e archive.Entry) error {
		a.Add(e.Length, e.Zero)
		return nil
	})
	return a, err
}

// copyTo writes the disk's content.
func (s *source) copyTo(ctx context.Context, out *outfile.Output, limit *rate.Limiter, p *progress) error {
	var b batch
	flush := func() error {
		defer b.reset()
		parts := s.sums.begin(len(b.entries))
		err := s.fetch(ctx, b.entries, func(i int, data []byte, _ bool) error {
			if err := wait(ctx, limit, len(data)); err != nil {
				return err
			}
			s.sums.take(parts, i, data)
			e := &b.entries[i]
			for _, run := range b.of(i) {
				from := run.Guest - e.Offset
				if err := out.Write(data[from:from+run.Length], run.Host); err != nil {
					return err
				}
			}
			p.add(e.Length)
			return nil
		})
		if err == nil {
			s.sums.add(b.entries, parts)
		}
		return err
	}
	err := s.each(ctx, func(e archive.Entry) error {
		if e.Zero {
			if err := out.Zero(ctx, e.Offset, e.End()); err != nil {
				return s.damage(err, e.Offset, e.End())
			}
			if out.Device {
				p.add(e.Length)
			}
			return nil
		}
		runs, err := out.At(e.Offset, e.End())
		if err != nil {
			return &chain.DiskError{Disk: s.Name, Err: err}
		}
		b.add(e, runs)
		if b.full() {
			return flush()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// wait lets n bytes pass through a limiter, which may be nil.
func wait(ctx context.Context, limit *rate.Limiter, n int) error {
	if limit == nil {
		return nil
	}
	for n > 0 {
		part := min(n, max(limit.Burst(), 1))
		if err := limit.WaitN(ctx, part); err != nil {
			return err
		}
		n -= part
	}
	return nil
}
