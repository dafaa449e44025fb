// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"context"
	"io"
	"iter"
	"sync"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// crashing is a store that is gone, for who uses it, from some write on: as if the
// program had been killed then. The write itself is done, or it is not.
type crashing struct {
	objstore.Store
	mu    sync.Mutex
	after int // so many writes are done
	done  bool
	ended bool
}

func (c *crashing) alive() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return errOutage
	}
	return nil
}

// end ends it now.
func (c *crashing) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
}

// write does one write, or does not.
func (c *crashing) write(do func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return errOutage
	}
	c.after--
	if c.after >= 0 {
		return do()
	}
	c.ended = true
	if c.done {
		_ = do()
	}
	return errOutage
}

func (c *crashing) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	return c.write(func() error { return c.Store.Put(ctx, key, body, o) })
}

func (c *crashing) Delete(ctx context.Context, key string) error {
	return c.write(func() error { return c.Store.Delete(ctx, key) })
}

func (c *crashing) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := c.alive(); err != nil {
		return nil, err
	}
	return c.Store.Get(ctx, key, offset, length)
}

func (c *crashing) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if err := c.alive(); err != nil {
		return objstore.Info{}, err
	}
	return c.Store.Stat(ctx, key)
}

func (c *crashing) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		for info, err := range c.Store.List(ctx, prefix) {
			if aerr := c.alive(); aerr != nil {
				yield(objstore.Info{}, aerr)
				return
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// TestCrash: a prune that repacks and merges, and is killed at any of its writes, harms
// no checkpoint, and the next one completes it: as if there had been no crash.
func TestCrash(t *testing.T) {
	t.Parallel()
	w := newSmallWorld(t, 3, 5, 600<<10)
	w.forget(t, w.Repo, 0, 1, 3)
	want := w.readBytesAfter(t, Options{packSize: 64 << 10})
	for _, done := range []bool{false, true} {
		for n := 0; ; n++ {
			crash := &crashing{Store: copyStore(t, w.Store), after: n, done: done}
			_, err := Run(t.Context(), w.open(t, crash), Options{packSize: 64 << 10, retry: time.Microsecond})
			if !crash.ended {
				if err != nil {
					t.Fatal(err)
				}
				if n < 15 {
					t.Fatalf("only %d writes", n)
				}
				break
			}
			if err == nil && !done {
				t.Fatalf("write %d failed, and nobody said so", n)
			}
			w.verify(t, crash.Store)
			repo := w.open(t, crash.Store)
			allHaveEnded(t, repo)
			if result := prune(t, repo, Options{packSize: 64 << 10}); len(result.Waiting) > 0 {
				t.Fatalf("crash at %d: waiting for %+v", n, result.Waiting)
			}
			w.verify(t, crash.Store)
			if got := packBytes(objects(t, crash.Store)); got != want {
				t.Fatalf("crash at %d: packs have %d bytes, want %d", n, got, want)
			}
		}
	}
}

// readBytesAfter is what packs have after a prune without a crash.
func (w *world) readBytesAfter(t *testing.T, o Options) int64 {
	t.Helper()
	store := copyStore(t, w.Store)
	prune(t, w.open(t, store), o)
	return packBytes(objects(t, store))
}

// allHaveEnded makes the marks and leases of this process those of one that has ended.
func allHaveEnded(t *testing.T, repo *chain.Repository) {
	t.Helper()
	m, err := repo.Mark(t.Context())
	if err == nil && m.Standing() {
		if _, err := repo.ChangeMark(t.Context(), m, func(m *chain.Mark) { m.ProcessStart++ }); err != nil {
			t.Fatal(err)
		}
	}
	leases, unusable, err := repo.Leases(t.Context())
	if err != nil || len(unusable) > 0 {
		t.Fatal(err, unusable)
	}
	for _, l := range leases {
		l.ProcessStart++
		if err := repo.PutLease(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
}
