// SPDX-License-Identifier: Apache-2.0

package chain_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
)

// TestReferences: every digest in a manifest that names an object is in its
// references, and the maps know their places.
func TestReferences(t *testing.T) {
	t.Parallel()
	ref := func(s string) archive.Ref { return archive.Ref{Name: archive.Sum([]byte(s)), Length: 1} }
	m := &chain.Manifest{
		Disks: []chain.Disk{
			{Name: "vda", Size: 7, Maps: []archive.MapRef{{Ref: ref("delta")}, {Ref: ref("full")}},
				Witnesses: []chain.BitmapRecord{{Object: ref("first")}, {Object: ref("second")}}},
			{Name: "vdb", Held: &chain.BitmapRecord{Object: ref("held")}},
		},
		Files: []chain.File{{Role: chain.RoleNVRAM, FileRef: archive.FileRef{Object: ref("file")}}},
	}
	var got []string
	for r := range m.References() {
		name := ""
		switch {
		case r.Map != nil:
			name = "map " + r.Disk.Name
			want := chain.MapPlace{Disk: "vda", Size: 7, Newest: r.Map.Ref == ref("delta"), Full: r.Map.Ref == ref("full")}
			if r.Place != want || r.Key != archive.MapKey(r.Object.Name) {
				t.Errorf("%+v", r)
			}
		case r.Bitmap != nil:
			name = "bitmap " + r.Disk.Name
		case r.File != nil:
			name = "file " + r.File.Role
		}
		got = append(got, name)
	}
	want := []string{"map vda", "map vda", "bitmap vda", "bitmap vda", "bitmap vdb", "file nvram"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for r := range m.References() { // whoever stops early is not called again
		if r.Key == "" {
			t.Error("no key")
		}
		break
	}
}

// TestNeeds: what a checkpoint needs is all that is read when it is restored,
// each once, packs first; what is known is not looked at again.
func TestNeeds(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	h.Random(rand.New(rand.NewPCG(3, 4)), 6, 4<<20)
	m := h.Checkpoints[len(h.Checkpoints)-1]
	needs, err := h.Repo.Needs(t.Context(), m, nil)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, o := range needs {
		keys = append(keys, o.Key)
		if ok, err := archive.Stands(t.Context(), h.Repo.Store, o.Key, o.Ref.Length); err != nil || !ok {
			t.Errorf("%s: %v, %v", o.Key, ok, err)
		}
	}
	firstNamed := slices.IndexFunc(keys, func(k string) bool { return !strings.HasPrefix(k, archive.PackPrefix) })
	if slices.ContainsFunc(keys[firstNamed:], func(k string) bool { return strings.HasPrefix(k, archive.PackPrefix) }) {
		t.Errorf("a pack after what names it: %q", keys)
	}
	if n := len(keys); len(slices.Compact(slices.Sorted(slices.Values(keys)))) != n || firstNamed == 0 {
		t.Errorf("twice, or no packs: %q", keys)
	}
	for _, mp := range m.Disks[0].Maps {
		opened, err := archive.OpenMap(t.Context(), h.Repo.Store, mp, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range opened.Packs() {
			if !slices.Contains(keys, archive.PackKey(p.Name)) {
				t.Errorf("pack %s is not needed?", p.Name)
			}
		}
	}
	before := h.Store.Of(archive.MapPrefix)
	known := func(key string) bool { return slices.Contains(keys, key) }
	if again, err := h.Repo.Needs(t.Context(), m, known); err != nil || len(again) != 0 {
		t.Errorf("all is known: %v, %v", again, err)
	}
	if n := h.Store.Of(archive.MapPrefix) - before; n != 0 {
		t.Errorf("%d reads of maps that are known", n)
	}
	if err := h.Repo.Store.Delete(t.Context(), archive.MapKey(m.Disks[0].Maps[0].Name)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Repo.Needs(t.Context(), m, nil); !archive.IsDamage(err) {
		t.Errorf("a map is gone: %v", err)
	}
}
