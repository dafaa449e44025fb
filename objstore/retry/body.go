// SPDX-License-Identifier: Apache-2.0

package retry

import (
	"sync"

	"github.com/imgbackup/imgbackup/objstore"
)

// watchedBody knows whether it could not be read.
type watchedBody struct {
	objstore.Body
	failed syncErr
}

func (b *watchedBody) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.Body.ReadAt(p, off)
	if err != nil && n < len(p) && off+int64(n) < b.Size() {
		b.failed.set(err)
	}
	return n, err
}

// syncErr is the first error that happened; the transport reads bodies in a
// goroutine of its own.
type syncErr struct {
	mu  sync.Mutex
	err error
}

func (s *syncErr) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

func (s *syncErr) get() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}
