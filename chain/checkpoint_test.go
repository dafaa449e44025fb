// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

// without makes a checkpoint without data of the sample.
func without(r *Repository, name string) *Manifest {
	m := r.sample("web", name)
	m.Kind, m.Requested, m.Files = KindCheckpoint, "", nil
	m.Disks = m.Disks[:1]
	d := &m.Disks[0]
	d.Requested, d.Mode, d.Detection, d.IncrementalFrom, d.Maps = "", "", "", nil, nil
	d.Held = &BitmapRecord{Name: d.Bitmap, Granularity: 512, Size: d.Size, DirtyBytes: 512, Object: d.Witnesses[0].Object}
	return m
}

func TestCheckpointWithoutData(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	m := without(r, "one")
	commit(t, r, m)
	got, err := r.Manifest(t.Context(), "web", "one")
	if err != nil || got.Disks[0].Held == nil || *got.Disks[0].Held != *m.Disks[0].Held {
		t.Fatalf("got %+v, %v", got, err)
	}
	if n := len(got.Disks[0].Records()); n != len(m.Disks[0].Witnesses)+1 {
		t.Errorf("%d stored bitmaps", n)
	}
	for name, break_ := range map[string]func(m *Manifest){
		"requested":        func(m *Manifest) { m.Requested = ModeFull },
		"mode":             func(m *Manifest) { m.Disks[0].Mode = ModeFull },
		"detection":        func(m *Manifest) { m.Disks[0].Detection = DetectionNone },
		"maps":             func(m *Manifest) { m.Disks[0].Maps = sample("web", "one").Disks[0].Maps },
		"no bitmap":        func(m *Manifest) { m.Disks[0].Bitmap, m.Disks[0].Granularity = "", 0 },
		"held's name":      func(m *Manifest) { m.Disks[0].Held.Name = "other" },
		"held's size":      func(m *Manifest) { m.Disks[0].Held.Size-- },
		"held's layer":     func(m *Manifest) { m.Disks[0].Held.Layer = 1 },
		"held's path":      func(m *Manifest) { m.Disks[0].Held.LayerPath = "/x" },
		"held's object":    func(m *Manifest) { m.Disks[0].Held.Object = archive.Ref{} },
		"archive's held":   func(m *Manifest) { *m = *r.sample("web", "one"); m.Disks[0].Held = without(r, "one").Disks[0].Held },
		"ancestors alone":  func(m *Manifest) { m.Parent, m.Ancestors = nil, []CheckpointRef{{"a", NewUUID()}} },
		"own ancestor":     func(m *Manifest) { m.Ancestors = []CheckpointRef{*m.Ref()} },
		"too many of them": func(m *Manifest) { m.Ancestors = make([]CheckpointRef, MaxAncestors+1) },
	} {
		m := without(r, "one")
		m.fill(r)
		if err := m.Validate(); err != nil {
			t.Fatal(err)
		}
		break_(m)
		if err := m.Validate(); err == nil {
			t.Errorf("%s: valid", name)
		}
	}
}

// Only a checkpoint without data is deleted, and only the very one.
func TestDeleteCheckpoint(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	full := r.sample("web", "full")
	commit(t, r, full)
	if err := r.Under(t.Context(), "delete", func(h *Hold) error { return Delete(t.Context(), h, full) }); err == nil {
		t.Error("an archive was deleted")
	}
	m := without(r, "one")
	commit(t, r, m)
	again := *m
	again.UUID = NewUUID()
	var taken *TakenError
	if err := r.Under(t.Context(), "delete", func(h *Hold) error { return Delete(t.Context(), h, &again) }); !errors.As(err, &taken) {
		t.Errorf("another of the name: %v", err)
	}
	for range 2 { // the second time it is gone already
		if err := r.Under(t.Context(), "delete", func(h *Hold) error { return Delete(t.Context(), h, m) }); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Store.Stat(t.Context(), ManifestKey("web", "one")); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := r.Manifest(t.Context(), "web", "full"); err != nil {
		t.Error(err)
	}
}

// A tree of which some are gone: those behind follow the nearest that is left.
func TestTreeWithoutParents(t *testing.T) {
	t.Parallel()
	var ms []*Manifest
	for i := range MaxAncestors + 10 {
		m := sample("web", fmt.Sprint("c", i))
		m.UUID, m.Sequence = NewUUID(), int64(i)+1
		var parent *Manifest
		if i > 0 {
			parent = ms[i-1]
		}
		m.Follow(parent)
		if err := m.Validate(); i > 0 && err != nil && !strings.Contains(err.Error(), "bitmap") {
			t.Fatal(err)
		}
		ms = append(ms, m)
	}
	last := ms[len(ms)-1]
	if len(last.Ancestors) != MaxAncestors || last.Ancestors[0] != *ms[len(ms)-3].Ref() {
		t.Fatalf("%d ancestors, %v", len(last.Ancestors), last.Ancestors[0])
	}
	parentOf := func(left ...*Manifest) *Manifest {
		n := BuildTree(slices.Concat(left, []*Manifest{last})).Find(last.UUID)
		if n.Parent == nil {
			return nil
		}
		return n.Parent.Manifest
	}
	for _, tt := range []struct {
		left []*Manifest
		want *Manifest
	}{
		{ms[:len(ms)-1], ms[len(ms)-2]},
		{ms[:len(ms)-2], ms[len(ms)-3]},
		{ms[20:30], ms[29]},
		{ms[:len(ms)-2-MaxAncestors], nil},
		{ms[:len(ms)-1-MaxAncestors], ms[len(ms)-2-MaxAncestors]},
		{nil, nil},
	} {
		if got := parentOf(tt.left...); got != tt.want {
			t.Errorf("with %d left: follows another than it should", len(tt.left))
		}
	}
	all := BuildTree(ms).Subtree(ms[70].UUID)
	if len(all) != len(ms)-70 || all[0] != last || all[len(all)-1] != ms[70] {
		t.Errorf("a subtree of %d", len(all))
	}
	if n := len(BuildTree(ms).Subtree(NewUUID())); n != 0 {
		t.Errorf("a subtree of nothing: %d", n)
	}
}
