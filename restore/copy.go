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
)

// A window is the part of a disk's content whose chunks are fetched together,
// sorted by pack. Its limits bound memory (some 20 MiB) and are far beyond what
// keeps all workers busy.
const (
	windowEntries = 32 << 10
	windowRuns    = 256 << 10
)

// window collects entries with data and where their bytes go.
type window struct {
	entries []archive.Entry
	runs    []qcow2.HostRun
	first   []int // index in runs of each entry's first
}

func (w *window) add(e archive.Entry, runs []qcow2.HostRun) {
	w.entries = append(w.entries, e)
	w.first = append(w.first, len(w.runs))
	w.runs = append(w.runs, runs...)
}

func (w *window) full() bool { return len(w.entries) >= windowEntries || len(w.runs) >= windowRuns }

// of returns where entry i goes.
func (w *window) of(i int) []qcow2.HostRun {
	if i+1 < len(w.first) {
		return w.runs[w.first[i]:w.first[i+1]]
	}
	return w.runs[w.first[i]:]
}

func (w *window) reset() { w.entries, w.runs, w.first = w.entries[:0], w.runs[:0], w.first[:0] }

// source is one disk's content in the repository.
type source struct {
	disk    string
	size    int64
	maps    []*archive.Map
	fetcher *archive.Fetcher
}

// each calls fn for all runs of the disk, which cover it without gaps.
func (s *source) each(ctx context.Context, fn func(archive.Entry) error) error {
	var pos int64
	for e, err := range archive.Replay(ctx, s.maps, 0, s.size) {
		if err != nil {
			return s.damage(err, pos, s.size)
		}
		pos = e.End()
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}

// batch fetches the chunks of entries. fn gets each entry's index and bytes,
// from several goroutines at once.
func (s *source) batch(ctx context.Context, entries []archive.Entry, fn func(i int, data []byte) error) error {
	err := s.fetcher.Slices(ctx, entries, fn)
	var in *archive.EntryError
	if errors.As(err, &in) {
		return s.damage(err, in.Entry.Offset, in.Entry.End())
	}
	return err
}

// damage is [damage] of this disk.
func (s *source) damage(err error, start, end int64) error { return damage(s.disk, err, start, end) }

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
	var w window
	flush := func() error {
		defer w.reset()
		return s.batch(ctx, w.entries, func(i int, data []byte) error {
			if err := wait(ctx, limit, len(data)); err != nil {
				return err
			}
			e := &w.entries[i]
			for _, run := range w.of(i) {
				from := run.Guest - e.Offset
				if err := out.Write(data[from:from+run.Length], run.Host); err != nil {
					return err
				}
			}
			p.add(e.Length)
			return nil
		})
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
			return &chain.DiskError{Disk: s.disk, Err: err}
		}
		w.add(e, runs)
		if w.full() {
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
