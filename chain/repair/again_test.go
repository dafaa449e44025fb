// SPDX-License-Identifier: Apache-2.0

package repair_test

import (
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/chain/repair"
)

// One repair is enough, also from a repository that has the same checkpoints in other packs
// and maps: whatever is damaged, nothing is lost, and what is left is for a prune.
func TestRepairFromOtherPacks(t *testing.T) {
	t.Parallel()
	regained := 0
	for seed := range soak(12) {
		w := newWorld(t, seed, 1<<10)
		w.h.Repack(w.rand.IntN(len(w.h.Checkpoints)))
		w.harm(true)
		p := w.repair(w.fromTwin())
		regained += len(p.Regained)
		if len(p.Lost) > 0 {
			t.Errorf("seed %d: lost %+v", seed, p.Lost)
		}
		w.whole()
		if r := w.check(); len(r.Lost) > 0 || slices.ContainsFunc(r.Findings, func(f check.Finding) bool { return len(f.Affects) > 0 }) {
			t.Errorf("seed %d: %+v, lost %+v", seed, r.Findings, r.Lost)
		}
		p = w.repair(w.fromTwin())
		left := func(a repair.Action) bool { return a.Do == repair.Leave }
		if len(p.Regained) > 0 || p.Indexed > 0 || len(slices.DeleteFunc(p.Actions, left)) > 0 {
			t.Errorf("seed %d: a second one has to do %+v, %+v, %d indexes", seed, p.Actions, p.Regained, p.Indexed)
		}
	}
	if regained == 0 {
		t.Error("no disk was whole in the other repository alone")
	}
}
