// SPDX-License-Identifier: Apache-2.0

package protocol_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
)

// found is what exploring a world came to.
type found struct {
	states, runs, steps int
	lost                error // a checkpoint that lacks an object
	trace               []string
	ends                map[string]int // how processes ended
	limited             bool
	pruned              int      // objects deleted, over all runs
	stuck               []string // a run in which a process waits for what does not come
}

// branch is a place in some run where another choice can be made.
type branch struct {
	up       *branch
	choice   string
	switches int // that were made till then away from who could have gone on
}

func (b *branch) choices() []string {
	var all []string
	for ; b != nil; b = b.up {
		all = append(all, b.choice)
	}
	for i, j := 0, len(all)-1; i < j; i, j = i+1, j-1 {
		all[i], all[j] = all[j], all[i]
	}
	return all
}

// explore runs a world in all orders in which it is at most switches times that one
// process has to wait for another though it could go on; each state once; those with the
// fewest first, until a checkpoint is lost. limit bounds the runs.
func (w *world) explore(t *testing.T, switches, limit int) *found {
	f := &found{ends: make(map[string]int)}
	synctest.Test(t, func(t *testing.T) {
		base := w.begin(t)
		seen := make(map[uint64]int)
		todo := make([][]*branch, switches+1)
		todo[0] = []*branch{nil}
		for used := 0; used <= switches; {
			n := len(todo[used])
			if n == 0 {
				used++
				continue
			}
			if f.runs == limit {
				f.limited = true
				return
			}
			at := todo[used][n-1]
			todo[used] = todo[used][:n-1]
			for _, b := range w.follow(t, base, at, seen, switches, f) {
				todo[b.switches] = append(todo[b.switches], b)
			}
			if f.lost != nil {
				return
			}
		}
	})
	return f
}

// begin makes what stands in the beginning.
func (w *world) begin(t *testing.T) *setup {
	uuids.turn(nil)
	repo, err := chain.Init(t.Context(), objstore.NewMem(), chain.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s := &setup{t: t, repo: repo, made: make(map[string]*chain.Manifest), stock: &stock{objstore.NewMem(), make(map[string][]archive.MapRef)}}
	w.before(s)
	return s
}

// follow makes one run: by the choices that led to the branch, then by the first that
// there is, until a state that was seen. It returns the other choices on the way.
func (w *world) follow(t *testing.T, base *setup, at *branch, seen map[uint64]int, most int, f *found) []*branch {
	f.runs++
	r := &run{store: objstore.NewMem(), world: w, crashes: w.crashes, suspicions: w.suspicions, content: make(map[string]uint64)}
	for info, err := range base.repo.Store.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		data, err := objstore.ReadAll(t.Context(), base.repo.Store, info.Key, 1<<30)
		if err == nil {
			err = r.store.Put(t.Context(), info.Key, strings.NewReader(string(data)), objstore.PutOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		r.changed(info.Key, data)
	}
	r.procs = w.procs(base)
	for _, p := range r.procs {
		p.repo = &chain.Repository{Store: gate{r, p}, Config: base.repo.Config}
	}
	defer r.end()
	check := &checker{repo: &chain.Repository{Store: r.store, Config: base.repo.Config}}
	r.head()
	var todo []*branch
	var turn *proc
	prefix := at.choices()
	for n := 0; ; n++ {
		choices := r.choices()
		var next *choice
		if n < len(prefix) {
			for i := range choices {
				if choices[i].name == prefix[n] {
					next = &choices[i]
				}
			}
			if next == nil {
				t.Fatalf("%s: %q was possible once, and is not now, after\n  %s", w, prefix[n], strings.Join(r.steps, "\n  "))
			}
		} else {
			used := 0
			if at != nil {
				used = at.switches
			}
			state := r.state(turn)
			if before, ok := seen[state]; ok && before <= used {
				return todo
			}
			seen[state] = used
			f.states++
			if len(choices) == 0 {
				r.tally(t, f)
				return todo
			}
			var others []*branch
			next, others = order(choices, turn, at, used)
			for _, b := range others {
				if b.switches <= most {
					todo = append(todo, b)
				}
			}
			at = &branch{at, next.name, used}
		}
		if next.p != nil {
			turn = next.p
		}
		r.steps = append(r.steps, next.name)
		before := r.changes
		next.do()
		f.steps++
		if strings.Contains(next.name, " delete packs/") {
			f.pruned++
		}
		if n+1 >= len(prefix) && r.changes != before {
			if err := check.all(t.Context()); err != nil {
				f.lost, f.trace = err, r.steps
				return nil
			}
		}
	}
}

// head makes the run begin as its world says.
func (r *run) head() {
	for _, until := range r.world.head {
		who, _, _ := strings.Cut(until, " ")
		for done := false; !done; {
			choices := r.choices()
			i := slices.IndexFunc(choices, func(c choice) bool { return strings.HasPrefix(c.name, who+" ") })
			if i < 0 {
				panic(fmt.Sprintf("%s: there is no %s after\n  %s", r.world, until, strings.Join(r.steps, "\n  ")))
			}
			done = strings.HasPrefix(choices[i].name, until)
			r.steps = append(r.steps, choices[i].name)
			choices[i].do()
		}
	}
}

// order is what comes next, and what else could, given whose turn it is.
func order(choices []choice, turn *proc, at *branch, used int) (*choice, []*branch) {
	goesOn := -1
	for i := range choices {
		if turn != nil && choices[i].p == turn {
			goesOn = i
			break
		}
	}
	first := max(goesOn, 0)
	var others []*branch
	for i := range choices {
		if i == first {
			continue
		}
		cost := used
		if goesOn >= 0 && choices[i].p != turn { // also by a crash
			cost++
		}
		others = append(others, &branch{at, choices[i].name, cost})
	}
	return &choices[first], others
}

// tally notes how the processes of a run that is over ended.
func (r *run) tally(t *testing.T, f *found) {
	for _, p := range r.procs {
		how := "done"
		switch {
		case p.dead:
			how = "crashed"
		case !p.done:
			how = "waits for ever"
			if f.stuck == nil {
				f.stuck = r.steps
			}
		case p.err != nil && !expected(p.err):
			t.Fatalf("%s: %s ends with: %v\n  %s", r.world, p.name, p.err, strings.Join(r.steps, "\n  "))
		case p.err != nil:
			how = "gave up"
		}
		f.ends[p.name+" "+how]++
	}
}

// checker looks whether every checkpoint has all its objects.
type checker struct {
	repo *chain.Repository
}

func (c *checker) all(ctx context.Context) error {
	ms, unusable, err := c.repo.Manifests(ctx, "web")
	if err != nil {
		return err
	}
	for _, err := range unusable {
		return err
	}
	for _, m := range ms {
		objects, err := c.repo.Needs(ctx, m, nil)
		if err != nil {
			return fmt.Errorf("checkpoint %s: %w", m.Checkpoint, err)
		}
		for _, o := range objects {
			stands, err := archive.Stands(ctx, c.repo.Store, o.Key, o.Ref.Length)
			if err != nil {
				return err
			}
			if !stands {
				return fmt.Errorf("checkpoint %s lacks %s", m.Checkpoint, o.Key)
			}
		}
	}
	return nil
}

// worldRuns is how many runs of each world are made, at most; IMGBACKUP_SOAK=N makes them
// N times as many, with one switch more.
const worldRuns = 400

// TestInterleavings runs real writers, repackers and pruners through all orders of the
// steps that they take in the store, with few switches, with a crash and with live ones
// that are taken for dead: no checkpoint ever lacks an object.
func TestInterleavings(t *testing.T) {
	switches, limit := 2, worldRuns
	if n, err := strconv.Atoi(os.Getenv("IMGBACKUP_SOAK")); err == nil {
		switches, limit = 3, n*worldRuns
	}
	states, runs, steps := 0, 0, 0
	for _, name := range slices.Sorted(maps.Keys(worlds())) {
		w := worlds()[name]
		f := w.explore(t, switches, limit)
		t.Logf("%s: %d states, %d runs, all of them %v, %v", w, f.states, f.runs, !f.limited, f.ends)
		states, runs, steps = states+f.states, runs+f.runs, steps+f.steps
		if f.stuck != nil {
			t.Errorf("%s: a process waits for what does not come:\n  %s", w, strings.Join(f.stuck, "\n  "))
		}
		if f.lost != nil {
			t.Errorf("%s: %v\n  %s", w, f.lost, strings.Join(f.trace, "\n  "))
		}
		if f.pruned == 0 {
			t.Errorf("%s: nothing was ever deleted", w)
		}
	}
	t.Logf("%d orders, %d steps, %d states", runs, steps, states)
}

// TestRules: each rule that is left out loses a checkpoint in some world.
func TestRules(t *testing.T) {
	tried := make(map[protocol.Rule]bool)
	for rule, in := range map[protocol.Rule]struct {
		world    string
		switches int
		head     []string
	}{
		protocol.Wait:   {"increment", 2, nil},
		protocol.Second: {"increment", 2, nil},
		protocol.Order:  {"forgotten", 1, []string{"F delete domains/", "P list leases/"}},
		protocol.Lease:  {"leftovers", 2, nil},
		protocol.Heed:   {"copy", 2, nil},
		protocol.Swap:   {"forgotten", 2, nil},
		protocol.Spend:  {"increment", 2, nil},
		protocol.Scar:   {"again", 1, []string{"R swap leases/", "R get domains/", "F delete domains/"}},
		protocol.Renew:  {"copy", 1, []string{"W create domains/"}},
		protocol.Fence:  {"two pruners", 1, []string{"P1 create prune/mark.json", "P1 swap prune/mark.json", "P1 swap prune/mark.json"}},
		protocol.Bases:  {"increment", 1, []string{"W get domains/"}},
	} {
		t.Run(rule.String(), func(t *testing.T) {
			w := worlds()[in.world]
			w.without, w.head = map[protocol.Rule]bool{rule: true}, in.head
			f := w.explore(t, in.switches, 4000)
			t.Logf("%s: %d states, %d runs", w, f.states, f.runs)
			if f.lost == nil {
				t.Errorf("%s: no checkpoint is lost", w)
			}
		})
		tried[rule] = true
	}
	for _, rule := range protocol.Rules() {
		if !tried[rule] {
			t.Errorf("rule %v is not tried", rule)
		}
	}
}
