// SPDX-License-Identifier: Apache-2.0

package retry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
	"github.com/imgbackup/imgbackup/objstore/retry"
)

// quick are retries for tests.
var quick = retry.Options{
	Patience: 60 * time.Second, FirstPatience: 60 * time.Second,
	FirstDelay: time.Millisecond, MaxDelay: 20 * time.Millisecond,
}

func TestRetryContract(t *testing.T) {
	t.Parallel()
	objstoretest.Run(t, func(*testing.T) objstore.Store { return retry.New(objstore.NewMem(), quick) })
}

func TestRetryContractWithFaults(t *testing.T) {
	t.Parallel()
	outage := &net.OpError{Op: "read", Err: syscall.ECONNRESET}
	objstoretest.Run(t, func(t *testing.T) objstore.Store {
		// Which operations a test of the contract does differs: every one begins
		// with a failure.
		return retry.New(&flaky{Store: objstore.NewMem(), err: outage, failed: make(map[string]bool)}, quick)
	})
}

// flaky fails each different operation on each key the first time.
type flaky struct {
	objstore.Store
	err    error
	mu     sync.Mutex
	failed map[string]bool
}

func (f *flaky) fail(op, key string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed[op+" "+key] {
		return nil
	}
	f.failed[op+" "+key] = true
	return f.err
}

func (f *flaky) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if err := f.fail("put", key); err != nil {
		return err
	}
	return f.Store.Put(ctx, key, body, o)
}

func (f *flaky) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := f.fail("get", key); err != nil {
		return nil, err
	}
	return f.Store.Get(ctx, key, offset, length)
}

func (f *flaky) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if err := f.fail("stat", key); err != nil {
		return objstore.Info{}, err
	}
	return f.Store.Stat(ctx, key)
}

func (f *flaky) Delete(ctx context.Context, key string) error {
	if err := f.fail("delete", key); err != nil {
		return err
	}
	return f.Store.Delete(ctx, key)
}

func (f *flaky) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		n := 0
		for info, err := range f.Store.List(ctx, prefix) {
			if n++; n%400 == 3 {
				if err := f.fail("list", info.Key); err != nil {
					yield(objstore.Info{}, err)
					return
				}
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

func TestRetryStopsAtPermanent(t *testing.T) {
	t.Parallel()
	denied := objstore.MarkPermanent(errors.New("denied"))
	f := objstoretest.NewFaulty(t, objstore.NewMem(), objstoretest.Fault{Err: denied})
	for op, err := range objstoretest.Operations(t, retry.New(f, quick), "object") {
		if !errors.Is(err, denied) {
			t.Errorf("%s: %v", op, err)
		}
	}
	if n := f.Count(); n != 6 {
		t.Errorf("%d operations, want 6: each one once", n)
	}
}

// The answer to a create that was lost is that it exists.
func TestRetryLostCreate(t *testing.T) {
	t.Parallel()
	f := objstoretest.NewFaulty(t, objstore.NewMem(),
		objstoretest.Fault{Op: objstoretest.Put, Times: 1, Lost: true, Err: syscall.ECONNRESET})
	s := retry.New(f, quick)
	if err := s.Put(t.Context(), "a", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); !errors.Is(err, objstore.ErrExists) {
		t.Errorf("create: %v, want ErrExists", err)
	}
	if got, err := objstore.ReadAll(t.Context(), s, "a", 1); string(got) != "x" || err != nil {
		t.Errorf("read: %q, %v", got, err)
	}
}

// How long a store that does not answer is waited for, by the clock.
func TestRetryPatience(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		answered bool
		limit    time.Duration
	}{{false, 15 * time.Second}, {true, 5 * time.Minute}} {
		synctest.Test(t, func(t *testing.T) {
			mem := objstore.NewMem()
			down := objstoretest.NewFaulty(t, mem, objstoretest.Fault{Op: objstoretest.Put, Err: syscall.ECONNREFUSED})
			notes := 0
			s := retry.New(down, retry.Options{Notify: func(err error, wait time.Duration) {
				if notes++; !errors.Is(err, syscall.ECONNREFUSED) || wait <= 0 || wait > 15*time.Second {
					t.Errorf("note %v, %v", err, wait)
				}
			}})
			if c.answered {
				if _, err := s.Stat(t.Context(), "a"); !errors.Is(err, objstore.ErrNotFound) {
					t.Error(err)
				}
			}
			began := time.Now()
			err := s.Put(t.Context(), "a", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create})
			took := time.Since(began)
			if !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), "given up after") {
				t.Errorf("put: %v", err)
			}
			if took > c.limit || took < c.limit/4 {
				t.Errorf("answered %v: given up after %v, want nearly %v", c.answered, took, c.limit)
			}
			if n := down.Count(objstoretest.Put); n != notes+1 || n < 5 || n > 80 {
				t.Errorf("%d tries, %d notes", n, notes)
			}
		})
	}
}

// Progress gives a reading its patience anew.
func TestRetryStoreReturns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		back := time.Now().Add(4 * time.Minute)
		mem := objstore.NewMem()
		if err := mem.Put(t.Context(), "a", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); err != nil {
			t.Fatal(err)
		}
		s := retry.New(&away{Store: mem, until: back}, retry.Options{FirstPatience: time.Hour})
		if _, err := s.Stat(t.Context(), "a"); err != nil {
			t.Errorf("a store that came back after 4 minutes: %v", err)
		}
		if late := time.Since(back); late > 16*time.Second {
			t.Errorf("seen %v after it came back", late)
		}
	})
}

type away struct {
	objstore.Store
	until time.Time
}

func (a *away) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if time.Now().Before(a.until) {
		return objstore.Info{}, syscall.ECONNREFUSED
	}
	return a.Store.Stat(ctx, key)
}

func TestRetryCancel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		down := objstoretest.NewFaulty(t, objstore.NewMem(), objstoretest.Fault{Err: syscall.ECONNRESET})
		s := retry.New(down, retry.Options{FirstDelay: time.Minute, MaxDelay: time.Minute, FirstPatience: time.Hour, Patience: time.Hour})
		time.AfterFunc(time.Second, func() { cancel(errors.New("interrupted")) })
		began := time.Now()
		err := s.Put(ctx, "a", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create})
		if !errors.Is(err, context.Canceled) || time.Since(began) != time.Second {
			t.Errorf("cancelled after %v: %v", time.Since(began), err)
		}
		if err := s.Delete(ctx, "a"); !errors.Is(err, context.Canceled) {
			t.Errorf("after the cancel: %v", err)
		}
		if n := down.Count(); n != 2 {
			t.Errorf("%d operations, want 2", n)
		}
	})
}

func TestRetryList(t *testing.T) {
	t.Parallel()
	mem := objstore.NewMem()
	var want []string
	for i := range 50 {
		key := fmt.Sprintf("k%02d", i)
		want = append(want, key)
		if err := mem.Put(t.Context(), key, strings.NewReader(""), objstore.PutOptions{Mode: objstore.Create}); err != nil {
			t.Fatal(err)
		}
	}
	f := objstoretest.NewFaulty(t, mem,
		objstoretest.Fault{Op: objstoretest.List, Times: 1, Err: syscall.ECONNRESET, Cut: 10},
		objstoretest.Fault{Op: objstoretest.List, Times: 2, Err: syscall.ECONNRESET, Cut: 5},
		objstoretest.Fault{Op: objstoretest.List, Times: 1, Err: syscall.ECONNRESET, Cut: 49},
	)
	var got []string
	for info, err := range retry.New(f, quick).List(t.Context(), "k") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, info.Key)
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed %q", got)
	}
}

// What a body breaks off with is told when the store can't say whether the
// object is still the same one.
func TestRetryCutBodyOfUnknownVersion(t *testing.T) {
	t.Parallel()
	mem := objstore.NewMem()
	if err := mem.Put(t.Context(), "a", strings.NewReader("0123456789"), objstore.PutOptions{Mode: objstore.Create}); err != nil {
		t.Fatal(err)
	}
	f := objstoretest.NewFaulty(t, mem,
		objstoretest.Fault{Op: objstoretest.Get, Times: 1, Err: syscall.ECONNRESET},
		objstoretest.Fault{Op: objstoretest.Get, Times: 1, Cut: 4, Err: syscall.ECONNRESET})
	s := retry.New(f, quick)
	read := func() ([]byte, error) {
		r, err := s.Get(t.Context(), "a", 0, -1)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	if got, err := read(); string(got) != "0123" || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := read(); string(got) != "0123456789" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// busy refuses, for so long, some of what it is asked for.
type busy struct {
	objstore.Store
	key   string // "" is all
	until time.Time
}

type busyError struct{ error }

func (busyError) Busy() bool     { return true }
func (busyError) Answered() bool { return true }

func (b *busy) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if (b.key == "" || key == b.key) && time.Now().Before(b.until) {
		return objstore.Info{}, busyError{errors.New("slow down")}
	}
	return b.Store.Stat(ctx, key)
}

// TestRetrySlowTries: one try may take longer than patience lasts, as an upload of many at
// once on a slow line does. A second failure is no reason to give up.
func TestRetrySlowTries(t *testing.T) {
	t.Parallel()
	for fails, good := range map[int]bool{3: true, 4: false} {
		synctest.Test(t, func(t *testing.T) {
			slow := &slowPuts{Store: objstore.NewMem(), fails: fails}
			s := retry.New(slow, retry.Options{})
			if _, err := s.Stat(t.Context(), "a"); !errors.Is(err, objstore.ErrNotFound) {
				t.Error(err)
			}
			err := s.Put(t.Context(), "a", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create})
			if (err == nil) != good {
				t.Errorf("%d failures: %v", fails, err)
			}
		})
	}
}

// slowPuts breaks some uploads off after a long time.
type slowPuts struct {
	objstore.Store
	fails int
}

func (s *slowPuts) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	time.Sleep(7 * time.Minute)
	if s.fails--; s.fails >= 0 {
		return syscall.ECONNRESET
	}
	return s.Store.Put(ctx, key, body, o)
}

// TestRetryBusy: what a store refuses because it has too much to do is waited for as long as
// it does anything else, and no longer than an outage if it does not.
func TestRetryBusy(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		key      string
		patience time.Duration // for what is busy
		good     bool
	}{{"a", 0, true}, {"", 0, false}, {"a", 20 * time.Minute, false}, {"a", 2 * time.Hour, true}} {
		synctest.Test(t, func(t *testing.T) {
			mem := objstore.NewMem()
			for _, key := range []string{"a", "b"} {
				if err := mem.Put(t.Context(), key, strings.NewReader("x"), objstore.PutOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			s := retry.New(&busy{Store: mem, key: c.key, until: time.Now().Add(time.Hour)}, retry.Options{BusyPatience: c.patience})
			ctx, cancel := context.WithCancel(t.Context())
			var others sync.WaitGroup
			others.Go(func() {
				for ctx.Err() == nil && c.key != "" {
					if _, err := s.Stat(ctx, "b"); err != nil && ctx.Err() == nil {
						t.Error(err)
					}
					time.Sleep(time.Minute)
				}
			})
			began := time.Now()
			_, err := s.Stat(ctx, "a")
			took := time.Since(began)
			cancel()
			others.Wait()
			if (err == nil) != c.good || c.good != (took >= time.Hour) || took > time.Hour+20*time.Second ||
				!c.good && c.patience > 0 && (took > c.patience || took < c.patience-20*time.Second) {
				t.Errorf("busy with %q: %v after %v", c.key, err, took)
			}
		})
	}
}
