// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"

	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/objstore"
)

// packSpool is from where packs that are full are stored: a few from memory, where they
// were filled, and while these are on their way to a store that takes more at once, others
// from temporary files, so that their memory can be filled again.
type packSpool struct {
	dir    string
	memory chan struct{} // one for each that is stored from memory while others need not wait
	files  chan struct{} // one for each that is stored from a file; of no capacity: none is
	broken atomic.Bool   // files can't be written
	note   func(format string, args ...any)

	mu   sync.Mutex
	idle []*spool.Spool // files of packs that are stored, the last one last, to be written over
}

// newPackSpool is for packs of which buffers may be in memory, one of them being filled.
// For a store that is near there are no files.
func newPackSpool(store objstore.Store, dir string, buffers int, note func(string, ...any)) *packSpool {
	return &packSpool{
		dir: dir, note: note,
		memory: make(chan struct{}, max(buffers-1, 0)), files: make(chan struct{}, objstore.Connections(store)),
	}
}

// uploads is how many packs are on their way at once, at most.
func (s *packSpool) uploads() int { return max(cap(s.memory), cap(s.files), 1) }

// packBody is what a pack is stored from.
type packBody struct {
	objstore.Body
	apart bool   // from the memory in which it was filled, which may be used again
	end   func() // must be called when it is stored
}

// body takes a pack that is full and sealed. Where a temporary file can't be written the
// pack stays in memory, and all that is lost is speed. The error is the context's.
func (s *packSpool) body(ctx context.Context, pack []byte) (packBody, error) {
	here := packBody{Body: bytes.NewReader(pack), end: func() {}}
	if cap(s.files) == 0 || s.broken.Load() {
		return here, nil
	}
	select {
	case s.memory <- struct{}{}:
		here.end = func() { <-s.memory }
		return here, nil
	default:
	}
	select {
	case s.files <- struct{}{}:
	case <-ctx.Done():
		return packBody{}, context.Cause(ctx)
	}
	file := s.take()
	if err := file.Hold("packs", pack); err != nil {
		<-s.files
		if s.broken.CompareAndSwap(false, true) {
			s.note("fewer packs are on their way to the store at once, those that fit into memory: %v", err)
		}
		return here, nil
	}
	return packBody{Body: file, apart: true, end: func() {
		s.mu.Lock()
		s.idle = append(s.idle, file)
		s.mu.Unlock()
		<-s.files
	}}, nil
}

// take gives the file that was written last of those that are idle, else a new one.
func (s *packSpool) take() *spool.Spool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.idle) == 0 {
		return &spool.Spool{Dir: s.dir}
	}
	file := s.idle[len(s.idle)-1]
	s.idle = s.idle[:len(s.idle)-1]
	return file
}

// close gives the files back, when no pack is on its way any more. It may be called again.
func (s *packSpool) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, file := range s.idle {
		file.Close()
	}
	s.idle = nil
}
