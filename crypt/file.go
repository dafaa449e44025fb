// SPDX-License-Identifier: Apache-2.0

package crypt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"filippo.io/age"
)

// The age format: a header, of which we bound the length, 16 bytes of nonce, and the
// content in blocks of 64 KiB with 16 more bytes each.
const (
	// MaxHeader bounds the header of an age file that is read here, bytes. One recipient
	// takes 184, of a hybrid key 1,643.
	MaxHeader = 4096
	// FirstBlock is how many bytes behind the header hold the first block of the content.
	FirstBlock = nonceSize + blockSize + blockMore

	nonceSize = 16
	blockSize = 64 << 10
	blockMore = 16
)

var (
	errHeader = errors.New("it does not begin with the header of an age file to one key")
	endHeader = []byte("\n--- ")
)

// Writer encrypts what is written to it, to a half, into w; Close ends the age file and
// does not close w.
func (k *Keys) Writer(h Half, w io.Writer) (io.WriteCloser, error) {
	return age.Encrypt(w, k.recipient(h))
}

// Append appends an age file with this content.
func (k *Keys) Append(dst []byte, h Half, content ...[]byte) ([]byte, error) {
	n := 0
	for _, c := range content {
		n += len(c)
	}
	b := appender{slices.Grow(dst, typicalHeader+nonceSize+n+(n/blockSize+1)*blockMore)}
	w, err := k.Writer(h, &b)
	if err == nil && n > firstWrite {
		content, err = writeFirst(w, content)
	}
	for i := 0; i < len(content) && err == nil; i++ {
		_, err = w.Write(content[i])
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return dst, fmt.Errorf("encrypt: %w", err)
	}
	return b.to, nil
}

// firstWrite is how much age is given first of a file that has more, bytes: the buffer of a block
// grows to twice what that takes, once, and not when it is full to twice a block.
const firstWrite = 40_000

var firsts = sync.Pool{New: func() any { return new([firstWrite]byte) }}

// writeFirst writes the first of the content together, and returns what is left.
func writeFirst(w io.Writer, content [][]byte) ([][]byte, error) {
	first := firsts.Get().(*[firstWrite]byte)
	defer firsts.Put(first)
	content = slices.Clone(content)
	for n := 0; n < firstWrite; {
		took := copy(first[n:], content[0])
		if content[0] = content[0][took:]; len(content[0]) == 0 {
			content = content[1:]
		}
		n += took
	}
	_, err := w.Write(first[:])
	return content, err
}

// typicalHeader is how long the header of a file is to one recipient that is no hybrid.
const typicalHeader = 200

type appender struct{ to []byte }

func (a *appender) Write(p []byte) (int, error) {
	a.to = append(a.to, p...)
	return len(p), nil
}

// Open decrypts all of an age file into dst[:0], which is replaced where it is too small.
// No byte counts unless the error is nil. One that is a [KeyError] is no damage, all
// others are.
func (k *Keys) Open(dst []byte, h Half, file []byte) ([]byte, error) {
	ids, err := k.identities(h)
	if err != nil {
		return nil, err
	}
	if !bytes.Contains(file[:min(len(file), MaxHeader)], endHeader) {
		return nil, errHeader
	}
	// In place of a stream, since that copies and allocates more.
	r, size, err := age.DecryptReaderAt(bytes.NewReader(file), int64(len(file)), ids...)
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	if dst = dst[:0]; int64(cap(dst)) < size {
		dst = make([]byte, 0, size)
	}
	dst = dst[:size]
	if n, err := r.ReadAt(dst, 0); int64(n) < size {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	return dst, nil
}

// Reader decrypts an age file as it comes. What was read counts only when it ended with
// io.EOF; an error of src comes back wrapped.
func (k *Keys) Reader(h Half, src io.Reader) (io.Reader, error) {
	ids, err := k.identities(h)
	if err != nil {
		return nil, err
	}
	head, err := readHead(src)
	if err != nil {
		return nil, err
	}
	r, err := age.Decrypt(io.MultiReader(bytes.NewReader(head), src), ids...)
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	return r, nil
}

// readHead reads the beginning of an age file, and refuses one whose header is long: its
// many recipients would each be tried.
func readHead(src io.Reader) ([]byte, error) {
	head := make([]byte, MaxHeader)
	n, err := io.ReadFull(src, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	if !bytes.Contains(head[:n], endHeader) {
		return nil, errHeader
	}
	return head[:n], nil
}
