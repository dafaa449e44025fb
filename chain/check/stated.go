// SPDX-License-Identifier: Apache-2.0

package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

// What a check needs not ask for again: on a far store each question costs a way there and
// back.

// stated is a store of which some objects' lengths are known by a listing of this check.
type stated struct {
	objstore.Store
	length func(key string) (int64, bool)
}

// Unwrap returns the store.
func (s stated) Unwrap() objstore.Store { return s.Store }

// Stat implements [objstore.Store].
func (s stated) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if n, ok := s.length(key); ok {
		return objstore.Info{Key: key, Size: n}, nil
	}
	return s.Store.Stat(ctx, key)
}

func (c *check) mapLength(key string) (int64, bool) {
	prefix, name, ok := archive.ParseKey(key)
	n, is := c.mapLengths[name]
	return n, is && ok && prefix == archive.MapPrefix
}

// sourceOf is the store from which an object is read whose length has been looked at.
func (c *check) sourceOf(d datum) objstore.Store {
	return stated{c.source, func(key string) (int64, bool) { return d.ref.Length, key == d.key() }}
}

// smallMap bounds the maps that are read once for all that is proven of them, bytes: there
// may be one for each worker.
const smallMap = 1 << 20

// mapStore is the store, which has a small map in memory. Where it is missing or too short,
// those who need it will be told.
func (c *check) mapStore(ctx context.Context, ref archive.MapRef) (objstore.Store, error) {
	if ref.Length < 1 || ref.Length > smallMap {
		return c.stated, nil
	}
	key := archive.MapKey(ref.Name)
	data := make([]byte, ref.Length)
	r, err := c.stated.Get(ctx, key, 0, ref.Length)
	if err == nil {
		_, err = io.ReadFull(r, data)
		if cerr := r.Close(); err == nil {
			err = cerr
		}
	}
	switch {
	case err == nil:
		return inMemory{c.stated, key, data}, nil
	case errors.Is(err, objstore.ErrNotFound), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return c.stated, nil
	}
	return nil, fmt.Errorf("read %s: %w", key, err)
}

// inMemory is a store that has an object's bytes in memory.
type inMemory struct {
	objstore.Store
	key  string
	data []byte
}

// Unwrap returns the store.
func (s inMemory) Unwrap() objstore.Store { return s.Store }

// Get implements [objstore.Store].
func (s inMemory) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if key != s.key || offset < 0 || length < 0 || offset > int64(len(s.data)) || length > int64(len(s.data))-offset {
		return s.Store.Get(ctx, key, offset, length)
	}
	return io.NopCloser(bytes.NewReader(s.data[offset : offset+length])), nil
}
