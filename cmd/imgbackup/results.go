// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

// results is where a command's result goes. Whoever reads no further, as head does,
// has what they wanted: that is no failure of the command, whose status is about what
// it did. Any other failure to write is one.
type results struct {
	mu   sync.Mutex
	out  io.Writer
	gone bool // nobody reads any more
}

func (r *results) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		return len(p), nil
	}
	n, err := r.out.Write(p)
	if errors.Is(err, unix.EPIPE) {
		r.gone = true
		return len(p), nil
	}
	return n, err
}
