// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/objstore"
)

// What never changes is kept under its digest. A file is proven by it once by each
// program, and again when it is another file by then.

// fileID tells whether a file is still the one that was proven.
type fileID struct {
	id    sys.ID
	size  int64
	mtime time.Time
}

const (
	// fillBytes is how much of an object is read in parts before all of it is fetched.
	fillBytes = 1 << 20
	// maxShare of the limit is what one object may have.
	maxShare   = 4
	copyBuffer = 256 << 10
)

func (s *store) path(name [32]byte) string {
	return filepath.Join(s.folder, objectsFolder, hex.EncodeToString(name[:]))
}

func (s *store) getDigested(ctx context.Context, key string, name [32]byte, offset, length int64) (io.ReadCloser, error) {
	if err := errors.Join(objstore.CheckRange(key, offset, length), ctx.Err()); err != nil {
		return nil, err
	}
	if r := s.open(ctx, name, offset, length); r != nil {
		return r, nil
	}
	if offset > 0 && s.worthAll(key, length) && s.fill(ctx, key, name) {
		if r := s.open(ctx, name, offset, length); r != nil {
			return r, nil
		}
	}
	r, err := s.next.Get(ctx, key, offset, length)
	if err != nil || offset > 0 {
		return r, err
	}
	return s.keepDigested(name, r), nil
}

func (s *store) getOwn(ctx context.Context, key string, name [32]byte, offset, length int64) (io.ReadCloser, error) {
	if err := errors.Join(objstore.CheckRange(key, offset, length), ctx.Err()); err != nil {
		return nil, err
	}
	if r := s.open(ctx, name, offset, length); r != nil {
		return r, nil
	}
	return s.next.Get(ctx, key, offset, length)
}

// open opens what is remembered of an object; nil: nothing.
func (s *store) open(ctx context.Context, name [32]byte, offset, length int64) io.ReadCloser {
	f, err := os.Open(s.path(name))
	if err != nil {
		return nil
	}
	size, ok := s.prove(f, name)
	if !ok {
		_ = f.Close() // only read
		return nil
	}
	return objstore.NewRange(ctx, f, size, offset, length, f)
}

// prove reports whether a file has the bytes that its name says; else it is removed.
func (s *store) prove(f *os.File, name [32]byte) (size int64, ok bool) {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return 0, false
	}
	id, known := sys.Identity(info)
	now := fileID{id: id, size: info.Size(), mtime: info.ModTime()}
	s.mu.Lock()
	before, was := s.proven[name]
	s.mu.Unlock()
	if was && known && before == now {
		return now.size, true
	}
	h := sha256.New()
	if _, err := io.CopyBuffer(onlyWriter{h}, onlyReader{f}, make([]byte, copyBuffer)); err != nil {
		return 0, false
	}
	if [32]byte(h.Sum(nil)) != name {
		_ = os.Remove(f.Name()) // it is of no use to anybody
		return 0, false
	}
	touch(f.Name(), info)
	if info, err = f.Stat(); err != nil {
		return 0, false
	}
	now.mtime = info.ModTime()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proven[name] = now
	return now.size, true
}

// worthAll counts what is read of an object in parts, and reports whether all of it
// should be fetched by now: the next backup reads these parts, too.
func (s *store) worthAll(key string, length int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.missed[key]
	if before < 0 || length < 0 {
		return false // it could not be
	}
	s.missed[key] = before + length
	if before < fillBytes {
		return false
	}
	s.missed[key] = -1
	return true
}

// fill fetches an object as a whole.
func (s *store) fill(ctx context.Context, key string, name [32]byte) bool {
	info, err := s.next.Stat(ctx, key)
	if err != nil || info.Size > s.dir.limit/maxShare {
		return false
	}
	r, err := s.next.Get(ctx, key, 0, -1)
	if err != nil {
		return false // whoever wants a part of it is told
	}
	k := s.keepDigested(name, r)
	_, err = io.CopyBuffer(io.Discard, onlyReader{k}, make([]byte, copyBuffer))
	return errors.Join(err, k.Close()) == nil
}

// keepBody keeps an object that was stored just now.
func (s *store) keepBody(name [32]byte, body objstore.Body) {
	if body.Size() > s.dir.limit/maxShare {
		return
	}
	_ = s.dir.write(s.folder, objectsFolder, hex.EncodeToString(name[:]), func(f *os.File) error {
		r := io.NewSectionReader(body, 0, body.Size())
		_, err := io.CopyBuffer(onlyWriter{f}, onlyReader{r}, make([]byte, copyBuffer))
		return err // whether it has the digest is seen when it is read
	}) // else it is read from the store
}

// keepDigested keeps what is read through it from an object's beginning, if that turns
// out to be all of it.
func (s *store) keepDigested(name [32]byte, r io.ReadCloser) io.ReadCloser {
	n := &newFile{temps: filepath.Join(s.folder, tempFolder)}
	if os.MkdirAll(n.temps, dirMode) != nil || os.MkdirAll(filepath.Join(s.folder, objectsFolder), dirMode) != nil || n.open() != nil {
		return r
	}
	return &digestedReader{ReadCloser: r, store: s, name: name, hash: sha256.New(), file: n}
}

type digestedReader struct {
	io.ReadCloser
	store *store
	name  [32]byte
	hash  hash.Hash
	file  *newFile // nil: it is not kept
	size  int64
}

func (r *digestedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.file == nil || n == 0 {
		return n, err
	}
	r.hash.Write(p[:n])
	r.size += int64(n)
	if _, werr := r.file.file.Write(p[:n]); werr != nil || r.size > r.store.dir.limit/maxShare {
		r.file.close()
		r.file = nil
	}
	return n, err
}

// Close keeps the object if all of it has been read.
func (r *digestedReader) Close() error {
	if r.file != nil {
		if [32]byte(r.hash.Sum(nil)) == r.name {
			_ = r.file.keep(r.store.dir, r.store.path(r.name)) // else it is read again
		}
		r.file.close()
		r.file = nil
	}
	return r.ReadCloser.Close()
}

type (
	// onlyWriter and onlyReader hide other methods, so that io.CopyBuffer uses its buffer.
	onlyWriter struct{ io.Writer }
	onlyReader struct{ io.Reader }
)
