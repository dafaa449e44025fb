// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
)

// TestLoseRecords: what is gone is taken out and noted, of a manifest and of what forgotten
// checkpoints left, and what is not gone stays. The note outlives the checkpoint, for as long
// as there is an older one whose bitmap it is about.
func TestLoseRecords(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	all := line(t, r, 4) // each of the last two has two records
	key := func(b BitmapRecord) string { return archive.BitmapKey(b.Object.Name) }
	gone := key(all[2].Disks[0].Witnesses[0])
	isGone := func(k string) bool { return k == gone }

	d := all[2].Disks[0]
	if !d.LoseRecords(isGone) || !d.RecordsLost || len(d.Witnesses) != 1 || len(all[2].Disks[0].Witnesses) != 2 {
		t.Errorf("%+v", d)
	}
	if d.LoseRecords(isGone) || !d.RecordsLost {
		t.Error("it was lost twice, or is not noted any more")
	}
	d = all[3].Disks[0]
	d.Held = &BitmapRecord{Object: archive.Ref{Name: digest("held")}}
	d.ClusterMap = &ClusterMap{Parts: []archive.Ref{{Name: digest("one")}, {Name: digest("two")}}}
	if d.LoseRecords(isGone) || d.RecordsLost {
		t.Errorf("nothing of it is gone: %+v", d)
	}
	if !d.LoseRecords(func(k string) bool { return k == archive.ClustersKey(digest("two")) }) || d.ClusterMap != nil || d.Held == nil {
		t.Errorf("a part of its cluster map is gone: %+v", d)
	}
	d.RecordsLost = false
	if !d.LoseRecords(func(k string) bool { return k == archive.BitmapKey(digest("held")) }) || d.Held != nil || !d.RecordsLost {
		t.Errorf("what it held is gone: %+v", d)
	}

	if lost, err := r.LoseForgotten(t.Context(), "web", isGone); lost || err != nil {
		t.Errorf("none was forgotten: %v", err)
	}
	stay := forget(t, r, all, 2)
	for _, want := range []bool{true, false} {
		if lost, err := r.LoseForgotten(t.Context(), "web", isGone); lost != want || err != nil {
			t.Errorf("lost %v, %v", lost, err)
		}
	}
	noted := func() bool {
		t.Helper()
		f, err := r.Forgotten(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		for ref := range f.References() {
			if ref.Key == gone {
				t.Error("it is named still")
			}
		}
		return slices.ContainsFunc(f.Manifests(), func(m *Manifest) bool { return m.Checkpoint == "c3" && m.Disks[0].RecordsLost })
	}
	if !noted() {
		t.Error("it is not noted")
	}
	p := ForgottenCheckpoint{Sequence: 3, Disks: []ForgottenDisk{{Name: "vda", RecordsLost: true}}}
	if p.onlyNames(stay) || !p.onlyNames(stay[2:]) {
		t.Error("the note is of use to older checkpoints, and to them alone")
	}
}
