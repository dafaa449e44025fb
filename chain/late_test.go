// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

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
