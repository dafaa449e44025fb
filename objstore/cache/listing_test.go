// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/cache"
)

// paged is a store that lists behind keys, in pages; each page is told.
type paged struct {
	objstore.Store
	page func(after string) error // before one is given out
}

const pageSize = 1000

func (p *paged) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	return p.ListAfter(ctx, prefix, "")
}

func (p *paged) ListAfter(ctx context.Context, prefix, after string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		n := 0
		for info, err := range p.Store.List(ctx, prefix) {
			if err == nil && info.Key <= after {
				continue
			}
			if n%pageSize == 0 && err == nil {
				err = p.page(info.Key)
			}
			if n++; !yield(info, err) || err != nil {
				return
			}
		}
	}
}

func remembering(t *testing.T, s objstore.Store, dir string) objstore.Store {
	t.Helper()
	d, err := cache.Open(filepath.Join(dir, "cache"), limit)
	if err != nil {
		t.Fatal(err)
	}
	return cache.New(s, d, cache.Options{ID: "id", Place: "place", Kind: kind})
}

// keysOf lists, and says what ended it.
func keysOf(ctx context.Context, s objstore.Store, prefix string) (keys []string, err error) {
	for info, err := range s.List(ctx, prefix) {
		if err != nil {
			return keys, err
		}
		keys = append(keys, info.Key)
	}
	return keys, nil
}

// A long listing is asked for page by page the first time, and with all pages at once from then on,
// whatever has come and gone in between; what it shows is what the store has.
func TestListingSideBySide(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	mem := objstore.NewMem()
	random := rand.New(rand.NewPCG(1, 2))
	add := func(n int) {
		for range n {
			key := fmt.Sprintf("l/%06d", random.IntN(1_000_000))
			if err := mem.Put(ctx, key, strings.NewReader(key), objstore.PutOptions{}); err != nil && !errors.Is(err, objstore.ErrExists) {
				t.Fatal(err)
			}
		}
	}
	var mu sync.Mutex
	pages, together := 0, make(chan struct{})
	var wait int // so many pages are given out together
	inner := &paged{mem, func(string) error {
		mu.Lock()
		pages++
		met := together
		if pages == wait {
			close(together)
		}
		mu.Unlock()
		if wait > 0 {
			<-met
		}
		return nil
	}}
	s := remembering(t, inner, t.TempDir())
	verify := func(atOnce, atMost int) {
		t.Helper()
		pages, together, wait = 0, make(chan struct{}), atOnce
		got, err := keysOf(ctx, s, "l/")
		if err != nil || pages > atMost {
			t.Fatalf("%d pages, %v", pages, err)
		}
		want, err := keysOf(ctx, mem, "l/")
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%d keys, want %d, %v", len(got), len(want), err)
		}
	}
	verify(0, 1)
	add(2600)
	verify(0, 3)
	verify(3, 3)
	add(50) // which makes none of the pieces longer than a page
	verify(3, 3)
	add(2000)
	verify(3, 8)
	verify(5, 6)
	for info, err := range mem.List(ctx, "l/") {
		if err == nil && random.IntN(3) > 0 {
			err = mem.Delete(ctx, info.Key)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	verify(0, 6)
	verify(2, 2)
}

// An error, or an end, of any piece is that of the listing, and what is remembered is never believed.
func TestListingCutShort(t *testing.T) {
	t.Parallel()
	mem := objstore.NewMem()
	for i := range 4000 {
		key := fmt.Sprintf("l/%06d", i)
		if err := mem.Put(t.Context(), key, strings.NewReader(key), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	boom := errors.New("boom")
	var fails func(after string) error
	dir := t.TempDir()
	s := remembering(t, &paged{mem, func(after string) error { return fails(after) }}, dir)
	fails = func(string) error { return nil }
	want, err := keysOf(t.Context(), s, "l/")
	if err != nil || len(want) != 4000 {
		t.Fatal(len(want), err)
	}
	for _, at := range []string{"l/000000", "l/000900", "l/001800", "l/003600"} {
		hit := false
		var mu sync.Mutex
		fails = func(after string) error {
			mu.Lock()
			defer mu.Unlock()
			if after == at {
				hit = true
				return boom
			}
			return nil
		}
		if got, err := keysOf(t.Context(), s, "l/"); !errors.Is(err, boom) || !slices.Equal(got, want[:len(got)]) || len(got) > 4000 || !hit {
			t.Errorf("at %s: %d keys, %v", at, len(got), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		fails = func(after string) error {
			if after == at {
				cancel()
				return context.Cause(ctx)
			}
			return nil
		}
		if _, err := keysOf(ctx, s, "l/"); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled at %s: %v", at, err)
		}
		cancel()
	}
	fails = func(string) error { return nil }
	for range s.List(t.Context(), "l/") {
		break // which ends all pieces
	}
	files, err := filepath.Glob(filepath.Join(dir, "cache", "id-*", "listings", "*"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	for _, lie := range []string{"", "\n", "x", "l/001000\nl/000500\n", "l/000001\nl/000002\nl/000003\n", "l/9\n", "other/1\n", strings.Repeat("l/", 100_000)} {
		if err := os.WriteFile(files[0], []byte(lie), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := keysOf(t.Context(), s, "l/"); err != nil || !slices.Equal(got, want) {
			t.Errorf("%.20q: %d keys, %v", lie, len(got), err)
		}
	}
}
