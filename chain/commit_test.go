// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

func TestCommitTaken(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	first := r.sample("web", "one")
	commit(t, r, first)
	before := string(get(t, r.Store, ManifestKey("web", "one")))
	var taken *TakenError
	if err := r.Commit(t.Context(), r.sample("web", "one")); !errors.As(err, &taken) || taken.Checkpoint != "one" || taken.Domain != "web" {
		t.Errorf("another with the same name: %v, want TakenError", err)
	}
	if err := r.Commit(t.Context(), first); err != nil {
		t.Errorf("the same once more: %v", err)
	}
	if got := string(get(t, r.Store, ManifestKey("web", "one"))); got != before {
		t.Error("the manifest has changed")
	}
	// The next revision of ours stands there by now.
	next := *first
	next.Revision = 2
	data, err := Seal(&next)
	if err != nil {
		t.Fatal(err)
	}
	put(t, r.Store, ManifestKey("web", "one"), data)
	if err := r.Commit(t.Context(), first); err != nil {
		t.Errorf("ours, described anew: %v", err)
	}
	var unknown *UnknownOutcomeError
	changed := *first
	changed.Revision, changed.Description = 2, "not the same"
	if err := r.Commit(t.Context(), &changed); !errors.As(err, &unknown) {
		t.Errorf("ours, but not the same: %v, want UnknownOutcomeError", err)
	}
	put(t, r.Store, ManifestKey("web", "one"), []byte("broken"))
	if err := r.Commit(t.Context(), first); !errors.As(err, &unknown) {
		t.Errorf("something broken stands there: %v, want UnknownOutcomeError", err)
	}
}

func TestCommitRace(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() { errs[i] = r.Commit(t.Context(), r.sample("web", "one")) })
	}
	wg.Wait()
	won := 0
	var taken *TakenError
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.As(err, &taken) {
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d have won", won)
	}
}

// TestCommitOutcome: whatever the store says, Commit tells what has become of
// the manifest, or that it can't be known.
func TestCommitOutcome(t *testing.T) {
	t.Parallel()
	down := func(op objstoretest.Op) objstoretest.Fault { return objstoretest.Fault{Op: op, Err: errOutage} }
	lost := objstoretest.Fault{Op: objstoretest.Put, Times: 1, Lost: true, Err: errOutage}
	repeated := objstoretest.Fault{Op: objstoretest.Put, Times: 1, Lost: true, Err: objstore.ErrExists}
	vanished := objstoretest.Fault{Op: objstoretest.Put, Times: 1, Err: objstore.ErrExists}
	for _, c := range []struct {
		name   string
		faults []objstoretest.Fault
		want   string // committed, failed, unknown
		stands bool
	}{
		{"all well", nil, "committed", true},
		{"answer lost", []objstoretest.Fault{lost}, "committed", true},
		{"repeated request", []objstoretest.Fault{repeated}, "committed", true},
		{"refused", []objstoretest.Fault{down(objstoretest.Put)}, "failed", false},
		{"answer lost, then down", []objstoretest.Fault{lost, down(objstoretest.Get)}, "unknown", true},
		{"refused, then down", []objstoretest.Fault{down(objstoretest.Put), down(objstoretest.Get)}, "unknown", false},
		{"repeated request, then down", []objstoretest.Fault{repeated, down(objstoretest.Get)}, "unknown", true},
		{"stood there and is gone", []objstoretest.Fault{vanished}, "unknown", false},
		{"answer lost, not confirmed", []objstoretest.Fault{lost, {Op: objstoretest.Put, After: 1, Err: errOutage}}, "unknown", true},
		{"a store that lies", []objstoretest.Fault{{Op: objstoretest.Put, Times: 1}}, "unknown", false},
		{"stored, then down", []objstoretest.Fault{down(objstoretest.Get)}, "unknown", true},
		{"cut while reading it again", []objstoretest.Fault{lost, {Op: objstoretest.Get, Cut: 10, Err: errOutage}}, "unknown", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			plain := newRepository(t)
			r := plain.with(objstoretest.NewFaulty(t, plain.Store, c.faults...))
			m := r.sample("web", "one")
			err := r.Commit(t.Context(), m)
			var unknown *UnknownOutcomeError
			got := "failed"
			if err == nil {
				got = "committed"
			} else if errors.As(err, &unknown) {
				got = "unknown"
			}
			if got != c.want {
				t.Errorf("%s (%v), want %s", got, err, c.want)
			}
			if err != nil && c.name != "stood there and is gone" && c.name != "a store that lies" && !errors.Is(err, errOutage) {
				t.Errorf("%v does not tell the cause", err)
			}
			if _, err := plain.Manifest(t.Context(), "web", "one"); (err == nil) != c.stands {
				t.Errorf("the manifest: %v, want it to stand: %v", err, c.stands)
			}
		})
	}
}

// TestCommitRepackedMeanwhile: a commit whose answer was lost is confirmed without
// undoing what another has made of the manifest since.
func TestCommitRepackedMeanwhile(t *testing.T) {
	t.Parallel()
	plain := newRepository(t)
	m := plain.sample("web", "one")
	second := *m
	second.Revision = 2
	stored, err := second.mapTexts(escapeText)
	if err != nil {
		t.Fatal(err)
	}
	data, err := Seal(stored)
	if err != nil {
		t.Fatal(err)
	}
	r := plain.with(objstoretest.NewFaulty(t, plain.Store,
		objstoretest.Fault{Op: objstoretest.Put, Times: 1, Lost: true, Err: errOutage},
		objstoretest.Fault{Op: objstoretest.Put, After: 1, Times: 1, Lost: true, Err: errOutage, Hook: func(key string) {
			put(t, plain.Store, key, data)
		}}))
	if err := r.Commit(t.Context(), m); err != nil {
		t.Error(err)
	}
	if got, err := plain.Manifest(t.Context(), "web", "one"); err != nil || got.Revision != 2 {
		t.Errorf("%v: the second revision is gone", err)
	}
}

// TestCommitInterrupted cancels before and while the manifest is stored.
func TestCommitInterrupted(t *testing.T) {
	t.Parallel()
	plain := newRepository(t)
	ctx, cancel := context.WithCancel(t.Context())
	r := plain.with(objstoretest.NewFaulty(t, plain.Store, objstoretest.Fault{Op: objstoretest.Put, Times: 1, Lost: true, Err: context.Canceled, Hook: func(string) {}}))
	m := r.sample("web", "one")
	if err := r.Commit(ctx, m); err != nil {
		t.Errorf("cancelled after it was stored: %v, want nil", err)
	}
	cancel()
	if err := plain.Commit(ctx, plain.sample("web", "two")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v, want context.Canceled", err)
	}
	var unknown *UnknownOutcomeError
	if err := plain.Commit(ctx, plain.sample("web", "three")); errors.As(err, &unknown) {
		t.Errorf("cancelled before: %v, but it is known that nothing was stored", err)
	}
	names, err := plain.Checkpoints(t.Context(), "web")
	if err != nil || strings.Join(names, " ") != "one" {
		t.Errorf("%q, %v", names, err)
	}
}

// TestCommitOnLocal commits to a real folder, from several stores at once.
func TestCommitOnLocal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := local.Create(dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Init(t.Context(), s, InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() {
			s, err := local.Open(dir, local.Options{})
			if err != nil {
				errs[i] = err
				return
			}
			own := r.with(s)
			errs[i] = errors.Join(own.Commit(t.Context(), own.sample("web", "one")), s.Close())
		})
	}
	wg.Wait()
	won := 0
	var taken *TakenError
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.As(err, &taken) {
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d have won", won)
	}
	if _, err := r.Manifest(t.Context(), "web", "one"); err != nil {
		t.Error(err)
	}
}
