// SPDX-License-Identifier: Apache-2.0

// Package split is a store around one that is far away: what is read of an object in one
// go is fetched in pieces, side by side. There each connection has a rate of its own, and an
// object that is read through one alone takes as long as that takes.
//
// All readers of a store share its connections. Each has one of them for what it reads
// next, which it reads as it comes; those that nobody reads through fetch what comes later, into
// memory that all share, for who began first. So a reader gets all connections when it is
// alone. Of many, a few read at once; the others wait for their turn. So those who came first
// end first, one after the other, and what is done with an object in the end goes on beside the
// reading of others. The fewer bytes are left, the smaller the
// pieces are: large ones lose less on the way to the store and back, small ones end together.
// Nobody may keep a reader open while waiting for another of the same store.
package split

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/imgbackup/imgbackup/internal/memory"
	"github.com/imgbackup/imgbackup/objstore"
)

// Bounds of a piece, bytes: a small one costs the way to the store and back for little, a
// large one is waited for, and takes memory unless it is read as it comes.
const (
	leastPiece = 1 << 20
	mostHeld   = 4 << 20
	mostRead   = 8 << 20
)

// What all readers of a store have in memory at once, at most, bytes.
const (
	usualHeld = 64 << 20
	leastHeld = 8 << 20
)

// New returns a store whose readers together hold at most 64 MiB, or less as the budget
// says; s itself where it is near, or has but one connection. It gives every byte that s
// gives, and no other; what fails is told where it is met. An object that is removed while it
// is read ends there.
func New(s objstore.Store, b memory.Budget) objstore.Store {
	held := b.Part(usualHeld, leastHeld)
	connections := objstore.Connections(s)
	if connections < 2 {
		return s
	}
	size := min(max(held/int64(connections), leastPiece), mostHeld) &^ (64<<10 - 1)
	return newStore(s, sizes{least: leastPiece, held: size, read: mostRead}, connections, int(held/size))
}

// sizes bound pieces, bytes.
type sizes struct {
	least int64
	held  int64 // of one in memory
	read  int64 // of one that is read as it comes
}

// newStore fetches so many pieces at once, and has so many in memory.
func newStore(s objstore.Store, bounds sizes, fetched, held int) *store {
	return &store{Store: s, pool: pool{sizes: bounds, connections: fetched, held: held, idle: fetched, room: held, places: places(fetched, held)}}
}

// places is how many read at once: few, but so many that with what is fetched into
// memory all connections are used.
func places(connections, held int) int { return max(connections*3/8, connections-held, 1) }

type store struct {
	objstore.Store
	pool pool
}

// Unwrap returns the store that is read.
func (s *store) Unwrap() objstore.Store { return s.Store }

// Get implements [objstore.Store].
func (s *store) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := errors.Join(objstore.CheckKey(key), objstore.CheckRange(key, offset, length)); err != nil {
		return nil, err
	}
	if length <= s.pool.sizes.held {
		return s.Store.Get(ctx, key, offset, length)
	}
	inner, cancel := context.WithCancel(ctx)
	r := &reader{
		store: s, ctx: inner, cancel: cancel, key: key, next: offset, end: offset + length,
		turn: make(chan span, 1), begun: make(chan *piece, s.pool.held),
	}
	s.pool.add(r)
	if err := r.open(); err != nil {
		_ = r.Close() // says nothing
		return nil, err
	}
	return r, nil
}

// pool is what the readers of a store share.
type pool struct {
	sizes       sizes
	connections int
	held        int // pieces in memory, at most

	mu      sync.Mutex
	idle    int       // pieces that may be fetched beside those that are
	room    int       // pieces that may be in memory beside those that are
	places  int       // for readers beside those that have one
	free    [][]byte  // what was lent before
	readers []*reader // of which not all is asked for; who came first is in front
	coming  []*reader // who wait for a place; likewise
	waiting []*reader // who have one, for a connection to read through; likewise
	left    int64     // bytes that are not asked for, of all readers
}

// span is a part of an object.
type span struct{ offset, length int64 }

// piece is a part of an object, in memory.
type piece struct {
	data []byte        // as long as it was asked for, until it is done
	done chan struct{} // closed when data or err is set
	err  error         // what came after data
}

func (p *pool) add(r *reader) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left += r.end - r.next
	p.coming = append(p.coming, r)
	p.schedule()
}

// admit gives places to those who came first.
func (p *pool) admit() {
	for p.places > 0 && len(p.coming) > 0 {
		r := p.coming[0]
		p.coming = p.coming[1:]
		p.places--
		r.placed = true
		p.readers = append(p.readers, r)
		p.waiting = append(p.waiting, r)
	}
}

// What comes next of an object.
const (
	itsTurn = iota // once there is a connection
	another        // a piece that is on its way to the memory by now
	ended          // nothing
)

// want has a reader wait for its turn to read on, unless something else comes next.
func (p *pool) want(r *reader) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case len(r.begun) > 0:
		return another
	case r.next == r.end:
		return ended
	}
	p.wait(r)
	return itsTurn
}

// wait needs the lock, as do all that follow without taking it.
func (p *pool) wait(r *reader) {
	p.waiting = append(p.waiting, r)
	p.schedule()
}

// schedule has as much fetched as there are connections and room for.
func (p *pool) schedule() {
	for p.admit(); p.idle > 0; p.admit() {
		switch {
		case len(p.waiting) > 0:
			r := p.waiting[0]
			p.waiting = p.waiting[1:]
			p.idle--
			r.turn <- p.take(r, p.sizes.read) // which holds one
		case p.room > 0 && len(p.readers) > 0:
			r := p.readers[0]
			s := p.take(r, p.sizes.held)
			p.idle--
			p.room--
			pc := &piece{data: p.buffer(s.length), done: make(chan struct{})}
			r.begun <- pc // which holds all that there can be
			r.work.Go(func() { p.fetch(r, pc, s.offset) })
		default:
			return
		}
	}
}

// take is of what a reader has not asked for the next piece, of at most most bytes.
func (p *pool) take(r *reader, most int64) span {
	n := min(max(p.left/int64(p.connections), p.sizes.least), most, r.end-r.next)
	s := span{r.next, n}
	r.next += n
	p.left -= n
	if r.next == r.end {
		p.remove(r)
		p.leave(r)
	}
	return s
}

// leave gives up a reader's place, if it has one or waits for it.
func (p *pool) leave(r *reader) {
	if r.placed {
		r.placed = false
		p.places++
	}
	p.coming = slices.DeleteFunc(p.coming, func(other *reader) bool { return other == r })
}

func (p *pool) buffer(n int64) []byte {
	if last := len(p.free) - 1; last >= 0 {
		b := p.free[last]
		p.free = p.free[:last]
		return b[:n]
	}
	return make([]byte, n, p.sizes.held)
}

func (p *pool) fetch(r *reader, pc *piece, offset int64) {
	pc.data, pc.err = r.fetch(pc.data, offset)
	close(pc.done)
	p.mu.Lock()
	defer p.mu.Unlock()
	if pc.err != nil {
		p.giveUp(r)
	}
	p.idle++
	p.schedule()
}

// end is of a connection that was read through.
func (p *pool) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle++
	p.schedule()
}

func (p *pool) remove(r *reader) {
	p.readers = slices.DeleteFunc(p.readers, func(other *reader) bool { return other == r })
}

// giveUp has no more fetched for a reader.
func (p *pool) giveUp(r *reader) {
	p.remove(r)
	p.left -= r.end - r.next
	r.end = r.next
}

// drop is of a reader that reads no more.
func (p *pool) drop(r *reader) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.giveUp(r)
	p.leave(r)
	p.waiting = slices.DeleteFunc(p.waiting, func(other *reader) bool { return other == r })
	select {
	case <-r.turn: // that came too late
		p.idle++
	default:
	}
	p.schedule()
}

// giveBack takes the memory of a piece that is done.
func (p *pool) giveBack(pc *piece) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, pc.data[:0])
	p.room++
	p.schedule()
	if p.room == p.held {
		p.free = nil // nobody needs it
	}
}
