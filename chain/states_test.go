// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"testing"

	"github.com/imgbackup/imgbackup/archive"
)

func TestStates(t *testing.T) {
	t.Parallel()
	maps := []archive.MapRef{{}}
	history := []*Manifest{
		{Checkpoint: "c1", UUID: "u1", Sequence: 1, Disks: []Disk{{Name: "vda", Size: 4, Bitmap: "b1", Maps: maps}, {Name: "vdb", Size: 1}}},
		{Checkpoint: "c2", UUID: "u2", Sequence: 2, Disks: []Disk{{Name: "vda", Size: 2, Bitmap: "b2"}}},
		{Checkpoint: "c3", UUID: "u3", Sequence: 3, Disks: []Disk{{Name: "vda", Size: 8, Maps: maps}}},
	}
	states := StatesOf(history, "vda")
	if len(states) != 3 || states[0].Manifest != history[2] || states[2].Disk != &history[0].Disks[0] {
		t.Fatalf("states of vda: %v", states)
	}
	if data := states.WithData(); len(data) != 2 || data[0].Manifest != history[2] || data[1].Manifest != history[0] || len(states) != 3 {
		t.Errorf("states with data: %v", data)
	}
	if st, ok := states.Named("c2"); !ok || st.Manifest != history[1] || st.HasData() {
		t.Errorf("c2 is %v, %v", st, ok)
	}
	if st, ok := states.WithUUID("u1"); !ok || st.Manifest != history[0] || !st.HasData() {
		t.Errorf("u1 is %v, %v", st, ok)
	}
	if _, ok := states.Named("vda"); ok {
		t.Error("vda is a checkpoint")
	}
	if _, ok := states.WithUUID("c1"); ok {
		t.Error("c1 is a UUID")
	}
	renamed := append(history, &Manifest{Checkpoint: "c4", UUID: "u4", Sequence: 4, Disks: []Disk{{Name: "sda", RenamedFrom: "vda"}, {Name: "vda"}}},
		&Manifest{Checkpoint: "c5", UUID: "u5", Sequence: 5, Disks: []Disk{{Name: "sda"}}})
	if sda := StatesOf(renamed, "sda"); len(sda) != 5 || sda[1].Disk.Name != "sda" || sda[2].Disk.Name != "vda" || sda[2].Manifest != history[2] {
		t.Errorf("states of sda, which was vda: %v", sda)
	}
	if names := states.Bitmaps(); len(names) != 2 || names["b1"] != history[0] || names["b2"] != history[1] {
		t.Errorf("bitmaps: %v", names)
	}
	for i, want := range []int64{6, 2, 2} {
		if got := states.SmallestSince(states[i], 6); got != want {
			t.Errorf("smallest since %s: %d, want %d", states[i].Manifest.Checkpoint, got, want)
		}
	}
}
