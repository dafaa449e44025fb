// SPDX-License-Identifier: Apache-2.0

package retry_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/retry"
)

// ailing fails for a time, and one key for ever.
type ailing struct {
	objstore.Store
	until time.Time
	ill   atomic.Int64 // how often the key was asked for
}

func (a *ailing) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if key == "ill" {
		a.ill.Add(1)
	}
	if key == "ill" || time.Now().Before(a.until) {
		return objstore.Info{}, syscall.ECONNRESET
	}
	return a.Store.Stat(ctx, key)
}

// Who waits long after an outage need not wait on when another has seen that it is over. What fails
// alone is not asked for whenever another succeeds, but once.
func TestRetryOutageEndsForAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &ailing{Store: objstore.NewMem(), until: time.Now().Add(20 * time.Second)}
		if err := a.Put(t.Context(), "k", strings.NewReader("x"), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		s := retry.New(a, retry.Options{Patience: time.Hour, FirstPatience: time.Hour, FirstDelay: 15 * time.Second, MaxDelay: time.Hour})
		stat := func(key string) {
			if _, err := s.Stat(t.Context(), key); err != nil && key == "k" {
				t.Error(err)
			}
		}
		ended := make([]time.Time, 8)
		var all sync.WaitGroup
		for i := range ended {
			all.Go(func() {
				stat("k")
				ended[i] = time.Now()
			})
		}
		var alone sync.WaitGroup
		alone.Go(func() { stat("ill") })
		all.Wait()
		first, last := ended[0], ended[0]
		for _, at := range ended {
			if at.Before(first) {
				first = at
			}
			if at.After(last) {
				last = at
			}
		}
		if first.Before(a.until) || last.After(first) {
			t.Errorf("it was over at %s, and seen %s later by the first, and %s by the last", a.until, first.Sub(a.until), last.Sub(a.until))
		}
		for range 1000 {
			stat("k")
			time.Sleep(time.Millisecond)
		}
		if n := a.ill.Load(); n < 2 || n > 4 {
			t.Errorf("what fails alone was asked for %d times", n)
		}
		alone.Wait()
	})
}
