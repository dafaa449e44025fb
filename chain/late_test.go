// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/retry"
)

// lateStore loses the first request to put what its key has a part of, which it can still
// let arrive.
type lateStore struct {
	objstore.Store
	part string
	late func() error // nil: nothing was lost
}

func (s *lateStore) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if s.late != nil || !strings.Contains(key, s.part) {
		return s.Store.Put(ctx, key, body, o)
	}
	data := make([]byte, body.Size())
	if _, err := body.ReadAt(data, 0); err != nil {
		return err
	}
	s.late = func() error { return s.Store.Put(context.Background(), key, bytes.NewReader(data), o) }
	return objstore.MarkInDoubt(errOutage)
}

// TestLate: a request of which the answer never came, and that was repeated, arrives when
// what it was to do was done, and is undone again: it finds nothing to do.
func TestLate(t *testing.T) {
	t.Parallel()
	for _, part := range []string{"/checkpoints/", leasesPrefix} {
		for _, again := range []bool{false, true} { // by the retry layer, or by Commit
			plain := newRepository(t)
			store := &lateStore{Store: plain.Store, part: part}
			r := plain.with(store)
			if again {
				r = plain.with(retry.New(store, retry.Options{FirstDelay: time.Millisecond}))
			}
			h, err := r.HoldFor(t.Context(), "backup", "web", "one")
			if err != nil && part == leasesPrefix && !again {
				continue // it gives up, with the lease that may arrive
			}
			if err != nil {
				t.Fatal(err)
			}
			m := r.sample("web", "one")
			if part == leasesPrefix { // what breaks it takes it for ended
				if err := plain.BreakLease(t.Context(), h.lease); err != nil {
					t.Fatal(err)
				}
				if err := store.late(); err != nil {
					t.Fatal(err)
				}
				if err := h.replace(t.Context(), func(*Lease) {}, nil); !errors.As(err, new(*BrokenError)) {
					t.Errorf("it goes on with a lease that was broken, and came back: %v", err)
				}
				_ = h.Release(t.Context())
				continue
			}
			if err := errors.Join(h.Commit(t.Context(), m), h.Release(t.Context())); err != nil {
				t.Fatal(err)
			}
			if stands, err := plain.Manifest(t.Context(), "web", "one"); err != nil || stands.OverVoid == "" || stands.Revision != m.Revision {
				t.Errorf("%+v, %v; revision %d is known", stands, err, m.Revision)
			}
			if err := Forget(t.Context(), plain, []*Manifest{m}, []*Manifest{m}, func(*Manifest) {}); err != nil {
				t.Fatal(err)
			}
			if err := store.late(); !errors.Is(err, objstore.ErrExists) {
				t.Errorf("the late request: %v", err)
			}
			if _, err := plain.Manifest(t.Context(), "web", "one"); !errors.Is(err, ErrNoCheckpoint) {
				t.Errorf("what was forgotten: %v", err)
			}
		}
	}
}

// TestLateForget: where a checkpoint was forgotten by a request that was repeated, its place
// is never free again for the same bytes.
func TestLateForget(t *testing.T) {
	t.Parallel()
	plain := newRepository(t)
	m := plain.sample("web", "one")
	commit(t, plain, m)
	again := *m
	store := &lateStore{Store: plain.Store, part: "/checkpoints/"}
	r := plain.with(retry.New(store, retry.Options{FirstDelay: time.Millisecond}))
	if err := Forget(t.Context(), r, []*Manifest{m}, []*Manifest{m}, func(*Manifest) {}); err != nil {
		t.Fatal(err)
	}
	commit(t, plain, &again) // as a copy brings it back
	if err := store.late(); !errors.Is(err, objstore.ErrChanged) {
		t.Errorf("the late request: %v", err)
	}
	if _, err := plain.Manifest(t.Context(), "web", "one"); err != nil {
		t.Error(err)
	}
}

// TestForgetLate: who was taken for dead while it forgot a checkpoint does not delete what
// has taken its name since.
func TestForgetLate(t *testing.T) {
	t.Parallel()
	plain := newRepository(t)
	m, other := plain.sample("web", "one"), plain.sample("web", "one")
	commit(t, plain, m)
	since := time.Hour
	ctx := protocol.WithTest(t.Context(), &protocol.Test{Boot: func() (string, time.Duration) { return "a-boot", since }})
	store := &afterPut{Store: plain.Store, key: ManifestKey("web", "one")}
	h, err := plain.with(store).Hold(ctx, "forget")
	if err != nil {
		t.Fatal(err)
	}
	store.do = func() { // a day goes by
		since += 24 * time.Hour
		if err := plain.BreakLease(t.Context(), h.lease); err != nil {
			t.Error(err)
		}
		commit(t, plain, other)
	}
	if err := errors.Join(h.Forget(ctx, m), h.Release(ctx)); err != nil {
		t.Error(err)
	}
	if stands, err := plain.Manifest(t.Context(), "web", "one"); err != nil || stands.UUID != other.UUID {
		t.Errorf("%+v, %v", stands, err)
	}
}

// afterPut does something when a key was put, and read back.
type afterPut struct {
	objstore.Store
	key string
	do  func()
	put bool
}

func (s *afterPut) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	s.put = s.put || key == s.key
	return s.Store.Put(ctx, key, body, o)
}

func (s *afterPut) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	r, err := s.Store.Get(ctx, key, offset, length)
	if do := s.do; key == s.key && s.put && do != nil {
		s.do = nil
		do()
	}
	return r, err
}

// TestForgetKilled: of who was killed while it deleted a void, the lease stays until no
// request can arrive any more.
func TestForgetKilled(t *testing.T) {
	t.Parallel()
	plain := newRepository(t)
	m := plain.sample("web", "one")
	commit(t, plain, m)
	h, err := plain.Hold(t.Context(), "forget")
	if err != nil {
		t.Fatal(err)
	}
	slot, err := plain.Slot(t.Context(), "web", "one")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.Announce(t.Context(), slot), plain.empty(t.Context(), slot, m, nil)); err != nil {
		t.Fatal(err)
	}
	since := time.Hour
	ctx := protocol.WithTest(t.Context(), &protocol.Test{
		Ended: func(string) bool { return true },
		Boot:  func() (string, time.Duration) { return "a-boot", since },
	})
	far := plain.with(quarterLate{plain.Store})
	for _, r := range []*Repository{far, plain} {
		if may, err := r.mayDelete(ctx, h.lease); err != nil || may != (r == far) {
			t.Errorf("%v, %v", may, err)
		}
	}
	if err := far.CleanLeases(ctx); err != nil {
		t.Fatal(err)
	}
	mark, err := far.CreateMark(ctx, &MarkList{})
	if err == nil {
		mark, err = far.ListLeases(ctx, mark)
	}
	for _, want := range []int{1, 0} {
		if err != nil {
			t.Fatal(err)
		}
		var left []AwaitedLease
		if mark, left, err = far.AwaitLeases(ctx, mark); len(left) != want {
			t.Errorf("%d leases are left, want %d", len(left), want)
		}
		since += 15 * time.Minute
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

type quarterLate struct{ objstore.Store }

func (quarterLate) MaxDelay() time.Duration { return 15 * time.Minute }

// TestForgetUnanswered: a delete of which no answer came may arrive when the next checkpoint
// is forgotten already. Until then the lease guards the name of the first, and no other.
func TestForgetUnanswered(t *testing.T) {
	t.Parallel()
	plain := newRepository(t)
	all := line(t, plain, 2)
	store := &delayed{Store: plain.Store, unanswered: 1, meanwhile: func() {}}
	ctx := protocol.WithTest(t.Context(), &protocol.Test{Pause: func(context.Context) error { return nil }})
	if err := Forget(ctx, plain.with(store), all, all, func(*Manifest) {}); err != nil {
		t.Fatal(err)
	}
	if names, err := plain.Checkpoints(t.Context(), "web"); err != nil || len(names) != 0 || len(store.asked) != 3 {
		t.Fatalf("there are %v, %v; asked for %v", names, err, store.asked)
	}
	leases, _, err := plain.Leases(t.Context())
	if err != nil || len(leases) != 1 || leases[0].Announces == nil || leases[0].Announces.Checkpoint != "c1" {
		t.Errorf("leases %+v, %v", leases, err)
	}
	again := plain.sample("web", "c1")
	if _, err := plain.HoldFor(t.Context(), "backup", again.Domain, again.Checkpoint); !errors.As(err, new(*AtWorkError)) {
		t.Errorf("a name of which the manifest may be deleted is taken: %v", err)
	}
}
