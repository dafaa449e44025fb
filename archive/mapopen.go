// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// openEnds is readEnds of a map that is encrypted. It takes as many requests.
func (m *Map) openEnds(ctx context.Context, keys *crypt.Keys, keep int64) (dir []byte, err error) {
	ref := m.ref
	if ref.Length <= max(smallMap, min(keep, maxKept)) {
		return m.openWhole(ctx, keys)
	}
	// The object's length is known before the buffer is made, so that a wrong
	// reference costs no memory.
	if ref.DirLength > 1<<20 {
		if _, err := statObject(ctx, m.store, m.key, ref.Length); err != nil {
			return nil, err
		}
	}
	ends := crypt.Ends{
		Length: ref.Length,
		Start:  make([]byte, min(crypt.StartLength(mapStart), ref.Length)),
		Tail:   make([]byte, min(crypt.TailLength(ref.DirLength), ref.Length)),
	}
	g, gctx := errgroup.WithContext(ctx)
	store, key := m.store, m.key
	g.Go(func() error {
		return readRange(gctx, store, key, ref.Length-int64(len(ends.Tail)), ends.Tail, ref.Length)
	})
	g.Go(func() error { return readRange(gctx, store, key, 0, ends.Start, ref.Length) })
	if err := g.Wait(); err != nil {
		return nil, err
	}
	file, err := keys.OpenFile(crypt.Metadata, ends, func(ctx context.Context, off, n int64) ([]byte, error) {
		data := make([]byte, n)
		return data, readRange(ctx, store, key, off, data, ref.Length)
	})
	if err != nil {
		return nil, unopened(key, 0, ref.Length, err)
	}
	if m.length = file.Size(); m.length < ref.DirLength {
		return nil, damagef(key, 0, 0, "a map of %d bytes with a directory of %d bytes can't be", m.length, ref.DirLength)
	}
	at := m.length - ref.DirLength
	dir, err = file.Opened(at, ref.DirLength)
	var start []byte
	if err == nil {
		start, err = file.Opened(0, min(mapStart, at))
	}
	if err != nil {
		return nil, unopened(key, 0, ref.Length, err)
	}
	m.store = keptObject{Store: openedObject{Store: store, key: key, file: file}, key: key, data: start}
	return dir, nil
}

// openWhole fetches the map and keeps it, decrypted.
func (m *Map) openWhole(ctx context.Context, keys *crypt.Keys) (dir []byte, err error) {
	ref := m.ref
	stored := make([]byte, ref.Length)
	if err := readRange(ctx, m.store, m.key, 0, stored, ref.Length); err != nil {
		return nil, err
	}
	if err := m.proveWhole(stored); err != nil {
		return nil, err
	}
	data, err := openObject(keys, crypt.Metadata, m.key, stored)
	if err != nil {
		return nil, err
	}
	if m.length = int64(len(data)); m.length < ref.DirLength {
		return nil, damagef(m.key, 0, 0, "a map of %d bytes with a directory of %d bytes can't be", m.length, ref.DirLength)
	}
	m.store = keptObject{Store: m.store, key: m.key, data: data}
	return data[m.length-ref.DirLength:], nil
}

// openedObject is a store that gives one object decrypted.
type openedObject struct {
	objstore.Store
	key  string
	file *crypt.File
}

// Unwrap is the store.
func (o openedObject) Unwrap() objstore.Store { return o.Store }

// Get gives ranges of the content, which must lie in it.
func (o openedObject) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if key != o.key {
		return o.Store.Get(ctx, key, offset, length)
	}
	data, damaged, err := o.file.Read(ctx, offset, length)
	if damaged {
		return nil, unopened(key, 0, 0, err)
	}
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}
