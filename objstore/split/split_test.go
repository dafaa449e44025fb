// SPDX-License-Identifier: Apache-2.0

package split

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imgbackup/imgbackup/internal/memory"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

func TestContract(t *testing.T) {
	t.Parallel()
	objstoretest.Run(t, func(*testing.T) objstore.Store { return newStore(objstore.NewMem(), sizes{2, 3, 5}, 3, 4) })
}

// far is a store whose every answer takes a second, and fails where fail says so.
type far struct {
	objstore.Store
	connections int
	fail        func(offset int64) error

	mu             sync.Mutex
	now, most, all int
	failed         int
}

func (f *far) Connections() int { return f.connections }

func (f *far) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	f.mu.Lock()
	f.now++
	f.all++
	f.most = max(f.most, f.now)
	f.mu.Unlock()
	defer f.end()
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if f.fail != nil {
		if err := f.fail(offset); err != nil {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.failed++
			return nil, err
		}
	}
	return f.Store.Get(ctx, key, offset, length)
}

func (f *far) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now--
}

// filled is a store with objects of some length, and what is in them.
func filled(t *testing.T, n, length int) (objstore.Store, [][]byte) {
	t.Helper()
	s, all := objstore.NewMem(), make([][]byte, n)
	for i := range all {
		all[i] = make([]byte, length)
		rand.NewChaCha8([32]byte{byte(i)}).Read(all[i])
		if err := s.Put(t.Context(), fmt.Sprintf("o/%d", i), bytes.NewReader(all[i]), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return s, all
}

// readAll reads one of those objects.
func readAll(t *testing.T, s objstore.Store, i int, want []byte) {
	r, err := s.Get(t.Context(), fmt.Sprintf("o/%d", i), 0, int64(len(want)))
	if err != nil {
		t.Error(err)
		return
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) || r.Close() != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// rested fails unless a store has all of its connections and memory again.
func rested(t *testing.T, s *store, connections int) {
	t.Helper()
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	if s.pool.idle != connections || s.pool.room != s.pool.held || s.pool.free != nil || len(s.pool.readers) != 0 || len(s.pool.waiting) != 0 || len(s.pool.coming) != 0 || s.pool.places != places(connections, s.pool.held) || s.pool.left != 0 {
		t.Errorf("%d connections are idle, %d of %d pieces left, %d in store, %d readers, %d wait, %d places, %d bytes",
			s.pool.idle, s.pool.room, s.pool.held, len(s.pool.free), len(s.pool.readers), len(s.pool.waiting)+len(s.pool.coming), s.pool.places, s.pool.left)
	}
}

// One reader alone gets all connections, many share them, and none is idle while there is
// anything to be fetched; there are never more.
func TestConnectionsAreUsed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		objects, pieces, connections, held int
		seconds                            int
	}{
		{1, 16, 4, 6, 4},
		{1, 1, 4, 6, 1},
		{4, 8, 4, 6, 8},
		{7, 3, 4, 6, 6}, // 21 pieces, 4 at once
		{3, 8, 8, 2, 7}, // memory bounds it: 3 read on, 2 fetch ahead, in bursts
	} {
		synctest.Test(t, func(t *testing.T) {
			mem, want := filled(t, c.objects, c.pieces*10-1)
			f := &far{Store: mem}
			s := newStore(f, sizes{10, 10, 10}, c.connections, c.held)
			began := time.Now()
			var readers sync.WaitGroup
			for i := range want {
				readers.Go(func() { readAll(t, s, i, want[i]) })
			}
			readers.Wait()
			if took := int(time.Since(began) / time.Second); took != c.seconds || f.most > c.connections {
				t.Errorf("%+v: %d seconds, %d at once", c, took, f.most)
			}
			rested(t, s, c.connections)
		})
	}
}

// What is read as it comes is asked for in the largest pieces; they are small only where few
// bytes are left.
func TestPiecesGetSmaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mem, want := filled(t, 4, 1000)
		f := &far{Store: mem}
		s := newStore(f, sizes{least: 10, held: 50, read: 100}, 4, 6)
		var readers sync.WaitGroup
		for i := range want {
			readers.Go(func() { readAll(t, s, i, want[i]) })
		}
		readers.Wait()
		if f.all > 100 || f.all < 45 { // of 10 bytes, as the last ones, it would be 400
			t.Errorf("%d requests", f.all)
		}
		rested(t, s, 4)
	})
}

// Of many readers those who came first end first, one after the other, and not all together.
func TestFirstEndFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const objects, connections = 16, 8
		mem, want := filled(t, objects, 80) // 8 seconds of a connection
		s := newStore(&far{Store: mem}, sizes{10, 10, 10}, connections, 16)
		began, ended := time.Now(), make(chan time.Duration, objects)
		var readers sync.WaitGroup
		for i := range want {
			readers.Go(func() {
				readAll(t, s, i, want[i])
				ended <- time.Since(began)
			})
			synctest.Wait() // so that they come in this order
		}
		readers.Wait()
		half := time.Duration(0)
		for range objects / 2 {
			half = <-ended
		}
		if all := time.Since(began); half > all*5/8 || all != objects*time.Second {
			t.Errorf("half of them had ended after %v of %v", half, all)
		}
		rested(t, s, connections)
	})
}

// Random readers, of which some fail, are closed early or are given up: the others get
// their bytes, and nothing is left.
func TestRandomReaders(t *testing.T) {
	t.Parallel()
	bad, failed := errors.New("an outage"), 0
	defer func() {
		if failed == 0 {
			t.Error("nothing failed")
		}
	}()
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			mem, want := filled(t, 8, 500)
			f := &far{Store: mem, fail: func(offset int64) error {
				if offset/10 == 13 {
					return bad
				}
				return nil
			}}
			s := newStore(f, sizes{10, 15, 25}, 3, 5)
			var readers sync.WaitGroup
			for i := range want {
				readers.Go(func() {
					r := rand.New(rand.NewPCG(seed, uint64(i)))
					for range 3 {
						readSome(t, r, s, fmt.Sprintf("o/%d", i), want[i], bad)
					}
				})
			}
			readers.Wait()
			rested(t, s, 3)
			failed += f.failed
		})
	}
}

func readSome(t *testing.T, r *rand.Rand, s objstore.Store, key string, want []byte, bad error) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+r.IntN(60))*time.Second+time.Millisecond)
	defer cancel()
	offset := r.Int64N(int64(len(want)))
	length := 1 + r.Int64N(int64(len(want))-offset)
	in, err := s.Get(ctx, key, offset, length)
	if err != nil {
		if !errors.Is(err, ctx.Err()) && !errors.Is(err, bad) {
			t.Error(err)
		}
		return
	}
	upTo := length
	if r.IntN(3) == 0 {
		upTo = r.Int64N(length)
	}
	got, err := io.ReadAll(io.LimitReader(in, upTo))
	if !bytes.Equal(got, want[offset:offset+int64(len(got))]) {
		t.Error("other bytes")
	}
	if err == nil && int64(len(got)) < upTo || err != nil && !errors.Is(err, bad) && !errors.Is(err, ctx.Err()) {
		t.Errorf("%d of %d bytes: %v", len(got), upTo, err)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
}

// What is gone ends where it does: it is for the caller to ask why.
func TestRemovedMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mem, want := filled(t, 1, 100)
		s := newStore(&far{Store: mem, fail: func(offset int64) error {
			if offset >= 50 {
				return fmt.Errorf("gone: %w", objstore.ErrNotFound)
			}
			return nil
		}}, sizes{10, 10, 10}, 1, 2)
		r, err := s.Get(t.Context(), "o/0", 0, 100)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != io.ErrUnexpectedEOF || !bytes.Equal(got, want[0][:50]) || r.Close() != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if _, err := s.Get(t.Context(), "absent", 0, 100); !errors.Is(err, objstore.ErrNotFound) {
			t.Error(err)
		}
		rested(t, s, 1)
	})
}

// Only where it is of use is a store read otherwise, and memory is bounded in any case.
func TestNew(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		connections  int
		budget, size int64 // MiB, KiB; size 0: as it is
	}{
		{0, 256, 0}, {1, 256, 0}, {16, 256, 4096}, {2, 256, 4096}, {32, 256, 2048}, {256, 256, 1024}, {16, 96, 1024}, {16, 10, 1024},
	} {
		f := &far{connections: c.connections}
		b := memory.Of(c.budget<<20, "")
		s, is := New(f, b).(*store)
		held := b.Part(usualHeld, leastHeld)
		if !is && c.size != 0 || is && (s.pool.sizes.held != c.size<<10 || s.pool.sizes.held*int64(s.pool.held) > held || s.pool.idle != c.connections) {
			t.Errorf("%+v: %+v", c, s)
		}
		if is && objstore.Connections(s) != c.connections {
			t.Error("its abilities are hidden")
		}
	}
}
