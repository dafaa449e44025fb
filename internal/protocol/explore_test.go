// SPDX-License-Identifier: Apache-2.0

package protocol_test

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/protocol"
)

// maxProcs bounds the processes of a world.
const maxProcs = 5

// state is a moment of a world: all that the rest depends on. It is never changed.
type state struct {
	objects objects
	procs   [maxProcs]*node
	dead    [maxProcs]bool
	idle    [maxProcs]bool  // it pauses, and nothing has changed since
	woken   [maxProcs]uint8 // so often all others waited, too
	late    []*call         // that may still arrive
	lates   int             // that may still be sent twice
	crashes int             // that may still come
	suspect int             // live processes that may still be taken for dead
	turn    int8            // whose it was; -1: nobody's, or that is no matter
}

func (s *state) hash() uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	s.objects.hash(&h)
	for i, n := range s.procs {
		if n != nil {
			maphash.WriteComparable(&h, [2]uint64{n.n, uint64(s.woken[i])})
		}
	}
	maphash.WriteComparable(&h, s.dead)
	maphash.WriteComparable(&h, s.idle)
	maphash.WriteComparable(&h, [4]int{s.lates, s.crashes, s.suspect, int(s.turn)})
	for _, c := range s.late {
		maphash.WriteComparable(&h, c)
	}
	return h.Sum64()
}

// found is what exploring a world came to.
type found struct {
	states, orders, steps int
	lost                  error // what must not be
	trace                 []string
	ends                  map[string]int // how processes ended
	limited               bool           // not all was seen
	pruned                int            // objects deleted
}

func (f *found) String() string {
	all := "all of them"
	if f.limited {
		all = "not all of them"
	}
	return fmt.Sprintf("%d states, %s; %d steps, %d ends %v", f.states, all, f.steps, f.orders, f.ends)
}

// explorer finds out what can become of a world.
type explorer struct {
	t     *testing.T
	world *world
	*setup
	first *state
	procs []*process
	check *checker

	nodes         uint64
	started, live int
}

// in does something with a world, in a bubble.
func (w *world) in(t *testing.T, do func(x *explorer)) {
	synctest.Test(t, func(t *testing.T) {
		uuids.turn(nil)
		x := &explorer{t: t, world: w, setup: newSetup(t)}
		w.before(x.setup)
		x.first = &state{objects: x.objects(t), lates: w.lates, crashes: w.crashes, suspect: w.suspicions, turn: -1}
		x.procs = w.procs(x.setup)
		x.check = newChecker(x.setup)
		defer func() {
			for _, p := range x.procs {
				p.forget()
			}
		}()
		do(x)
	})
}

// start is the first moment.
func (x *explorer) start() *state {
	s := *x.first
	for i, p := range x.procs {
		x.begin(p)
		s.procs[i] = p.root
	}
	return x.settled(&s)
}

// led is the moment to which a way leads: each of its steps names a process, which goes on
// until it has done something that has all the other words.
func (x *explorer) led(way []string) *state {
	s := x.start()
	for _, until := range way {
		words := strings.Fields(until)
		is := func(c choice) bool { return strings.HasPrefix(c.name, words[0]+" ") }
		isLast := func(c choice) bool {
			return is(c) && !slices.ContainsFunc(words[1:], func(word string) bool { return !strings.Contains(c.name, word) })
		}
		for done := false; !done; {
			choices := x.choices(s)
			i := slices.IndexFunc(choices, isLast)
			if done = i >= 0; !done {
				i = slices.IndexFunc(choices, is)
			}
			if i < 0 {
				x.t.Fatalf("%s: it never comes to %s", x.world, until)
			}
			s = x.next(s, choices[i])
		}
	}
	return s
}

// choice is one thing that can happen next.
type choice struct {
	name        string
	p           int   // the process that does something; -1: none
	call        int   // that is answered; -1: it crashes
	late        *call // that arrives
	yes         bool  // the answer to a question
	twice, wake bool
}

// choices are all that can happen.
func (x *explorer) choices(s *state) []choice {
	var all []choice
	for i, n := range s.procs {
		if n == nil || n.done || s.dead[i] {
			continue
		}
		for j, c := range n.calls {
			// Of requests that a process makes at once, alike ones go in one order.
			if j > 0 && c.kind == n.calls[j-1].kind && c.class() == n.calls[j-1].class() {
				continue
			}
			all = append(all, x.answers(s, i, j)...)
		}
		if x.procs[i].crashes && s.crashes > 0 && n.up != nil {
			all = append(all, choice{name: n.p.name + " crashes", p: i, call: -1})
		}
	}
	if len(all) == 0 {
		// Those who wait for a change look once more.
		for i, n := range s.procs {
			if n == nil || n.done || s.dead[i] || s.woken[i] == 2 {
				continue
			}
			if j := n.pause(); j >= 0 {
				return []choice{{name: n.calls[j].name + " ends", p: i, call: j, wake: true}}
			}
		}
	}
	for i, c := range s.late {
		if !slices.Contains(s.late[:i], c) {
			all = append(all, choice{name: "late: " + c.name, p: -1, late: c})
		}
	}
	return all
}

// pause is the call by which it waits for a change, or -1.
func (n *node) pause() int {
	return slices.IndexFunc(n.calls, func(c *call) bool { return c.kind == "pause" })
}

// answers are what can become of a call.
func (x *explorer) answers(s *state, i, j int) []choice {
	n := s.procs[i]
	c := n.calls[j]
	plain := choice{name: c.name, p: i, call: j}
	switch {
	case c.kind == "pause" && s.idle[i]:
		return nil // until something changes
	case c.kind == "ended?":
		no, yes := plain, plain
		no.name, yes.name, yes.yes = c.name+" no", c.name+" yes", true
		switch who := s.whose(c.key); {
		case who < 0 || s.dead[who] || s.procs[who].done:
			return []choice{yes}
		case who == i || s.suspect == 0 || s.procs[who].fenced || s.procs[who].pinned && !x.world.without[protocol.Fence]:
			return []choice{no}
		}
		return []choice{no, yes}
	case c.key == chain.MarkKey && (c.kind == swap || c.kind == put):
		// To take a mark over takes a day; a look at it is good for minutes.
		for k, other := range s.procs {
			if k != i && other != nil && other.fenced && !s.dead[k] {
				return nil
			}
		}
	}
	if s.lates > 0 && (c.class() == "domains" || c.class() == "leases" || c.class() == "prune") && c.kind != remove && c.stores() {
		twice := plain
		twice.name, twice.twice = c.name+", sent twice", true
		return []choice{plain, twice}
	}
	return []choice{plain}
}

// whose is the process of a lease or a mark, or -1.
func (s *state) whose(id string) int {
	for i, n := range s.procs {
		if n != nil && slices.Contains(n.runs, id) {
			return i
		}
	}
	return -1
}

// next is what comes of a choice.
func (x *explorer) next(s *state, c choice) *state {
	n := *s
	switch {
	case c.late != nil:
		at := slices.Index(s.late, c.late)
		n.late = slices.Delete(slices.Clone(s.late), at, at+1)
		n.objects, _ = s.objects.do(c.late)
		n.stir(s)
		return &n
	case c.call < 0:
		n.dead[c.p], n.crashes = true, s.crashes-1
		return &n
	}
	at := s.procs[c.p]
	asked := at.calls[c.call]
	var told answer
	switch asked.kind {
	case "ended?":
		told.yes = c.yes
		if who := s.whose(asked.key); c.yes && who >= 0 && !s.dead[who] && !s.procs[who].done {
			n.suspect--
		}
	case "pause":
		if c.wake {
			n.woken[c.p]++
		}
		n.idle[c.p] = false
	default:
		n.objects, told = s.objects.do(asked)
	}
	if c.twice {
		told.twice = true
		n.late = append(slices.Clip(s.late), asked)
		n.lates--
	}
	n.procs[c.p] = x.after(at, c.call, told)
	n.stir(s)
	n.pauses(c.p, at)
	return x.settled(&n)
}

// stir wakes who waits for a change, if there was one.
func (s *state) stir(before *state) {
	if !s.objects.same(before.objects) {
		s.idle = [maxProcs]bool{}
	}
}

// pauses notes that a process waits for a change, which it did not at the node before.
func (s *state) pauses(i int, before *node) {
	n := s.procs[i]
	if n.done {
		s.idle[i], s.woken[i] = false, 0
		return
	}
	if j := n.pause(); j >= 0 && (before.pause() < 0 || before.calls[before.pause()] != n.calls[j]) {
		s.idle[i] = true
	}
}

// settled lets go on what is no step of its own. It changes s.
func (x *explorer) settled(s *state) *state {
	for i := range s.procs {
		for again := true; again; {
			again = false
			n := s.procs[i]
			if n == nil || n.done || s.dead[i] {
				break
			}
			for j, c := range n.calls {
				if x.matters(n, c) {
					continue
				}
				before := *s
				var told answer
				s.objects, told = s.objects.do(c)
				s.procs[i] = x.after(n, j, told)
				s.stir(&before)
				s.pauses(i, n)
				again = true
				break
			}
		}
	}
	return s
}

// matters reports whether the order of a call among those of others can matter: what is
// read of objects that never change does not, nor what is read back of what was stored
// just now. Unless each step counts, a listing and the reading of what it lists is one.
func (x *explorer) matters(n *node, c *call) bool {
	last := n.last
	back := c.kind == "get" && last != nil && last.stores() && c.key == last.key
	goesOn := last != nil && !c.writes() && !last.writes() && c.class() == last.class() && !n.p.every
	lists := strings.HasPrefix(c.key, "prune/") && c.key != chain.MarkKey
	switch {
	case c.key == chain.ConfigKey, lists, back, goesOn:
		return false
	case n.p.every:
		return true
	}
	return c.class() != "index" && (c.kind != "get" || c.class() != "maps")
}

// trace is how a state was reached.
type trace struct {
	up   *trace
	name string
}

func (t *trace) steps() (all []string) {
	for ; t != nil; t = t.up {
		all = append(all, t.name)
	}
	slices.Reverse(all)
	return all
}

// place is a state that is to be looked at.
type place struct {
	*state
	way      *trace
	switches int // away from who could have gone on
}

// explore looks at every state that can be reached with at most so many switches, -1:
// with any number, each once; and at no more of them than the limit. It ends when
// something is lost. With switches, those with the fewest come first.
func (x *explorer) explore(switches, limit int) *found {
	f := &found{ends: make(map[string]int)}
	seen := make(map[uint64]int8)
	todo := make([][]place, max(switches, 0)+1)
	todo[0] = []place{{state: x.led(x.world.way)}}
	seen[todo[0][0].hash()] = 0
	for used := 0; used < len(todo); {
		if len(todo[used]) == 0 {
			used++
			continue
		}
		if f.states == limit {
			f.limited = true
			return f
		}
		var p place
		p, todo[used] = pop(todo[used])
		f.states++
		if !x.look(p, f, switches, func(q place) {
			h := q.hash()
			if before, ok := seen[h]; !ok || int(before) > q.switches {
				seen[h] = int8(q.switches)
				todo[q.switches] = append(todo[q.switches], q)
			}
		}) {
			return f
		}
	}
	return f
}

// pop takes the youngest: so what the processes do goes on, mostly, from where they are.
func pop(q []place) (place, []place) { return q[len(q)-1], q[:len(q)-1] }

// look takes each step that is possible at a place. It reports whether all is well.
func (x *explorer) look(p place, f *found, switches int, to func(place)) bool {
	choices := x.choices(p.state)
	if len(choices) == 0 {
		return x.end(p.state, p.way, f)
	}
	goesOn := slices.ContainsFunc(choices, func(c choice) bool { return c.p == int(p.turn) && c.call >= 0 })
	for _, c := range choices {
		q := place{state: x.next(p.state, c), way: &trace{p.way, c.name}, switches: p.switches}
		f.steps++
		if switches >= 0 {
			if goesOn && (c.p != int(p.turn) || c.call < 0) {
				q.switches++
			}
			q.turn = int8(c.p)
			if q.switches > switches {
				f.limited = true
				continue
			}
		}
		if !x.sound(p.state, q.state, q.way, f) {
			return false
		}
		to(q)
	}
	return true
}

// sound reports whether no checkpoint lacks anything after a step.
func (x *explorer) sound(before, s *state, way *trace, f *found) bool {
	if s.objects.same(before.objects) {
		return true
	}
	for _, o := range before.objects {
		if strings.HasPrefix(o.key, "packs/") && s.objects.get(o.key) == nil {
			f.pruned++
		}
	}
	err := x.check.all(s.objects)
	if err == nil {
		err = x.check.forgotten(before.objects, s.objects)
	}
	if err != nil {
		f.lost, f.trace = err, way.steps()
	}
	return err == nil
}

// pruneCrashed reports whether a process has crashed whose mark deletes: only another prune
// ends that for a host.
func (x *explorer) pruneCrashed(s *state) bool {
	mark := s.objects.get(chain.MarkKey)
	for i, n := range s.procs {
		if n != nil && s.dead[i] && mark != nil && n.deletes(mark.data) {
			return true
		}
	}
	return false
}

// end notes how the processes ended, when nothing can happen any more.
func (x *explorer) end(s *state, way *trace, f *found) bool {
	f.orders++
	for i, n := range s.procs {
		if n == nil {
			continue
		}
		how := " done"
		switch {
		case s.dead[i]:
			how = " crashed"
		case !n.done && n.p.host && x.pruneCrashed(s):
			how = " waits for a manager"
		case !n.done:
			f.lost = fmt.Errorf("%s waits for what does not come: %v", n.p.name, n.names())
		case n.err != nil && !expected(n.err):
			f.lost = fmt.Errorf("%s ends with: %w", n.p.name, n.err)
		case n.err != nil:
			how = " gave up"
		}
		f.ends[n.p.name+how]++
	}
	if f.lost == nil && x.world.after != nil {
		f.lost = x.world.after(x, s)
	}
	if f.lost != nil {
		f.trace = way.steps()
	}
	return f.lost == nil
}

// random makes orders at random, of so many steps together.
func (x *explorer) random(r *rand.Rand, steps int) *found {
	f := &found{ends: make(map[string]int), limited: true}
	seen := make(map[uint64]bool)
	kept := x.nodes
	for f.steps < steps {
		if x.nodes > kept+maxNodes {
			kept = x.nodes
			for _, p := range x.procs {
				p.forget()
			}
		}
		s := x.start()
		var way *trace
		for {
			choices := x.choices(s)
			if len(choices) == 0 {
				if !x.end(s, way, f) {
					return f
				}
				break
			}
			c := pick(r, choices, s)
			next := x.next(s, c)
			way = &trace{way, c.name}
			f.steps++
			if h := next.hash(); !seen[h] {
				seen[h] = true
				f.states++
			}
			if !x.sound(s, next, way, f) {
				return f
			}
			s = next
			s.turn = int8(c.p)
		}
	}
	return f
}

// maxNodes bounds what is remembered of processes.
const maxNodes = 200_000

// pick takes one at random: often of who was at it last, since otherwise all would always
// come equally far, and seldom what happens seldom.
func pick(r *rand.Rand, choices []choice, s *state) choice {
	if r.IntN(2) == 0 {
		var same []choice
		for _, c := range choices {
			if c.p == int(s.turn) && c.p >= 0 && c.call >= 0 {
				same = append(same, c)
			}
		}
		if len(same) > 0 {
			return same[r.IntN(len(same))]
		}
	}
	for {
		c := choices[r.IntN(len(choices))]
		if c.call >= 0 && c.late == nil && !c.yes || r.IntN(8) == 0 || len(choices) == 1 {
			return c
		}
	}
}
