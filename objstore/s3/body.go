// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"sync"

	"github.com/imgbackup/imgbackup/objstore"
)

// bodyReader is what the transport reads a body from, in a goroutine of its own.
// It knows how reading failed, and whether all was read: a server that can't
// have got the last bytes of a body will never store it.
type bodyReader struct {
	ctx context.Context

	mu    sync.Mutex
	r     *io.SectionReader
	read  int64
	err   error
	ended bool
}

func (b *bodyReader) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	if b.ended {
		return 0, io.ErrClosedPipe
	}
	n, err := b.r.Read(p)
	b.read += int64(n)
	if err == io.EOF && b.read < b.r.Size() {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF && b.err == nil {
		b.err = err
	}
	return n, err
}

// end reports whether all was read, or how reading failed. Nothing more is read.
func (b *bodyReader) end() (whole bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	return b.read == b.r.Size(), b.err
}

// hashBuffer is how much of a body is hashed at a time, in bytes.
const hashBuffer = 256 << 10

// readBody hashes a whole body.
func readBody(h hash.Hash, body objstore.Body) error {
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

func hexSHA256(body objstore.Body) (string, error) {
	h := sha256.New()
	err := readBody(h, body)
	return hex.EncodeToString(h.Sum(nil)), err
}
