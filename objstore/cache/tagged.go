// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/imgbackup/imgbackup/objstore"
)

// What may be replaced is kept under the digest of its key, with the entity tag that the
// store gave together with its bytes:
//
//	imgbackup-cache 1 "KEY" "TAG" SHA256
//	the bytes

const (
	taggedMagic = "imgbackup-cache 1"
	// maxTagged bounds what is kept, bytes; manifests are smaller, most often by far.
	maxTagged = 1 << 20
)

func taggedName(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

// taggedHead is the first line of a file with these bytes.
func taggedHead(key, tag string, data []byte) []byte {
	return fmt.Appendf(nil, "%s %q %q %x\n", taggedMagic, key, tag, sha256.Sum256(data))
}

// ReadListed implements objstore.Remembering.
func (s *store) ReadListed(ctx context.Context, info objstore.Info, limit int64) ([]byte, error) {
	if kind, _ := s.kind(info.Key); kind == Tagged && info.Version != "" && info.Size <= limit {
		if data, ok := s.tagged(info); ok {
			return data, ctx.Err()
		}
	}
	return objstore.ReadAll(ctx, s, info.Key, limit)
}

// tagged returns what is remembered of the object that the store lists.
func (s *store) tagged(info objstore.Info) ([]byte, bool) {
	path := filepath.Join(s.folder, manifestsFolder, taggedName(info.Key))
	f, err := os.Open(path)
	if err != nil {
		return nil, false
	}
	defer func() { _ = f.Close() }() // only read
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() || st.Size() > maxTagged+8<<10 {
		return nil, false
	}
	file := make([]byte, st.Size())
	if _, err := io.ReadFull(f, file); err != nil {
		return nil, false
	}
	_, data, _ := bytes.Cut(file, []byte("\n"))
	// Of another tag it is left: whoever reads the object next puts that in its place.
	if int64(len(data)) != info.Size || !bytes.HasPrefix(file, taggedHead(info.Key, info.Version, data)) {
		return nil, false
	}
	touch(path, st)
	return data, true
}

// keepTagged keeps what is read through it, all of an object, with its entity tag.
func (s *store) keepTagged(key string, r io.ReadCloser) io.ReadCloser {
	tagged, ok := r.(objstore.VersionReader)
	if !ok {
		return r
	}
	return &taggedReader{VersionReader: tagged, store: s, key: key}
}

type taggedReader struct {
	objstore.VersionReader
	store *store
	key   string
	data  []byte
	whole bool
}

func (r *taggedReader) Read(p []byte) (int, error) {
	n, err := r.VersionReader.Read(p)
	if len(r.data)+n <= maxTagged {
		r.data = append(r.data, p[:n]...)
		r.whole = err == io.EOF
	} else {
		r.data, r.whole = nil, false
	}
	return n, err
}

// Close keeps the object if it has been read to its end.
func (r *taggedReader) Close() error {
	err := r.VersionReader.Close()
	if tag := r.Version(); err == nil && r.whole && tag != "" {
		_ = r.store.dir.write(r.store.folder, manifestsFolder, taggedName(r.key), func(f *os.File) error {
			_, err := f.Write(append(taggedHead(r.key, tag, r.data), r.data...))
			return err
		}) // else it is read again
	}
	return err
}

// forget removes what is remembered of an object that is to go.
func (s *store) forget(key string) {
	switch kind, name := s.kind(key); kind {
	case Digested, Own:
		_ = os.Remove(s.path(name)) // it is proven when it is read
	case Tagged:
		_ = os.Remove(filepath.Join(s.folder, manifestsFolder, taggedName(key)))
	}
}
