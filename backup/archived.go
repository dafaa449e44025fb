// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/zero"
	"github.com/imgbackup/imgbackup/view"
)

// archives are the archived states of disks. Each is opened once, since every
// check of trust asks for the same few. They must be closed.
type archives struct {
	repo  *chain.Repository
	fetch *archive.Fetcher
	keys  *crypt.Keys    // of the repository; nil: it is plain
	parts *archive.Parts // nil: chunks can be read
	seed  uint64         // of the samples that are compared: the same in each plan

	asking  sync.WaitGroup // what is asked for ahead
	mu      sync.Mutex     // guards what is below
	opened  map[*chain.Disk]*asked[*archived]
	bitmaps map[chain.BitmapRecord]*asked[bitmapstore.Runs]
	reader  *view.Reader // nil: nothing has been opened
}

// asked is something that the repository was asked for once.
type asked[T any] struct {
	done chan struct{} // closed when it was answered
	v    T
	err  error
}

// askOnce answers as the first who asked was answered, unless that was an error.
func askOnce[K comparable, T any](ctx context.Context, mu *sync.Mutex, all map[K]*asked[T], key K, ask func() (T, error)) (T, error) {
	for {
		mu.Lock()
		a := all[key]
		if a == nil {
			a = &asked[T]{done: make(chan struct{})}
			all[key] = a
			mu.Unlock()
			if a.v, a.err = ask(); a.err != nil {
				mu.Lock()
				delete(all, key)
				mu.Unlock()
			}
			close(a.done)
			return a.v, a.err
		}
		mu.Unlock()
		select {
		case <-a.done:
			if a.err == nil {
				return a.v, nil
			}
		case <-ctx.Done():
			var none T // who was asked may answer at this moment
			return none, context.Cause(ctx)
		}
	}
}

func newArchives(repo *chain.Repository) *archives {
	return &archives{
		repo:   repo,
		fetch:  archive.NewFetcher(repo.Store, archive.FetcherOptions{Memory: repo.Memory}),
		keys:   archive.KeysOf(repo.Store),
		parts:  archive.NewParts(repo.Store),
		seed:   rand.Uint64(),
		opened: make(map[*chain.Disk]*asked[*archived]), bitmaps: make(map[chain.BitmapRecord]*asked[bitmapstore.Runs]),
	}
}

// ahead asks for something beside what goes on; who asks for the same waits for the answer.
func (s *archives) ahead(ask func()) { s.asking.Go(ask) }

// maxKept bounds the archived chunks that are kept, bytes. Plans are made twice, with
// the same samples, and a store may be far away.
const maxKept = 40 << 20

// open opens an archived state. One of which a map or a pack is missing or
// damaged is an [archive.DamageError].
func (s *archives) open(ctx context.Context, cd *chain.Disk) (*archived, error) {
	return askOnce(ctx, &s.mu, s.opened, cd, func() (*archived, error) {
		d, err := s.look(ctx, cd)
		if err != nil {
			return nil, err
		}
		// What builds on this state names its packs again, so they have to be there.
		if err := archive.StatPacks(ctx, s.repo.Store, d.Maps()...); archive.IsDamage(err) {
			return nil, &trust.NamedError{Err: err}
		} else if err != nil {
			return nil, err
		}
		return &archived{Disk: d, parts: s.parts}, nil
	})
}

// look opens an archived state of which not all need be there.
func (s *archives) look(ctx context.Context, cd *chain.Disk) (*view.Disk, error) {
	s.mu.Lock()
	if s.reader == nil {
		// It serves all attempts, each of which has a context of its own.
		s.reader = view.NewReader(context.WithoutCancel(ctx), s.repo, view.Options{Cache: s.repo.Memory.Part(maxKept, maxKept/4), NoAhead: true})
	}
	reader := s.reader
	s.mu.Unlock()
	return reader.Open(ctx, cd)
}

// drop gives back the memory of what was compared.
func (s *archives) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reader != nil {
		s.reader.Drop()
	}
}

// renew forgets bitmaps that were asked for in a context that has ended.
func (s *archives) renew() {
	s.asking.Wait()
	clear(s.bitmaps)
}

// close ends what is at work.
func (s *archives) close() {
	s.asking.Wait()
	if s.reader != nil {
		s.reader.Close()
	}
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
	return askOnce(ctx, &s.mu, s.bitmaps, *rec, func() (bitmapstore.Runs, error) {
		return archive.OpenBitmap(ctx, s.repo.Store, rec.Object, rec.Header())
	})
}

// Delta is what a state's delta covers, for [trust.Archive]; nil: the state was
// stored whole.
func (s *archives) Delta(ctx context.Context, cd *chain.Disk) (bitmapstore.Runs, error) {
	m, err := archive.OpenMap(ctx, s.repo.Store, cd.Maps[0], 0)
	if err != nil || m.Full() {
		return nil, err
	}
	return bitmapstore.Join(func(yield func(bitmapstore.Run, error) bool) {
		for e, err := range m.Entries(ctx, 0, m.Size()) {
			if !yield(bitmapstore.Run{Start: e.Offset, End: e.End()}, err) {
				return
			}
		}
	}), nil
}

// archived is one archived state of a disk, readable like the disk itself.
type archived struct {
	*view.Disk
	parts *archive.Parts // nil: it can be read
}

// Prefetch fetches what Compare will need.
func (a *archived) Prefetch(ctx context.Context, runs []bitmapstore.Run) error {
	if a.parts != nil {
		return nil
	}
	return a.Disk.Prefetch(ctx, runs)
}

// Data is where the state holds data in [0, size).
func (a *archived) Data(ctx context.Context, size int64) bitmapstore.Runs {
	return a.Disk.Data(ctx, 0, size)
}

// Compare compares a disk with the state in a range, for [trust.State]. What lies beyond the
// state's size reads as zeros.
func (a *archived) Compare(ctx context.Context, disk trust.Reader, run bitmapstore.Run, counts func(bitmapstore.Run) (bool, error)) (trust.Comparison, error) {
	if a.parts != nil {
		return a.compareParts(ctx, disk, run, counts)
	}
	var differs trust.Comparison
	cell := min(run.Len(), archive.GridSize)
	then, now := make([]byte, cell), make([]byte, cell)
	zeros := true
	for pos := run.Start; pos < run.End; {
		n := min(archive.GridSize-pos%archive.GridSize, run.End-pos, cell)
		then, now := then[:n], now[:n]
		known := max(0, min(n, a.Size()-pos))
		if err := a.ReadAt(ctx, then[:known], pos); err != nil {
			return differs, err
		}
		clear(then[known:])
		if err := disk.ReadAt(ctx, now, pos); err != nil {
			return differs, err
		}
		if !bytes.Equal(then, now) {
			return differs, nil
		}
		zeros = zeros && zero.Is(now)
		pos += n
	}
	return trust.Comparison{Same: true, Zeros: zeros}, nil
}

var zeroBlock [64 << 10]byte
