// SPDX-License-Identifier: Apache-2.0

package crypt

import (
	"bytes"
	"errors"
	"fmt"
	"io"

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
	b := bytes.NewBuffer(dst)
	w, err := k.Writer(h, b)
	for i := 0; i < len(content) && err == nil; i++ {
		_, err = w.Write(content[i])
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return dst, fmt.Errorf("encrypt: %w", err)
	}
	return b.Bytes(), nil
}

// Open decrypts all of an age file into dst[:0], which is replaced where it is too small.
// No byte counts unless the error is nil. One that is a [KeyError] is no damage, all
// others are.
func (k *Keys) Open(dst []byte, h Half, file []byte) ([]byte, error) {
	r, err := k.Reader(h, bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	b := bytes.NewBuffer(dst[:0])
	if n := len(file); cap(dst) < n+bytes.MinRead {
		b = bytes.NewBuffer(make([]byte, 0, n+bytes.MinRead))
	}
	if _, err := b.ReadFrom(r); err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	return b.Bytes(), nil
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
