// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"bytes"
	"context"
	"iter"
	"math/rand/v2"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/zero"
)

// archives are the archived states of disks. Each is opened once, since every
// check of trust asks for the same few.
type archives struct {
	repo   *chain.Repository
	fetch  *archive.Fetcher
	opened map[*chain.Disk]*archived
	kept   keptChunks
	seed   uint64 // of the samples that are compared: the same in each plan
}

func newArchives(repo *chain.Repository) *archives {
	return &archives{
		repo:   repo,
		fetch:  archive.NewFetcher(repo.Store, archive.FetcherOptions{}),
		opened: make(map[*chain.Disk]*archived),
		seed:   rand.Uint64(),
	}
}

// open opens an archived state. One of which a map or a pack is missing or
// damaged is an [archive.DamageError].
func (s *archives) open(ctx context.Context, cd *chain.Disk) (*archived, error) {
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

// State is open, for [trust.Archive].
func (s *archives) State(ctx context.Context, cd *chain.Disk) (trust.State, error) {
	a, err := s.open(ctx, cd)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// Bitmap opens a bitmap that a manifest recorded, for [trust.Archive].
func (s *archives) Bitmap(ctx context.Context, rec *chain.BitmapRecord) (bitmapstore.Runs, error) {
	return archive.OpenBitmap(ctx, s.repo.Store, rec.Object, rec.Header())
}

// Delta is what a state's delta covers, for [trust.Archive]; nil: the state was
// stored whole.
func (s *archives) Delta(ctx context.Context, cd *chain.Disk) (bitmapstore.Runs, error) {
	m, err := archive.OpenMap(ctx, s.repo.Store, cd.Maps[0], 0)
	if err != nil || m.Full() {
		return nil, err
	}
	return entryRuns(m.Entries(ctx, 0, m.Size()), func(archive.Entry) bool { return true }), nil
}

// archived is one archived state of a disk, readable like the disk itself.
type archived struct {
	maps  []*archive.Map
	fetch *archive.Fetcher
	kept  *keptChunks
	size  int64
}

// entries yields what the state holds in [start, end), without gaps; what lies
// beyond its size reads as zeros.
func (a *archived) entries(ctx context.Context, start, end int64) iter.Seq2[archive.Entry, error] {
	return func(yield func(archive.Entry, error) bool) {
		inside := min(end, a.size)
		if start < inside {
			for e, err := range archive.Replay(ctx, a.maps, start, inside) {
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
		if behind := max(start, inside); behind < end {
			yield(archive.Entry{Offset: behind, Length: end - behind, Zero: true}, nil)
		}
	}
}

// Data is where the state holds data in [0, size).
func (a *archived) Data(ctx context.Context, size int64) bitmapstore.Runs {
	return entryRuns(a.entries(ctx, 0, size), func(e archive.Entry) bool { return !e.Zero })
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

// Compare reports whether a disk reads in a range as the state does, and whether
// both are all zeros there.
func (a *archived) Compare(ctx context.Context, disk trust.Reader, run bitmapstore.Run) (same, zeros bool, err error) {
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
			if err := disk.ReadAt(ctx, now, off); err != nil {
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
