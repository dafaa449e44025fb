// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"context"
	"io"
)

// NewRange reads length bytes (-1: all) of an object of size bytes from offset
// on. What the object lacks ends in io.ErrUnexpectedEOF. closer may be nil.
func NewRange(ctx context.Context, r io.ReaderAt, size, offset, length int64, closer io.Closer) io.ReadCloser {
	short := offset > size
	if length < 0 {
		length = max(size-offset, 0)
	}
	if offset <= size && length > size-offset {
		length, short = size-offset, true
	}
	if offset > size {
		length = 0
	}
	return &rangeReader{ctx: ctx, r: r, off: offset, left: length, short: short, closer: closer}
}

type rangeReader struct {
	ctx    context.Context
	r      io.ReaderAt
	off    int64
	left   int64 // bytes still to be given
	short  bool  // more was asked for than there is
	closer io.Closer
}

func (r *rangeReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if r.left == 0 {
		if r.short {
			return 0, io.ErrUnexpectedEOF
		}
		return 0, io.EOF
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.r.ReadAt(p, r.off)
	r.off += int64(n)
	r.left -= int64(n)
	if n == len(p) {
		return n, nil
	}
	if err == nil || err == io.EOF { // the object shrank under our hands
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (r *rangeReader) Close() error {
	if r.closer == nil {
		return nil
	}
	return r.closer.Close()
}
