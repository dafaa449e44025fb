// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"bytes"
	"strings"
	"sync"
)

// Said keeps the first bytes of what a program says.
type Said struct {
	mu sync.Mutex
	b  bytes.Buffer
}

const maxSaid = 2 << 10

// Write implements io.Writer.
func (s *Said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b.Write(p[:min(len(p), max(0, maxSaid-s.b.Len()))])
	return len(p), nil
}

func (s *Said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(strings.FieldsFunc(s.b.String(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
