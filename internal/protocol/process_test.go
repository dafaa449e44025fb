// SPDX-License-Identifier: Apache-2.0

package protocol_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/protocol"
)

// process is one of those in a world. Its code is the real one, and what it does next
// depends on nothing but what it was told until then: so what it does is remembered, as a
// tree of what it was told, and the code runs once for each branch of it, not once for
// each order in which it and the others can come there. Each time it runs, what is known
// is compared.
type process struct {
	name    string
	do      func(ctx context.Context, a *actor) error
	crashes bool // it may crash
	pins    bool // it deletes under its lease: no day goes by between its look and that
	host    bool // it has a host's key
	every   bool // each of its steps counts, also reading what never changes

	root *node
	idle []*actor // the youngest last
}

// node is a process after what it was told. It is never changed, but for what follows.
type node struct {
	p    *process
	n    uint64 // the nodes of a world are numbered
	up   *node
	by   int // the call of up that was answered
	told answer

	calls  []*call // that wait for an answer, sorted
	done   bool
	err    error    // of one that is done
	runs   []string // the leases and marks that are its
	last   *call    // that was answered
	fenced bool     // it has just seen that the mark is its own, which deletes
	pinned bool     // it has just seen that its lease stands, under which it deletes

	next map[edge]*node
}

type edge struct {
	call   int
	answer uint64
}

// actor is a process at work: real code that waits, at some node. All of them are in one
// bubble, in which the scheduler knows when all others wait, and in which time stands still.
type actor struct {
	p    *process
	x    *explorer
	repo *chain.Repository
	at   *node

	mu      sync.Mutex
	waiting []*waiting
	over    bool // it is told of nothing any more
	done    bool
	err     error

	uuids uint64
	runs  []string
}

type waiting struct {
	*call
	tell chan answer
}

var errCrashed = errors.New("crashed")

// ask makes a call known, and waits for its answer.
func (a *actor) ask(c *call) (answer, error) {
	c.name = a.p.name + " " + c.kind + " " + c.key
	w := &waiting{c, make(chan answer, 1)}
	a.mu.Lock()
	if a.over {
		a.mu.Unlock()
		return answer{}, errCrashed
	}
	a.waiting = append(a.waiting, w)
	a.mu.Unlock()
	got := <-w.tell
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return answer{}, errCrashed
	}
	return got, nil
}

// run begins to run the process.
func (x *explorer) run(p *process) *actor {
	a := &actor{p: p, x: x}
	a.repo = &chain.Repository{Store: gate{a, x.pool}, Config: x.repo.Config}
	if x.world.signed {
		a.repo.Access = &chain.Access{Authority: authority{p.name, !p.host, nil}}
		if x.world.rotates {
			a.repo.Access.Authority = authority{p.name, !p.host, a.repo.Store}
		}
	}
	ctx := protocol.WithTest(context.Background(), &protocol.Test{
		Without: x.world.without,
		Ended: func(id string) bool {
			got, _ := a.ask(&call{kind: "ended?", key: id})
			return got.yes
		},
		Pause: func(context.Context) error {
			_, err := a.ask(&call{kind: "pause"})
			return err
		},
		Boot: func() (string, time.Duration) { return "a-boot", time.Hour },
	})
	uuids.turn(a)
	go func() {
		err := p.do(ctx, a)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.err, a.done = err, true
	}()
	synctest.Wait()
	a.sort()
	x.started++
	return a
}

func (a *actor) sort() {
	slices.SortStableFunc(a.waiting, func(v, w *waiting) int { return v.compare(w.call) })
}

// end lets it go, without a word.
func (a *actor) end() {
	a.mu.Lock()
	a.over = true
	all := a.waiting
	a.waiting = nil
	a.mu.Unlock()
	uuids.turn(nil)
	for _, w := range all {
		w.tell <- answer{}
	}
	synctest.Wait()
}

// tell answers a call.
func (a *actor) tell(call int, told answer) {
	w := a.waiting[call]
	a.waiting = slices.Delete(a.waiting, call, call+1)
	uuids.turn(a)
	w.tell <- told
	synctest.Wait()
	a.sort()
}

// node is where it is.
func (a *actor) node(up *node, by int, told answer) *node {
	a.x.nodes++
	n := &node{
		p: a.p, n: a.x.nodes, up: up, by: by, told: told, next: make(map[edge]*node),
		done: a.done, err: a.err, runs: slices.Clip(a.runs),
	}
	if !a.done {
		for _, w := range a.waiting {
			n.calls = append(n.calls, w.call)
		}
	}
	if up == nil {
		return n
	}
	n.last = up.calls[by]
	n.fenced, n.pinned = up.fenced, up.pinned
	switch c := n.last; {
	case n.done || c.kind == remove:
		n.pinned = false
	case n.p.pins && c.kind == swap && c.class() == "leases" && told.err == nil:
		n.pinned = true
	}
	switch c := n.last; {
	case n.done:
		n.fenced = false
	case c.kind == create || c.kind == swap || c.kind == put:
		n.fenced = false
	case c.kind == "get":
		back := up.last != nil && up.last.stores() && up.last.key == c.key
		n.fenced = c.key == chain.MarkKey && !back && told.blob != nil && n.deletes(told.blob.data)
	}
	return n
}

// deletes reports whether a mark is this process's, and is deleting.
func (n *node) deletes(mark []byte) bool {
	return bytes.Contains(mark, []byte(`"state": "deleting"`)) &&
		slices.ContainsFunc(n.runs, func(run string) bool { return bytes.Contains(mark, []byte(`"owner": "`+run)) })
}

// check compares what it does with what it did when it was there before.
func (a *actor) check(n *node) {
	same := a.done == n.done && (a.done || len(a.waiting) == len(n.calls))
	for i := 0; same && !a.done && i < len(n.calls); i++ {
		same = a.waiting[i].compare(n.calls[i]) == 0
	}
	if !same {
		a.x.t.Fatalf("%s: %s does other things than when it was told the same before: %v, %v, instead of %v, %v\n  after %s",
			a.x.world, a.p.name, a.names(), a.err, n.names(), n.err, strings.Join(n.path(), "\n  "))
	}
}

func (a *actor) names() (all []string) {
	for _, w := range a.waiting {
		all = append(all, w.name)
	}
	return all
}

func (n *node) names() (all []string) {
	for _, c := range n.calls {
		all = append(all, c.name)
	}
	return all
}

// path is what led there.
func (n *node) path() (all []string) {
	for ; n.up != nil; n = n.up {
		all = append(all, fmt.Sprint(n.last.name, " ", n.told.err))
	}
	slices.Reverse(all)
	return all
}

// after is the process when one of its calls has been answered.
func (x *explorer) after(n *node, call int, told answer) *node {
	e := edge{call, told.hash()}
	if next := n.next[e]; next != nil {
		return next
	}
	a := x.actorAt(n)
	a.tell(call, told)
	next := a.node(n, call, told)
	n.next[e] = next
	a.at = next
	if next.done {
		x.live--
		return next
	}
	n.p.idle = append(n.p.idle, a)
	if len(n.p.idle) > maxIdle {
		n.p.idle[0].end()
		n.p.idle = slices.Delete(n.p.idle, 0, 1)
		x.live--
	}
	return next
}

// maxIdle is how many actors of a process are kept.
const maxIdle = 64

// actorAt is an actor that is there: one that waits there, or another that is led there.
func (x *explorer) actorAt(n *node) *actor {
	for i, a := range slices.Backward(n.p.idle) {
		if a.at == n {
			n.p.idle = slices.Delete(n.p.idle, i, i+1)
			return a
		}
	}
	var way []*node
	for at := n; at.up != nil; at = at.up {
		way = append(way, at)
	}
	x.live++
	a := x.run(n.p)
	for _, next := range slices.Backward(way) {
		a.check(next.up)
		a.tell(next.by, next.told)
	}
	a.check(n)
	return a
}

// begin is the process before anybody has told it anything.
func (x *explorer) begin(p *process) {
	if p.root == nil {
		x.live++
		a := x.run(p)
		p.root = a.node(nil, 0, answer{})
		a.at = p.root
		p.idle = append(p.idle, a)
	}
}

// forget makes room: what is known of a process is found out again.
func (p *process) forget() {
	for _, a := range p.idle {
		a.end()
	}
	p.idle, p.root = nil, nil
}

// uuids are the random numbers of this test program: each actor has its own, so that what
// is stored depends on nobody else.
var uuids = &source{}

type source struct {
	mu sync.Mutex
	a  *actor
	n  uint64 // of nobody's
}

func init() { uuid.SetRand(uuids) }

// turn says whose turn it is.
func (s *source) turn(a *actor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.a = a
}

// Read gives the 16 bytes of the next uuid.
func (s *source) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := fnv.New128a()
	var n [8]byte
	if s.a == nil {
		s.n++
		binary.LittleEndian.PutUint64(n[:], s.n)
	} else {
		s.a.uuids++
		binary.LittleEndian.PutUint64(n[:], s.a.uuids)
		_, _ = h.Write([]byte(s.a.p.name))
	}
	_, _ = h.Write(n[:])
	id := h.Sum(nil)
	copy(b, id)
	if s.a != nil && len(b) == 16 {
		u, _ := uuid.FromBytes(id)
		u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80 // as package uuid makes version 4 of it
		s.a.runs = append(s.a.runs, u.String())
	}
	return len(b), nil
}
