// SPDX-License-Identifier: Apache-2.0

package nbd

import "sync"

// pieceSize is the unit in which requests are worked on, bytes: larger ones are cut
// at its multiples. It bounds what a device is asked for at once and makes memory a
// matter of pieces, however large the requests are.
const pieceSize = 1 << 20

// The sizes of smaller buffers, bytes: for what file systems read here and there, and what
// most who copy ask for at once.
const (
	smallSize  = 64 << 10
	mediumSize = 256 << 10
)

// buffers lends buffers of three sizes.
type buffers struct {
	small, medium, large sync.Pool // of *[]byte
}

// bufferSize is what a buffer for n bytes takes of a connection's memory.
func bufferSize(n int) int64 {
	switch {
	case n <= smallSize:
		return smallSize
	case n <= mediumSize:
		return mediumSize
	}
	return pieceSize
}

// of is the pool of buffers of a size.
func (b *buffers) of(size int64) *sync.Pool {
	switch size {
	case smallSize:
		return &b.small
	case mediumSize:
		return &b.medium
	}
	return &b.large
}

// get returns a buffer of at least n bytes, n ≤ pieceSize.
func (b *buffers) get(n int) *[]byte {
	if p, ok := b.of(bufferSize(n)).Get().(*[]byte); ok {
		return p
	}
	p := make([]byte, bufferSize(n))
	return &p
}

func (b *buffers) put(p *[]byte) { b.of(int64(len(*p))).Put(p) }
