// SPDX-License-Identifier: Apache-2.0

// Package split is a store around one that is far away: what is read of an object in one
// go is fetched in pieces, side by side. There each connection has a rate of its own, and an
// object that is read through one alone takes as long as that takes.
//
// All readers of a store share its connections and the memory for what is on its way. Who
// began first is served first, so that a reader gets all connections when it is alone, and
// those behind it what it leaves. So nobody may keep a reader open while waiting for another
// of the same store.
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
// large one is waited for.
const (
	leastPiece = 1 << 20
	mostPiece  = 4 << 20
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
	// Half as many more than are fetched, for those that are being looked at.
	size := min(max(held/int64(connections)*2/3, leastPiece), mostPiece) &^ (64<<10 - 1)
	return newStore(s, size, connections, int(held/size))
}

// newStore reads pieces of size bytes, of which so many are fetched at once and so many are
// in memory.
func newStore(s objstore.Store, size int64, fetched, held int) *store {
	return &store{Store: s, pool: pool{size: size, held: held, idle: fetched, room: held}}
}

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
	if length <= s.pool.size {
		return s.Store.Get(ctx, key, offset, length)
	}
	inner, cancel := context.WithCancel(ctx)
	r := &reader{
		store: s, ctx: inner, cancel: cancel, key: key, next: offset, end: offset + length, left: length,
		found: make(chan error, 1), begun: make(chan *piece, s.pool.held),
	}
	s.pool.add(r)
	var err error
	select {
	case err = <-r.found:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = r.Close() // says nothing
		return nil, err
	}
	return r, nil
}

// pool is what the readers of a store share.
type pool struct {
	size int64 // of a piece, bytes
	held int   // pieces in memory, at most

	mu      sync.Mutex
	idle    int       // pieces that may be fetched beside those that are
	room    int       // pieces that may be in memory beside those that are
	free    [][]byte  // what was lent before
	readers []*reader // of which not all is asked for; who came first is in front
}

// piece is a part of an object, in memory.
type piece struct {
	data []byte        // as long as it was asked for, until it is done
	done chan struct{} // closed when data or err is set
	err  error         // what came after data
}

func (p *pool) add(r *reader) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readers = append(p.readers, r)
	p.schedule()
}

// schedule has as much fetched as there is room for. It needs the lock.
func (p *pool) schedule() {
	for p.idle > 0 && p.room > 0 && len(p.readers) > 0 {
		r := p.readers[0]
		offset := r.next
		n := min(p.size, r.end-offset)
		if r.next += n; r.next == r.end {
			p.readers = p.readers[1:]
		}
		p.idle--
		p.room--
		pc := &piece{data: p.buffer(n), done: make(chan struct{})}
		r.begun <- pc // which holds all that there can be
		r.work.Go(func() { p.fetch(r, pc, offset) })
	}
}

// buffer needs the lock.
func (p *pool) buffer(n int64) []byte {
	if last := len(p.free) - 1; last >= 0 {
		b := p.free[last]
		p.free = p.free[:last]
		return b[:n]
	}
	return make([]byte, n, p.size)
}

func (p *pool) fetch(r *reader, pc *piece, offset int64) {
	pc.data, pc.err = r.fetch(pc.data, offset)
	close(pc.done)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle++
	if pc.err != nil {
		p.remove(r)
	}
	p.schedule()
}

// remove has no more fetched for a reader. It needs the lock.
func (p *pool) remove(r *reader) {
	p.readers = slices.DeleteFunc(p.readers, func(other *reader) bool { return other == r })
}

// drop is remove.
func (p *pool) drop(r *reader) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(r)
}

// giveBack takes the memory of a piece that is done.
func (p *pool) giveBack(pc *piece) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, pc.data[:0])
	p.room++
	p.schedule()
	if p.room == p.held {
		p.free = nil // nobody reads
	}
}
