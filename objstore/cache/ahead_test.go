// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/cache"
)

// A listing that was begun before it was known which repository stands there is the store's, of
// whatever length, and is used once; it is not used for another repository, or another prefix.
// Where keys may be a secret nothing is asked before.
func TestAhead(t *testing.T) {
	t.Parallel()
	for _, n := range []int{3, 4000} {
		mem := objstore.NewMem()
		for i := range n {
			key := fmt.Sprintf("l/%06d", i)
			if err := mem.Put(t.Context(), key, strings.NewReader(key), objstore.PutOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		var pages atomic.Int64
		boom := errors.New("boom")
		fails := false
		inner := &paged{mem, func(string) error {
			pages.Add(1)
			if fails {
				return boom
			}
			return nil
		}}
		d, err := cache.Open(filepath.Join(t.TempDir(), "cache"), limit)
		if err != nil {
			t.Fatal(err)
		}
		open := func(id string, plain bool, a *cache.Ahead) objstore.Store {
			return cache.New(inner, d, cache.Options{ID: id, Place: "place", Kind: kind, Plain: plain, Ahead: a})
		}
		ahead := func(ctx context.Context) *cache.Ahead { return d.Ahead(ctx, inner, "place", "l/") }
		// verify lists all of it; so many pages were asked for since it was begun.
		verify := func(what string, s objstore.Store, a *cache.Ahead, asked int) {
			t.Helper()
			got, err := keysOf(t.Context(), s, "l/")
			want, werr := keysOf(t.Context(), mem, "l/")
			if err != nil || werr != nil || !slices.Equal(got, want) {
				t.Errorf("%s: %d keys, want %d, %v, %v", what, len(got), len(want), err, werr)
			}
			a.Drop()
			if pages.Swap(0) != int64(asked) {
				t.Errorf("%s: not %d pages", what, asked)
			}
		}
		whole := (n + pageSize - 1) / pageSize
		if n > pageSize {
			whole++ // side by side
		}
		if a := ahead(t.Context()); a != nil {
			t.Error("what nobody remembers was asked ahead")
		}
		verify("the first", open("id", true, nil), nil, (n+pageSize-1)/pageSize)
		a := ahead(t.Context())
		s := open("id", true, a)
		verify("ahead", s, a, whole)
		verify("once more", s, nil, whole)
		a = ahead(t.Context())
		s = open("id", true, a)
		if keys, err := keysOf(t.Context(), s, "l/00000"); err != nil || len(keys) != min(n, 10) {
			t.Errorf("of another prefix: %v, %v", keys, err)
		}
		verify("after another prefix", s, a, whole+1)

		a = ahead(t.Context())
		a.Drop() // so that all that it asks for was asked for
		pages.Store(0)
		verify("another repository", open("other", true, a), a, (n+pageSize-1)/pageSize)

		ctx, cancel := context.WithCancelCause(t.Context())
		a = d.Ahead(ctx, inner, "place", "l/")
		s = open("other", true, a)
		cancel(boom)
		if _, err := keysOf(t.Context(), s, "l/"); !errors.Is(err, boom) {
			t.Errorf("cut off: %v", err)
		}
		a.Drop()
		fails = true
		a = ahead(t.Context())
		if _, err := keysOf(t.Context(), open("other", true, a), "l/"); !errors.Is(err, boom) {
			t.Errorf("an outage: %v", err)
		}
		a.Drop()

		open("third", false, nil) // has taken the place of both
		if a := ahead(t.Context()); a != nil {
			t.Error("what may be a secret was asked ahead")
		}
	}
}
