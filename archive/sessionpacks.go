// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"sync"

	"github.com/imgbackup/imgbackup/objstore"
)

// What a session knows of a pack.
const (
	packUnseen  = iota // named by an index or a map
	packSeen           // seen in the store with its length
	packVouched        // seen, and its SHA-256 is what the store itself has kept
	packSampled        // vouched for, and a frame of it was read back and is right
	packBad            // not there, or not with its length, or the store did not say
	packOwn            // made by this session
)

// sessionPacks numbers the packs of a session, its own and older ones, and asks
// the store once for each older one that is to be referred to.
type sessionPacks struct {
	store objstore.Store
	note  func(string, ...any)

	mu     sync.Mutex
	list   packList
	state  []byte // by number; may be shorter than the list: unseen
	asking map[uint32]chan struct{}
	errs   map[uint32]error // why a pack is bad
}

func (s *sessionPacks) init(store objstore.Store, note func(string, ...any)) {
	s.store, s.note = store, note
	s.asking = make(map[uint32]chan struct{})
	s.errs = make(map[uint32]error)
}

// get needs mu.
func (s *sessionPacks) get(n uint32) byte {
	if int(n) < len(s.state) {
		return s.state[n]
	}
	return packUnseen
}

// set needs mu.
func (s *sessionPacks) set(n uint32, state byte) {
	for int(n) >= len(s.state) {
		s.state = append(s.state, make([]byte, len(s.list.refs)-len(s.state))...)
	}
	s.state[n] = state
}

// begin numbers a pack that this session makes.
func (s *sessionPacks) begin() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.list.unnamed()
	s.set(n, packOwn)
	return n
}

// name says what a pack of this session is called.
func (s *sessionPacks) name(n uint32, ref Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list.refs[n] = ref
}

func (s *sessionPacks) ref(n uint32) Ref {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list.refs[n]
}

func (s *sessionPacks) foreign(n uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(n) != packOwn
}

func (s *sessionPacks) isBad(n uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(n) == packBad
}

// number numbers an older pack.
func (s *sessionPacks) number(ref Ref) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, _ := s.list.number(ref)
	return n
}

// sample tells that a frame of a pack was read back and is right.
func (s *sessionPacks) sample(n uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.get(n) == packVouched {
		s.set(n, packSampled)
	}
}

// toSample reports whether the store vouches for a pack of which no frame was read back.
func (s *sessionPacks) toSample(n uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(n) == packVouched
}

func (s *sessionPacks) sampled(n uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(n) == packSampled
}

// seen numbers an older pack once it has been seen in the store with its length.
func (s *sessionPacks) seen(ctx context.Context, ref Ref) (uint32, error) {
	for {
		s.mu.Lock()
		n, _ := s.list.number(ref)
		state, err, wait := s.get(n), s.errs[n], s.asking[n]
		if state == packUnseen && wait == nil {
			s.asking[n] = make(chan struct{})
		}
		s.mu.Unlock()
		switch {
		case state == packSeen, state == packVouched, state == packSampled:
			return n, nil
		case state == packBad:
			return n, err
		case wait == nil:
			return n, s.ask(ctx, n, ref)
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return n, context.Cause(ctx)
		}
	}
}

func (s *sessionPacks) ask(ctx context.Context, n uint32, ref Ref) error {
	info, err := statObject(ctx, s.store, PackKey(ref.Name), ref.Length)
	s.mu.Lock()
	close(s.asking[n])
	delete(s.asking, n)
	switch {
	case err == nil && Digest(info.SHA256) == ref.Name:
		s.set(n, packVouched)
	case err == nil:
		s.set(n, packSeen)
	case ctx.Err() == nil:
		s.set(n, packBad)
		s.errs[n] = err
	}
	s.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		s.note("chunks are not taken from a pack: %v", err)
	}
	return err
}

func (s *sessionPacks) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.list.refs)
}
