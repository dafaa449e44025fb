// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"bytes"
	"cmp"
	"sync"
)

// Head keeps the beginning of what is written to it, and takes the rest: what programs print has no
// end that they must keep to. Any number may write at once.
type Head struct {
	Most int // bytes that are kept; 0: 2 KiB

	mu    sync.Mutex
	kept  bytes.Buffer // not embedded: who copies would read into it past Write
	total int64
}

// Write implements [io.Writer]; it never fails.
func (h *Head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.total += int64(len(p))
	h.kept.Write(p[:min(len(p), h.most()-h.kept.Len())])
	return len(p), nil
}

// Bytes are a copy of what was kept.
func (h *Head) Bytes() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return bytes.Clone(h.kept.Bytes())
}

func (h *Head) String() string { return string(h.Bytes()) }

// Total is how much was written, bytes.
func (h *Head) Total() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.total
}

// Cut reports whether more was written than is kept.
func (h *Head) Cut() bool { return h.Total() > int64(h.most()) }

func (h *Head) most() int { return cmp.Or(h.Most, 2<<10) }
