// SPDX-License-Identifier: Apache-2.0

package objstoretest

import (
	"context"
	"io"
	"iter"
	"strings"
	"sync"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
)

// RoundTrip is how long a store that is [Far] takes to answer.
const RoundTrip = time.Second

// page is how many objects one answer to a listing holds.
const page = 1000

// Far is a store whose every answer takes one RoundTrip, however many are asked
// for at once. In a bubble of testing/synctest, time passes only when nothing else
// can be done: the number of RoundTrips that work takes is that of the requests
// that wait for one another, exactly.
type Far struct {
	objstore.Store
	began time.Time

	mu    sync.Mutex
	first map[string]time.Duration
	gets  map[string]int
}

// NewFar begins to count.
func NewFar(s objstore.Store) *Far {
	return &Far{Store: s, began: time.Now(), first: make(map[string]time.Duration), gets: make(map[string]int)}
}

// RoundTrips returns after how many of them the first object under a prefix, such
// as "packs", had been read; 0 if none has.
func (f *Far) RoundTrips(prefix string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int(f.first[prefix] / RoundTrip)
}

// Elapsed returns how many of them went by until now.
func (f *Far) Elapsed() int { return int(time.Since(f.began) / RoundTrip) }

// Gets returns how many reads there were of objects under a prefix.
func (f *Far) Gets(prefix string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gets[prefix]
}

// answer waits for one round trip.
func (f *Far) answer(ctx context.Context) error {
	timer := time.NewTimer(RoundTrip)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Put implements objstore.Store.
func (f *Far) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if err := f.answer(ctx); err != nil {
		return err
	}
	return f.Store.Put(ctx, key, body, o)
}

// Get implements objstore.Store.
func (f *Far) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := f.answer(ctx); err != nil {
		return nil, err
	}
	prefix, _, _ := strings.Cut(key, "/")
	f.mu.Lock()
	f.gets[prefix]++
	if _, ok := f.first[prefix]; !ok {
		f.first[prefix] = time.Since(f.began)
	}
	f.mu.Unlock()
	return f.Store.Get(ctx, key, offset, length)
}

// Stat implements objstore.Store.
func (f *Far) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if err := f.answer(ctx); err != nil {
		return objstore.Info{}, err
	}
	return f.Store.Stat(ctx, key)
}

// List implements objstore.Store.
func (f *Far) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		n := 0
		if err := f.answer(ctx); err != nil {
			yield(objstore.Info{}, err)
			return
		}
		for info, err := range f.Store.List(ctx, prefix) {
			if n++; err == nil && n%page == 1 && n > 1 {
				err = f.answer(ctx)
			}
			if !yield(info, err) || err != nil {
				return
			}
		}
	}
}

// Delete implements objstore.Store.
func (f *Far) Delete(ctx context.Context, key string) error {
	if err := f.answer(ctx); err != nil {
		return err
	}
	return f.Store.Delete(ctx, key)
}
