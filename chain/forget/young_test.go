// SPDX-License-Identifier: Apache-2.0

package forget_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/forget"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/retention"
)

// TestYoung: in a repository with object lock nothing goes by rules that is younger than the lock,
// and whatever a host adds meanwhile pushes nothing out of what they keep: not of the newest, not of
// those that were drilled, and not the last that has lost nothing.
func TestYoung(t *testing.T) {
	t.Parallel()
	const days = 10
	day := func(n int) time.Time { return noon.AddDate(0, 0, n-60) }
	w := newWorld(t)
	w.repo.Config.ObjectLock = &chain.ObjectLock{Mode: "compliance", Days: days}
	var honest []string
	for n := range 40 {
		name := fmt.Sprintf("d%02d", n)
		m := w.add("web/"+name, day(n), func(m *chain.Manifest) {
			if n != 5 && n < 30 {
				lost(m)
			}
		})
		if n == 3 || n == 4 {
			w.drilled(m, day(n).Add(time.Hour), record.VerdictPassed)
		}
		honest = append(honest, name)
	}
	goes := func() []string {
		t.Helper()
		p := w.make(forget.Request{Rules: retention.Rules{Last: 3, Drilled: 1}})
		if len(p.Refused) > 0 {
			t.Fatal(p.Refused)
		}
		var all []string
		for _, d := range p.Remove {
			all = append(all, d.Checkpoint)
		}
		return all
	}
	// The newest is of day 39; days 28 and later are young: 10, and two for clocks that are off.
	want := slices.DeleteFunc(slices.Clone(honest), func(name string) bool {
		return name >= "d28" || name == "d27" || name == "d26" || name == "d25" || name == "d05" || name == "d04"
	})
	if got := goes(); !slices.Equal(got, want) {
		t.Errorf("%v go, and should %v", got, want)
	}
	for n := range 60 {
		m := w.add(fmt.Sprintf("web/flood%d", n), day(39).Add(time.Duration(n-40)*time.Minute))
		w.drilled(m, day(39), record.VerdictPassed)
	}
	if got := goes(); !slices.Equal(got, want) {
		t.Errorf("with others on top %v go, and should %v", got, want)
	}
}
