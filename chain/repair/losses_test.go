// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"testing"

	"github.com/imgbackup/imgbackup/chain"
)

// TestIsLess: what another repository lost is less only where this one has lost it, too.
func TestIsLess(t *testing.T) {
	t.Parallel()
	ranges := func(at ...int64) (all []chain.Lost) {
		for i := 0; i < len(at); i += 2 {
			all = append(all, chain.Lost{Offset: at[i], Length: at[i+1] - at[i]})
		}
		return all
	}
	more := ranges(10, 20, 20, 30, 50, 60)
	for _, c := range []struct {
		lost []chain.Lost
		want bool
	}{
		{nil, true},
		{ranges(10, 30), true},
		{ranges(12, 25, 59, 60), true},
		{more, false},
		{ranges(0, 1), false},
		{ranges(29, 31), false},
		{ranges(9, 11), false},
		{ranges(40, 41), false},
		{ranges(10, 20, 55, 61), false},
	} {
		if got := isLess(c.lost, more); got != c.want {
			t.Errorf("%v: %t", c.lost, got)
		}
	}
	if isLess(nil, nil) {
		t.Error("nothing is less than nothing")
	}
}
