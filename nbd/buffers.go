// SPDX-License-Identifier: Apache-2.0

package nbd

import "sync"

// pieceSize is the unit in which requests are worked on, bytes: larger ones are cut
// at its multiples. It bounds what a device is asked for at once and makes memory a
// matter of pieces, however large the requests are.
const pieceSize = 1 << 20

// smallSize is the size of the smaller buffers, bytes.
const smallSize = 64 << 10

// buffers lends buffers of two sizes.
type buffers struct {
	small, large sync.Pool // of *[]byte
}

// bufferSize is what a buffer for n bytes takes of a connection's memory.
func bufferSize(n int) int64 {
	if n <= smallSize {
		return smallSize
	}
	return pieceSize
}

// get returns a buffer of at least n bytes, n ≤ pieceSize.
func (b *buffers) get(n int) *[]byte {
	pool := &b.large
	if n <= smallSize {
		pool = &b.small
	}
	if p, ok := pool.Get().(*[]byte); ok {
		return p
	}
	p := make([]byte, bufferSize(n))
	return &p
}

func (b *buffers) put(p *[]byte) {
	if len(*p) == smallSize {
		b.small.Put(p)
	} else {
		b.large.Put(p)
	}
}
