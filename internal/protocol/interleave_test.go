// SPDX-License-Identifier: Apache-2.0

package protocol_test

import (
	"maps"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/protocol"
)

// soak is how many times as much is tried, and whether it was asked for.
func soak() (int, bool) {
	n, err := strconv.Atoi(os.Getenv("IMGBACKUP_SOAK"))
	return max(n, 1), err == nil
}

// What each world is tried with; IMGBACKUP_SOAK=N is so many times as much.
const (
	worldStates = 4000 // looked at in order, at most, in a world that is not exhausted
	worldSteps  = 1000 // at random
)

// report fails the test where something was lost.
func (x *explorer) report(f *found) {
	x.t.Helper()
	x.t.Logf("%s: %v; %d histories", x.world, f, x.nodes)
	if f.lost != nil {
		x.t.Errorf("%s: %v\n  %s", x.world, f.lost, strings.Join(f.trace, "\n  "))
	}
}

// gently collects garbage seldom: most of what there is stays.
func gently(t *testing.T) {
	before := debug.SetGCPercent(400)
	t.Cleanup(func() { debug.SetGCPercent(before) })
}

// TestInterleavings runs real writers, repackers, pruners, forgetters and readers through
// all orders of the steps that they take in the store, with crashes and with live ones
// that are taken for dead: no checkpoint ever lacks an object. Small worlds are exhausted;
// of others those orders come first in which few have to wait though they could go on.
func TestInterleavings(t *testing.T) {
	gently(t)
	times, more := soak()
	var sum found
	for _, name := range slices.Sorted(maps.Keys(worlds())) {
		w := worlds()[name]
		w.in(t, func(x *explorer) {
			switches, limit := 2, worldStates
			if more {
				switches, limit = 3, times*worldStates
			}
			if w.small || w.large && more {
				switches, limit = -1, 1<<30
			}
			f := x.explore(switches, limit)
			x.report(f)
			if f.limited && switches < 0 {
				t.Errorf("%s: it was not exhausted", w)
			}
			if f.pruned == 0 && !w.deletesNone {
				t.Errorf("%s: nothing was ever deleted", w)
			}
			sum.add(f)
		})
	}
	t.Logf("%d states, %d steps, %d orders to their end", sum.states, sum.steps, sum.orders)
}

func (f *found) add(g *found) {
	f.states, f.steps, f.orders = f.states+g.states, f.steps+g.steps, f.orders+g.orders
}

// TestRandom: the same worlds, with more crashes, in random orders.
func TestRandom(t *testing.T) {
	gently(t)
	times, _ := soak()
	var sum found
	for i, name := range slices.Sorted(maps.Keys(worlds())) {
		w := worlds()[name]
		w.crashes, w.suspicions = w.crashes+1, w.suspicions+1
		w.in(t, func(x *explorer) {
			f := x.random(rand.New(rand.NewPCG(uint64(i), 17)), times*worldSteps)
			x.report(f)
			sum.add(f)
		})
	}
	t.Logf("%d steps, %d orders to their end, %d states", sum.steps, sum.orders, sum.states)
}

// TestRules: each rule that is left out loses a checkpoint in some world.
func TestRules(t *testing.T) {
	gently(t)
	tried := make(map[protocol.Rule]bool)
	for _, in := range []struct {
		rule     protocol.Rule
		world    string
		switches int
		way      []string
	}{
		{protocol.Wait, "increment", 2, nil},
		{protocol.Second, "increment", 2, nil},
		{protocol.Order, "leftovers", 2, nil},
		{protocol.Lease, "leftovers", 2, nil},
		{protocol.Heed, "copy", 2, nil},
		{protocol.Swap, "forgotten", 2, []string{"F delete leases/"}},
		{protocol.Spend, "increment", 2, nil},
		{protocol.Scar, "again", 1, []string{"R swap leases/"}},
		{protocol.Renew, "copy", 2, nil},
		{protocol.Fence, "two pruners", 1, []string{"P1 create prune/mark.json", "P1 swap prune/mark.json", "P1 swap prune/mark.json"}},
		{protocol.Bases, "increment", 2, []string{"W get domains/"}},
		{protocol.Fence, "name again", 2, []string{"F swap domains/"}},
		{protocol.Strikes, "host", 2, nil},
		{protocol.Look, "host", -1, nil},
		{protocol.Rotate, "rotation", 2, nil},
		{protocol.Late, "late", 1, []string{"W domains/ twice"}},
		{protocol.Late, "late revision", 1, []string{"R domains/ twice", "R delete leases/", "F delete leases/"}},
		{protocol.Late, "late lease", 2, []string{"W leases/ twice", "W create domains/"}},
	} {
		rule := in.rule
		t.Run(rule.String()+" "+in.world, func(t *testing.T) {
			w := worlds()[in.world]
			w.without, w.way = map[protocol.Rule]bool{rule: true}, in.way
			w.in(t, func(x *explorer) {
				f := x.explore(in.switches, 20000)
				t.Logf("%s: %d states, %d histories: %v", w, f.states, x.nodes, f.lost)
				if f.lost == nil {
					t.Errorf("%s: no checkpoint is lost", w)
				}
			})
		})
		tried[rule] = true
	}
	for _, rule := range protocol.Rules() {
		if !tried[rule] {
			t.Errorf("rule %v is not tried", rule)
		}
	}
}
