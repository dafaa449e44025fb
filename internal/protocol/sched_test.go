// SPDX-License-Identifier: Apache-2.0

package protocol_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing/synctest"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
)

// A run is one order of the operations of some processes on one store. Each process is
// real code on a store of its own, whose operations wait until the scheduler lets them go
// on, one at a time. Everything runs in one bubble, where the scheduler knows when all
// others wait, and where time stands still, so that what is stored depends on nothing but
// the order.
type run struct {
	store objstore.Store // what they share
	procs []*proc
	world *world

	mu      sync.Mutex
	pending []*op
	over    bool

	crashes, suspicions int // that may still come
	changes             int // to the store
	content             map[string]uint64
	steps               []string
}

// proc is one process.
type proc struct {
	name    string
	do      func(ctx context.Context, p *proc) error
	repo    *chain.Repository
	crashes bool // it may crash

	started, done, dead bool
	runs                []string // the leases and marks that are its
	err                 error
	history             uint64 // of what it asked and was told
	uuids               uint64
	last                *op  // that was carried out
	fenced              bool // it has just seen that the mark is its own, which deletes
	granted, woken      int
}

// op waits for the scheduler.
type op struct {
	p         *proc
	kind, key string
	since     int // changes to the store when a pause began
	go_       chan answer
}

// answer is what the scheduler says.
type answer struct {
	err  error // the process has crashed, or the run is over
	yes  bool  // to a question
	back bool  // what was stored just now is read back
}

var errCrashed = errors.New("crashed")

func (o *op) writes() bool { return o.kind != "get" && o.kind != "list" && o.kind != "stat" }

// class is what kind of object it is about.
func (o *op) class() string {
	class, _, _ := strings.Cut(o.key, "/")
	return class
}

func (o *op) name() string { return o.p.name + " " + o.kind + " " + o.key }

// wait makes an operation known and waits.
func (r *run) wait(p *proc, kind, key string) answer {
	o := &op{p: p, kind: kind, key: key, go_: make(chan answer, 1)}
	r.mu.Lock()
	if r.over || p.dead {
		r.mu.Unlock()
		return answer{err: errCrashed}
	}
	o.since = r.changes
	if !r.matters(o) {
		back := p.last != nil && p.last.writes() && o.key == p.last.key
		p.last = o
		r.mu.Unlock()
		return answer{back: back}
	}
	r.pending = append(r.pending, o)
	r.mu.Unlock()
	return <-o.go_
}

// matters reports whether the order of an operation among those of others can matter:
// what is read of objects that never change does not, nor what is read back of what was
// stored just now. Unless the world is a fine one, a listing and the reading of what it
// lists is one step. The mutex is held.
func (r *run) matters(o *op) bool {
	last := o.p.last // that was carried out
	back := o.kind == "get" && last != nil && last.writes() && o.key == last.key
	goesOn := last != nil && !o.writes() && !last.writes() && o.class() == last.class() && !r.world.fine
	switch {
	case back, goesOn:
		return false
	case o.kind == "get" && (strings.HasPrefix(o.key, "maps/") || strings.HasPrefix(o.key, "index/") || strings.HasPrefix(o.key, "prune/") && o.key != chain.MarkKey):
		return false
	case o.key == chain.ConfigKey, strings.HasPrefix(o.key, "index/"), strings.HasPrefix(o.key, "prune/") && o.key != chain.MarkKey:
		return false
	}
	return true
}

// told notes what an operation gave.
func (r *run) told(p *proc, what string, data ...[]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var h maphash.Hash
	h.SetSeed(hashSeed)
	var was [8]byte
	binary.LittleEndian.PutUint64(was[:], p.history)
	_, _ = h.Write(was[:])
	_, _ = h.WriteString(what)
	for _, d := range data {
		_, _ = h.Write(normal(d))
	}
	p.history = h.Sum64()
}

var hashSeed = maphash.MakeSeed()

// normal is data without what the clock of the machine says.
func normal(data []byte) []byte {
	at := bytes.Index(data, []byte(`"boot_id"`))
	if at < 0 || !bytes.Contains(data, []byte(chain.MarkFormat)) {
		return data
	}
	var lines [][]byte
	for line := range bytes.Lines(data) {
		if text := strings.TrimSpace(string(line)); strings.HasPrefix(text, `"since": `) && !strings.Contains(text, "T") || strings.HasPrefix(text, `"sha256":`) {
			continue
		}
		lines = append(lines, line)
	}
	return bytes.Join(lines, nil)
}

// changed notes what stands under a key; nil: nothing.
func (r *run) changed(key string, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes++
	if data == nil {
		delete(r.content, key)
		return
	}
	r.content[key] = maphash.Bytes(hashSeed, normal(data))
}

// state is a hash of all that the rest of the run depends on, and whose turn it is.
func (r *run) state(turn *proc) uint64 {
	var h maphash.Hash
	h.SetSeed(hashSeed)
	var keys []string
	for key := range r.content {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		fmt.Fprintf(&h, "%s %x\n", key, r.content[key])
	}
	for _, p := range r.procs {
		fmt.Fprintf(&h, "%s %v %v %v %v %x\n", p.name, p.started, p.done, p.dead, p.fenced, p.history)
	}
	if turn != nil {
		_, _ = h.WriteString(turn.name)
	}
	fmt.Fprint(&h, r.crashes, r.suspicions)
	return h.Sum64()
}

// gate is the store of one process.
type gate struct {
	r *run
	p *proc
}

func (g gate) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	kind := "create"
	switch {
	case o.Old != nil:
		kind = "swap"
	case o.Mode == objstore.Replace:
		kind = "put"
	}
	if a := g.r.wait(g.p, kind, key); a.err != nil {
		return a.err
	}
	data := make([]byte, body.Size())
	if _, err := io.ReadFull(io.NewSectionReader(body, 0, body.Size()), data); err != nil {
		return err
	}
	err := g.r.store.Put(context.Background(), key, bytes.NewReader(data), o)
	if err == nil {
		g.r.changed(key, data)
	}
	g.p.fenced = false
	g.r.told(g.p, fmt.Sprint("put ", key, errText(err)), data)
	return err
}

func (g gate) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	a := g.r.wait(g.p, "get", key)
	if a.err != nil {
		return nil, a.err
	}
	in, err := g.r.store.Get(context.Background(), key, offset, length)
	var data []byte
	if err == nil {
		data, err = io.ReadAll(in)
		_ = in.Close()
	}
	g.p.fenced = key == chain.MarkKey && !a.back && bytes.Contains(data, []byte(`"state": "deleting"`)) && g.p.owns(data)
	g.r.told(g.p, fmt.Sprint("get ", key, offset, length, errText(err)), data)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// owns reports whether a mark is this process's.
func (p *proc) owns(mark []byte) bool {
	return slices.ContainsFunc(p.runs, func(run string) bool { return bytes.Contains(mark, []byte(`"owner": "`+run)) })
}

func (g gate) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if a := g.r.wait(g.p, "stat", key); a.err != nil {
		return objstore.Info{}, a.err
	}
	info, err := g.r.store.Stat(context.Background(), key)
	g.r.told(g.p, fmt.Sprint("stat ", key, info.Size, errText(err)))
	return info, err
}

func (g gate) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		if a := g.r.wait(g.p, "list", prefix); a.err != nil {
			yield(objstore.Info{}, a.err)
			return
		}
		var all []objstore.Info
		for info, err := range g.r.store.List(context.Background(), prefix) {
			if err != nil {
				yield(info, err)
				return
			}
			all = append(all, info)
		}
		g.r.told(g.p, fmt.Sprint("list ", prefix, all))
		for _, info := range all {
			if !yield(info, nil) {
				return
			}
		}
	}
}

func (g gate) Delete(ctx context.Context, key string) error {
	if a := g.r.wait(g.p, "delete", key); a.err != nil {
		return a.err
	}
	err := g.r.store.Delete(context.Background(), key)
	g.r.changed(key, nil)
	g.r.told(g.p, fmt.Sprint("delete ", key, errText(err)))
	return err
}

func errText(err error) string {
	switch {
	case err == nil:
		return " ok"
	case errors.Is(err, objstore.ErrExists):
		return " exists"
	case errors.Is(err, objstore.ErrChanged):
		return " changed"
	case errors.Is(err, objstore.ErrNotFound):
		return " absent"
	}
	return " " + err.Error()
}

// choice is one thing that can happen next.
type choice struct {
	name string
	p    *proc // that goes on; nil: that is no matter
	do   func()
}

// choices are all that can.
func (r *run) choices() []choice {
	var all []choice
	for _, p := range r.procs {
		if p.done || p.dead {
			continue
		}
		if !p.started {
			all = append(all, choice{p.name + " begins", p, func() { r.start(p) }})
			continue
		}
		all = append(all, r.choicesOf(p)...)
	}
	if len(all) == 0 {
		// Those who wait for a change look once more.
		for _, o := range r.pending {
			if o.kind == "pause" && o.p.woken < 2 {
				return []choice{{o.name() + " ends", o.p, func() { o.p.woken++; r.grant(o, answer{}) }}}
			}
		}
	}
	return all
}

func (r *run) choicesOf(p *proc) []choice {
	var ops []*op
	for _, o := range r.pending {
		if o.p == p {
			ops = append(ops, o)
		}
	}
	slices.SortStableFunc(ops, func(a, b *op) int { return strings.Compare(a.name(), b.name()) })
	var all []choice
	last := ""
	for _, o := range ops {
		// Of requests that a process makes at once, alike ones go in one order.
		class := o.kind + o.class()
		if class == last {
			continue
		}
		last = class
		all = append(all, r.answers(o)...)
	}
	if len(ops) > 0 && p.crashes && r.crashes > 0 && p.granted > 0 {
		all = append(all, choice{p.name + " crashes", nil, func() {
			r.crashes--
			r.kill(p)
		}})
	}
	return all
}

// answers are what can become of an operation.
func (r *run) answers(o *op) []choice {
	grant := func(name string, a answer) choice {
		return choice{name, o.p, func() { r.grant(o, a) }}
	}
	switch {
	case o.kind == "pause" && o.since == r.changes:
		return nil // until something changes
	case o.kind == "ended?":
		no, yes := grant(o.name()+" no", answer{}), grant(o.name()+" yes", answer{yes: true})
		who := r.whose(o.key)
		switch {
		case who == nil || who.dead || who.done:
			return []choice{yes}
		case who == o.p || r.suspicions == 0 || who.fenced:
			return []choice{no}
		}
		return []choice{no, {yes.name, o.p, func() { r.suspicions--; yes.do() }}}
	case o.key == chain.MarkKey && (o.kind == "swap" || o.kind == "put"):
		// To take a mark over takes a day; a look at it is good for minutes.
		for _, p := range r.procs {
			if p != o.p && p.fenced && !p.dead && !p.done {
				return nil
			}
		}
	}
	return []choice{grant(o.name(), answer{})}
}

// whose is the process of a lease or a mark.
func (r *run) whose(id string) *proc {
	for _, p := range r.procs {
		if slices.Contains(p.runs, id) {
			return p
		}
	}
	return nil
}

func (r *run) grant(o *op, a answer) {
	r.mu.Lock()
	r.pending = slices.DeleteFunc(r.pending, func(p *op) bool { return p == o })
	r.mu.Unlock()
	o.p.granted++
	o.p.last = o
	uuids.turn(o.p)
	o.go_ <- a
	synctest.Wait()
}

func (r *run) start(p *proc) {
	p.started = true
	ctx := protocol.WithTest(context.Background(), &protocol.Test{
		Without: r.world.without,
		Ended: func(id string) bool {
			a := r.wait(p, "ended?", id)
			if a.err == nil {
				r.told(p, fmt.Sprint("ended? ", id, a.yes))
			}
			return a.yes
		},
		Pause: func(context.Context) error {
			a := r.wait(p, "pause", "")
			return a.err
		},
	})
	uuids.turn(p)
	go func() {
		err := p.do(ctx, p)
		r.mu.Lock()
		defer r.mu.Unlock()
		p.err, p.done = err, !p.dead
		p.fenced = false
	}()
	synctest.Wait()
}

// kill ends a process in the middle of what it does: none of its operations is carried
// out any more.
func (r *run) kill(p *proc) {
	r.mu.Lock()
	p.dead, p.fenced = true, false
	var mine []*op
	for _, o := range r.pending {
		if o.p == p {
			mine = append(mine, o)
		}
	}
	r.pending = slices.DeleteFunc(r.pending, func(o *op) bool { return o.p == p })
	r.mu.Unlock()
	for _, o := range mine {
		o.go_ <- answer{err: errCrashed}
	}
	synctest.Wait()
}

// end lets all that waits go.
func (r *run) end() {
	r.mu.Lock()
	r.over = true
	r.mu.Unlock()
	for _, p := range r.procs {
		r.kill(p)
	}
}
