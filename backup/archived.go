// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"bytes"
	"context"
	"iter"
	"math/rand/v2"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/zero"
	"github.com/imgbackup/imgbackup/qcow2"
)

// archived is one archived state of a disk, readable like the disk itself.
type archived struct {
	maps  []*archive.Map
	fetch *archive.Fetcher
	kept  *keptChunks
	size  int64
}

// openState opens an archived state; it is kept for the rest of the session,
// since every check of trust asks for the same few. A state of which a map or a
// pack is missing or damaged is an [archive.DamageError].
func (s *session) openState(ctx context.Context, cd *chain.Disk) (*archived, error) {
	if a, ok := s.opened[cd]; ok {
		return a, nil
	}
	maps, err := chain.ReplayMaps(ctx, s.repo, cd)
	if err != nil {
		return nil, err
	}
	// What builds on this state names its packs again, so they have to be there.
	if err := archive.StatPacks(ctx, s.repo.Store, maps...); err != nil {
		return nil, err
	}
	a := &archived{maps: maps, fetch: s.fetch, kept: &s.kept, size: cd.Size}
	s.opened[cd] = a
	return a, nil
}

// entries yields what the state holds in [start, end), without gaps; what lies
// beyond its size reads as zeros.
func (a *archived) entries(ctx context.Context, start, end int64) iter.Seq2[archive.Entry, error] {
	return func(yield func(archive.Entry, error) bool) {
		if inside := min(end, a.size); start < inside {
			for e, err := range archive.Replay(ctx, a.maps, start, inside) {
				if !yield(e, err) || err != nil {
					return
				}
			}
			start = inside
		}
		if start < end {
			yield(archive.Entry{Offset: start, Length: end - start, Zero: true}, nil)
		}
	}
}

// runs is where the state's entries in [0, size) satisfy keep.
func (a *archived) runs(ctx context.Context, size int64, keep func(archive.Entry) bool) bitmapstore.Runs {
	return func(yield func(bitmapstore.Run, error) bool) {
		entryRuns(a.entries(ctx, 0, size), keep)(yield)
	}
}

// entryRuns joins the ranges of the entries that satisfy keep.
func entryRuns(entries iter.Seq2[archive.Entry, error], keep func(archive.Entry) bool) bitmapstore.Runs {
	return func(yield func(bitmapstore.Run, error) bool) {
		var run bitmapstore.Run
		for e, err := range entries {
			if err != nil {
				yield(bitmapstore.Run{}, err)
				return
			}
			if !keep(e) {
				continue
			}
			if run.End == e.Offset && run.End > run.Start {
				run.End += e.Length
				continue
			}
			if run.End > run.Start && !yield(run, nil) {
				return
			}
			run = bitmapstore.Run{Start: e.Offset, End: e.Offset + e.Length}
		}
		if run.End > run.Start {
			yield(run, nil)
		}
	}
}

// equals reports whether the image reads in a range as the state does.
func (a *archived) equals(ctx context.Context, c *qcow2.Image, run bitmapstore.Run) (bool, error) {
	same, _, err := a.compare(ctx, c, run)
	return same, err
}

// compare reports whether the image reads in a range as the state does, and
// whether both are all zeros there.
func (a *archived) compare(ctx context.Context, c *qcow2.Image, run bitmapstore.Run) (same, zeros bool, err error) {
	buf := make([]byte, min(run.Len(), archive.GridSize))
	chunk := make([]byte, 0, archive.GridSize)
	zeros = true
	for e, err := range a.entries(ctx, run.Start, run.End) {
		if err != nil {
			return false, false, err
		}
		then := []byte(nil)
		if !e.Zero {
			whole, err := a.chunk(ctx, e, chunk)
			if err != nil {
				return false, false, err
			}
			if then, err = e.In(whole); err != nil {
				return false, false, err
			}
			zeros = zeros && zero.Is(then)
		}
		for off := e.Offset; off < e.End(); {
			now := buf[:min(int64(len(buf)), e.End()-off)]
			if err := c.ReadAt(ctx, now, off); err != nil {
				return false, false, err
			}
			if e.Zero && !zero.Is(now) || !e.Zero && !bytes.Equal(now, then[off-e.Offset:][:len(now)]) {
				return false, false, nil
			}
			off += int64(len(now))
		}
	}
	return true, zeros, nil
}

var zeroBlock [64 << 10]byte

// sampleOf draws up to count runs at random, each cut to a random part of at
// most length bytes.
func sampleOf(set bitmapstore.Runs, count int, length int64, random *rand.Rand) ([]bitmapstore.Run, error) {
	var sample []bitmapstore.Run
	seen := 0
	for run, err := range set {
		if err != nil {
			return nil, err
		}
		// Long runs stand for as many draws as they have grid cells.
		for start := run.Start; start < run.End; {
			end := min(run.End, start/archive.GridSize*archive.GridSize+archive.GridSize)
			part := bitmapstore.Run{Start: start, End: end}
			seen++
			if len(sample) < count {
				sample = append(sample, part)
			} else if i := random.IntN(seen); i < count {
				sample[i] = part
			}
			start = end
		}
	}
	for i, run := range sample {
		if free := run.Len() - length; free > 0 {
			run.Start += random.Int64N(free + 1)
			sample[i] = bitmapstore.Run{Start: run.Start, End: run.Start + length}
		}
	}
	return sample, nil
}
