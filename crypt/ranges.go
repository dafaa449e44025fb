// SPDX-License-Identifier: Apache-2.0

package crypt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"filippo.io/age"
)

// Fetch returns the n stored bytes of an object at off.
type Fetch func(ctx context.Context, off, n int64) ([]byte, error)

// File is an age file of which ranges are read, each with one request for all the blocks
// that it takes. It is safe for concurrent use.
type File struct {
	fetch   Fetch
	length  int64 // stored
	size    int64 // of the content
	payload int64 // where the blocks begin

	mu     sync.Mutex // guards window, and so decrypting
	window window
	blocks io.ReaderAt
}

// window is what is in memory of an object. Who reads beyond it gets an errWindow.
type window struct{ parts []windowPart }

type windowPart struct {
	off  int64
	data []byte
}

var errWindow = errors.New("crypt: bytes that were not fetched")

func (w *window) ReadAt(p []byte, off int64) (int, error) {
	for _, part := range w.parts {
		if at := off - part.off; at >= 0 && at+int64(len(p)) <= int64(len(part.data)) {
			return copy(p, part.data[at:]), nil
		}
	}
	// The header is asked for in pieces of MaxHeader bytes, of which a short part has fewer.
	for _, part := range w.parts {
		if at := off - part.off; at >= 0 && at < int64(len(part.data)) {
			return copy(p, part.data[at:]), io.ErrUnexpectedEOF
		}
	}
	return 0, errWindow
}

// Ends are the first and the last bytes of an age file, which is opened by them.
type Ends struct {
	Length      int64 // of the stored file
	Start, Tail []byte
}

// StartLength is how many stored bytes hold the first n bytes of the content, and open the
// file; TailLength the last n.
func StartLength(n int64) int64 { return MaxHeader + nonceSize + (n/blockSize+1)*(blockSize+blockMore) }

// TailLength is how many stored bytes hold the last n bytes of the content.
func TailLength(n int64) int64 { return (n/blockSize + 2) * (blockSize + blockMore) }

// OpenFile opens an age file by its ends: at least [StartLength](0) and [TailLength](0) bytes, or
// all of it. An error other than a [KeyError] is damage.
func (k *Keys) OpenFile(h Half, ends Ends, fetch Fetch) (*File, error) {
	ids, err := k.identities(h)
	if err != nil {
		return nil, err
	}
	if !bytes.Contains(ends.Start[:min(len(ends.Start), MaxHeader)], endHeader) {
		return nil, errHeader
	}
	f := &File{fetch: fetch, length: ends.Length}
	f.window.parts = []windowPart{{0, ends.Start}, {ends.Length - int64(len(ends.Tail)), ends.Tail}}
	f.blocks, f.size, err = age.DecryptReaderAt(&f.window, ends.Length, ids...)
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	f.payload = f.length - f.size - (f.size+blockSize-1)/blockSize*blockMore
	if f.size == 0 {
		f.payload = f.length - blockMore
	}
	return f, nil
}

// Size is the length of the content, bytes.
func (f *File) Size() int64 { return f.size }

// Opened returns n bytes of the content at off, out of what the file was opened by. It must
// be called before the first Read.
func (f *File) Opened(off, n int64) ([]byte, error) { return f.decrypt(off, n) }

// Read returns n bytes of the content at off, which lie in it. damaged: they do not open; else
// an error is that of the request.
func (f *File) Read(ctx context.Context, off, n int64) (content []byte, damaged bool, err error) {
	if off < 0 || n < 0 || off > f.size-n {
		return nil, true, fmt.Errorf("its content has %d bytes, not %d at %d", f.size, n, off)
	}
	if n == 0 {
		return nil, false, nil
	}
	from := f.payload + off/blockSize*(blockSize+blockMore)
	to := min(f.payload+((off+n-1)/blockSize+1)*(blockSize+blockMore), f.length)
	data, err := f.fetch(ctx, from, to-from)
	if err != nil {
		return nil, false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.window.parts = []windowPart{{from, data}}
	defer func() { f.window.parts = nil }()
	content, err = f.decrypt(off, n)
	return content, err != nil, err
}

func (f *File) decrypt(off, n int64) ([]byte, error) {
	content := make([]byte, n)
	if got, err := f.blocks.ReadAt(content, off); int64(got) < n {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	return content, nil
}
