// SPDX-License-Identifier: Apache-2.0

package retention

import (
	"slices"
	"testing"
	"time"
)

// TestDrilled: the newest N that passed stay, beside what other rules keep; times are not
// asked for.
func TestDrilled(t *testing.T) {
	t.Parallel()
	var all []Checkpoint
	for i, passed := range []bool{true, false, true, true, false} {
		// The clock went backwards.
		all = append(all, Checkpoint{Name: string(rune('a' + i)), Time: time.Unix(int64(9-i)*1e6, 0), Drilled: passed})
	}
	for n, want := range map[int]string{1: "d", 2: "cd", 3: "acd", Unlimited: "acd"} {
		decisions, err := Rules{Drilled: n}.Apply(all, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		kept := ""
		for _, d := range decisions {
			if d.Keep() {
				kept += d.Name
				if !slices.Equal(d.Reasons, []string{"drilled"}) {
					t.Errorf("%s stays by %v", d.Name, d.Reasons)
				}
			}
		}
		if kept != want {
			t.Errorf("of --keep-drilled %d %s stay, and should %s", n, kept, want)
		}
	}
	decisions, err := Rules{Drilled: 1, Last: 1}.Apply(all, time.UTC)
	if err != nil || !decisions[3].Keep() || !decisions[4].Keep() || decisions[2].Keep() {
		t.Errorf("%v, %v", decisions, err)
	}
}
