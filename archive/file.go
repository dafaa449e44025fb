// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// FilePrefix begins the keys of whole small files: a definition, firmware.
const FilePrefix = "files/"

// MaxFile bounds such a file, bytes.
const MaxFile = 64 << 20

// MaxFileObject bounds what is stored of one, bytes: what does not compress is
// stored as it is, with a few bytes per block.
const MaxFileObject = MaxFile + MaxFile/1024

// fileWindow is zstd's window of such files, bytes.
const fileWindow = 1 << 20

// FileKey returns the key of a stored file.
func FileKey(d Digest) string { return objectKey(FilePrefix, d) }

// FileRef names a stored file and proves its content.
type FileRef struct {
	Object Ref    `json:"object"`
	Size   int64  `json:"size"`   // of the content, bytes
	SHA256 Digest `json:"sha256"` // of the content
}

// PutFile stores a file of at most MaxFile bytes, as one zstd stream that plain
// zstd -d reads. The same content has the same object.
func (w *Writer) PutFile(ctx context.Context, content io.Reader) (FileRef, error) {
	if err := w.err(); err != nil {
		return FileRef{}, err
	}
	s := newScratch(w.o.TempDir, w.keys != nil)
	defer s.Close()
	enc, err := zstd.NewWriter(&s, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(fileWindow), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(true))
	if err != nil {
		return FileRef{}, fmt.Errorf("zstd encoder: %w", err)
	}
	h := sha256.New()
	limited := &io.LimitedReader{R: content, N: MaxFile + 1}
	size, err := io.CopyBuffer(onlyWriter{io.MultiWriter(enc, h)}, struct{ io.Reader }{limited}, make([]byte, 128<<10))
	if err == nil && size > MaxFile {
		err = fmt.Errorf("it has more than %d MiB", MaxFile>>20)
	}
	if cerr := enc.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return FileRef{}, err
	}
	f := FileRef{Size: size, SHA256: Digest(h.Sum(nil))}
	// Compressors have had bugs.
	packed, err := s.reader()
	if err == nil {
		err = decodeFile(packed, f, io.Discard)
	}
	if err != nil {
		return FileRef{}, fmt.Errorf("what was compressed does not decode: %w", err)
	}
	body := &s.Spool
	ref, ok, err := w.holding(ctx, f.SHA256, FileKey)
	if f.Object = ref; ok || err != nil {
		return f, err
	}
	if w.keys != nil {
		if body, err = encryptedTo(w.o.TempDir, w.keys, crypt.Data, s.copyTo); err != nil {
			return FileRef{}, err
		}
		defer body.Close()
	}
	if f.Object.Name, err = hashBody(body); err != nil {
		return FileRef{}, err
	}
	f.Object.Length = body.Size()
	return f, w.put(ctx, FileKey(f.Object.Name), f.Object.Name, body)
}

// CopyFile writes a stored file's content to out. All of it is proven, and what
// was written counts only when the error is nil.
func CopyFile(ctx context.Context, store objstore.Store, f FileRef, out io.Writer) error {
	key := FileKey(f.Object.Name)
	if _, err := statObject(ctx, store, key, f.Object.Length); err != nil {
		return err
	}
	r, err := getObject(ctx, store, key, 0, f.Object.Length)
	if err != nil {
		return err
	}
	read := &tailReader{r: io.LimitReader(r, f.Object.Length), h: sha256.New()}
	plain, err := decrypting(store, key, crypt.Data, read)
	if err == nil {
		err = decodeFile(plain, f, out)
	}
	cerr := r.Close()
	var bad *contentError
	switch {
	case read.err != nil:
		return shortRead(ctx, store, key, f.Object.Length, f.Object.Length, read.err)
	case read.ended && read.n < f.Object.Length:
		return shortRead(ctx, store, key, f.Object.Length, f.Object.Length, io.ErrUnexpectedEOF)
	case errors.As(err, &bad):
		return &DamageError{Object: key, Err: bad.err}
	case err != nil:
		return err
	case cerr != nil:
		return fmt.Errorf("read %s: %w", key, cerr)
	}
	return checkName(key, f.Object.Name, Digest(read.h.Sum(nil)))
}

// tailReader hashes what is read, and remembers how reading ended.
type tailReader struct {
	r     io.Reader
	h     hash.Hash
	n     int64
	ended bool
	err   error // other than the end
}

func (t *tailReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	_, _ = t.h.Write(p[:n]) // a hash never fails
	t.n += int64(n)
	switch {
	case errors.Is(err, io.EOF):
		t.ended = true
	case err != nil:
		t.err = err
	}
	return n, err
}

// contentError says that an object does not hold the content it should.
type contentError struct{ err error }

func (e *contentError) Error() string { return e.err.Error() }
func (e *contentError) Unwrap() error { return e.err }

// decodeFile decodes all of stored, and proves what comes out.
func decodeFile(stored io.Reader, f FileRef, out io.Writer) error {
	in := bufio.NewReader(stored)
	dec, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(fileWindow))
	if err != nil {
		return fmt.Errorf("zstd decoder: %w", err)
	}
	defer dec.Close()
	h := sha256.New()
	to := &keepError{w: io.MultiWriter(h, out)}
	n, err := io.CopyBuffer(onlyWriter{to}, struct{ io.Reader }{io.LimitReader(dec, f.Size+1)}, make([]byte, 128<<10))
	switch {
	case to.err != nil:
		return to.err
	case err != nil:
		return &contentError{err}
	case n != f.Size:
		return &contentError{fmt.Errorf("its content has not %d bytes", f.Size)}
	case Digest(h.Sum(nil)) != f.SHA256:
		return &contentError{errors.New("its content has another SHA-256")}
	}
	return nil
}

// keepError tells an error of the writer from one of the reader.
type keepError struct {
	w   io.Writer
	err error
}

func (k *keepError) Write(p []byte) (int, error) {
	n, err := k.w.Write(p)
	if err != nil {
		k.err = err
	}
	return n, err
}
