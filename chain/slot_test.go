// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"errors"
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

// minimal is as small as a manifest gets.
func minimal(r *Repository) *Manifest {
	m := r.sample("w", "c")
	return &Manifest{
		Kind: KindCheckpoint, Domain: "w", Host: Host{Name: "h"}, Checkpoint: "c", UUID: m.UUID, Sequence: 1,
		Created: m.Created.Truncate(1e9), Locking: LockingNone,
		Disks: []Disk{{Name: "a", Source: Source{Path: "/", Format: "a"}, Bitmap: BitmapName("c", m.UUID), Granularity: 512}},
	}
}

// TestVoid: a void is no checkpoint for anybody, and its name is free.
func TestVoid(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	m := minimal(r)
	commit(t, r, m)
	if data := get(t, r.Store, ManifestKey("w", "c")); len(data) <= maxVoid {
		t.Errorf("a manifest of %d bytes may be taken for a void", len(data))
	}
	if err := forgetOne(t.Context(), r, m); err != nil {
		t.Fatal(err)
	}
	free, err := r.Slot(t.Context(), "w", "c")
	if err != nil || free.Manifest != nil || free.Digest() != nil {
		t.Fatalf("%+v, %v", free, err)
	}
	if err := r.spend(t.Context(), free); err != nil {
		t.Fatal(err)
	}
	first, err := r.Slot(t.Context(), "w", "c")
	if err != nil || first.Manifest != nil || first.void == nil || len(first.data) > maxVoid {
		t.Fatalf("%+v, %v", first, err)
	}
	if domains, err := r.Domains(t.Context()); err != nil || len(domains) != 0 {
		t.Errorf("%q, %v", domains, err)
	}
	if _, err := r.Manifest(t.Context(), "w", "c"); !errors.Is(err, ErrNoCheckpoint) || !errors.Is(err, objstore.ErrNotFound) {
		t.Error(err)
	}
	commit(t, r, r.sample("w", "d"))
	if names, err := r.Checkpoints(t.Context(), "w"); err != nil || !slices.Equal(names, []string{"d"}) {
		t.Errorf("%q, %v", names, err)
	}
	if ms, unusable, err := r.Manifests(t.Context(), "w"); err != nil || len(ms) != 1 || len(unusable) != 0 {
		t.Errorf("%v, %v, %v", ms, unusable, err)
	}
	if err := r.commitTo(t.Context(), free, minimal(r), nil); !errors.As(err, new(*TakenError)) {
		t.Errorf("a commit to a slot that was spent: %v", err)
	}
	// Spent again, it is another void.
	if err := r.spend(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if err := r.commitTo(t.Context(), first, minimal(r), nil); !errors.As(err, new(*TakenError)) {
		t.Errorf("a commit to a void that was spent: %v", err)
	}
	m = minimal(r)
	commit(t, r, m)
	if m.OverVoid == "" {
		t.Error("it does not say that it took a void's place")
	}
	before := get(t, r.Store, ManifestKey("w", "c"))
	if err := forgetOne(t.Context(), r, m); err != nil {
		t.Fatal(err)
	}
	if s, err := r.Slot(t.Context(), "w", "c"); err != nil || s.void == nil || s.void.UUID == m.OverVoid {
		t.Errorf("forgotten, it left %+v, %v", s, err)
	}
	// The same checkpoint comes again, as by a copy: not one byte the same, so that
	// what was prepared for the first can't take the second's place.
	m.Revision, m.OverVoid = 0, ""
	commit(t, r, m)
	if string(get(t, r.Store, ManifestKey("w", "c"))) == string(before) {
		t.Error("the same bytes stand there as before")
	}
	// What is damaged is not taken for a void.
	put(t, r.Store, ManifestKey("w", "bad"), []byte("{}"))
	if names, err := r.Checkpoints(t.Context(), "w"); err != nil || !slices.Contains(names, "bad") {
		t.Errorf("%q, %v", names, err)
	}
	elsewhere := newRepository(t)
	v, err := Seal(elsewhere.newVoid())
	if err != nil {
		t.Fatal(err)
	}
	put(t, r.Store, ManifestKey("w", "foreign"), v)
	if _, err := r.Manifest(t.Context(), "w", "foreign"); !archive.IsDamage(err) {
		t.Errorf("another repository's void: %v", err)
	}
}

// TestSpendManifest: a spent manifest says the same, and nothing that was prepared for
// it, or for any state before, can take its place, also after it was forgotten and
// came again.
func TestSpendManifest(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	m := r.sample("web", "one")
	commit(t, r, m)
	slot, err := r.Slot(t.Context(), "web", "one")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.spend(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	spent, err := r.Manifest(t.Context(), "web", "one")
	if err != nil || spent.Revision != 2 || spent.UUID != m.UUID || spent.OverVoid == "" {
		t.Fatalf("%+v, %v", spent, err)
	}
	late := *m
	if err := r.reviseSlot(t.Context(), slot, &late, nil); !errors.As(err, new(*RevisedError)) {
		t.Errorf("a replace that was prepared before: %v", err)
	}
	if err := forgetOne(t.Context(), r, spent); err != nil {
		t.Fatal(err)
	}
	again := *m
	again.Revision, again.OverVoid = 0, ""
	commit(t, r, &again)
	if err := r.reviseSlot(t.Context(), slot, &late, nil); err == nil {
		t.Error("a replace that was prepared before the slot was spent took the place of the same checkpoint, which came again")
	}
	if err := r.spend(t.Context(), slot); err != nil {
		t.Errorf("what another has changed is spent already: %v", err)
	}
	if now, err := r.Manifest(t.Context(), "web", "one"); err != nil || now.Revision != 1 {
		t.Errorf("%+v, %v", now, err)
	}
}

func TestRevise(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	m := r.sample("web", "one")
	commit(t, r, m)
	other := *m
	m.Description = "another"
	if err := r.Revise(t.Context(), m); err != nil || m.Revision != 2 {
		t.Fatalf("revision %d, %v", m.Revision, err)
	}
	if got, err := r.Manifest(t.Context(), "web", "one"); err != nil || got.Revision != 2 || got.Description != "another" {
		t.Errorf("%+v, %v", got, err)
	}
	var revised *RevisedError
	if err := r.Revise(t.Context(), &other); !errors.As(err, &revised) || revised.Manifest.Revision != 2 || other.Revision != 1 {
		t.Errorf("an older revision's next: %v", err)
	}
	if err := forgetOne(t.Context(), r, &other); !errors.As(err, &revised) {
		t.Errorf("an older revision, forgotten: %v", err)
	}
	imposter := *m
	imposter.UUID = NewUUID()
	if err := r.Revise(t.Context(), &imposter); !errors.As(err, new(*TakenError)) {
		t.Errorf("another checkpoint: %v", err)
	}
	if err := forgetOne(t.Context(), r, &imposter); !errors.As(err, new(*TakenError)) {
		t.Errorf("another checkpoint, forgotten: %v", err)
	}
	for range 2 {
		if err := forgetOne(t.Context(), r, m); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Revise(t.Context(), m); !errors.Is(err, ErrNoCheckpoint) {
		t.Errorf("a forgotten one: %v", err)
	}
	if _, err := r.Store.Stat(t.Context(), ManifestKey("web", "one")); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("one that was never over a void left something: %v", err)
	}
	bad := r.sample("web", "two")
	commit(t, r, bad)
	bad.Locking = "x"
	if err := r.Revise(t.Context(), bad); err == nil {
		t.Error("an invalid revision was stored")
	}
}
