// SPDX-License-Identifier: Apache-2.0

package protocol_test

import (
	"encoding/binary"
	"hash/fnv"
	"sync"

	"github.com/google/uuid"
)

// uuids are the random numbers of this test program: each process has its own, so that
// what is stored does not depend on who came first.
var uuids = &source{}

type source struct {
	mu sync.Mutex
	p  *proc
	n  uint64 // of nobody's
}

func init() { uuid.SetRand(uuids) }

// turn says whose turn it is.
func (s *source) turn(p *proc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.p = p
}

// Read gives the 16 bytes of the next uuid.
func (s *source) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := fnv.New128a()
	var n [8]byte
	if s.p == nil {
		s.n++
		binary.LittleEndian.PutUint64(n[:], s.n)
	} else {
		s.p.uuids++
		binary.LittleEndian.PutUint64(n[:], s.p.uuids)
		_, _ = h.Write([]byte(s.p.name))
	}
	_, _ = h.Write(n[:])
	id := h.Sum(nil)
	copy(b, id)
	if s.p != nil && len(b) == 16 {
		u, _ := uuid.FromBytes(id)
		u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80 // as package uuid makes version 4 of it
		s.p.runs = append(s.p.runs, u.String())
	}
	return len(b), nil
}
