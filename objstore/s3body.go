// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"sync"
)

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

// hashBuffer is how much of a body is hashed at a time, in bytes.
const hashBuffer = 256 << 10

// readBody hashes a whole body.
func readBody(h hash.Hash, body Body) error {
	size := body.Size()
	buf := make([]byte, min(size, hashBuffer))
	for off := int64(0); off < size; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), size-off)]
		n, err := body.ReadAt(buf, off)
		if n < len(buf) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		h.Write(buf)
	}
	return nil
}

func hexSHA256(body Body) (string, error) {
	h := sha256.New()
	err := readBody(h, body)
	return hex.EncodeToString(h.Sum(nil)), err
}
