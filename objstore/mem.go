// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// NewMem returns an empty store in memory, for tests. It keeps every promise
// of a store but durability.
func NewMem() Store {
	return &mem{objects: make(map[string]memObject)}
}

type mem struct {
	mu      sync.RWMutex
	objects map[string]memObject
	puts    int // so many there were; the versions of objects
}

// memObject is never changed.
type memObject struct {
	data   []byte
	sha256 [sha256.Size]byte // zero: not told when it was stored
	put    int
}

func (o memObject) info(key string) Info {
	return Info{Key: key, Size: int64(len(o.data)), Version: strconv.Itoa(o.put), SHA256: o.sha256}
}

func (m *mem) Put(ctx context.Context, key string, body Body, o PutOptions) error {
	if err := errors.Join(CheckKey(key), o.CheckNotRetained()); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	data := make([]byte, body.Size())
	if _, err := io.ReadFull(io.NewSectionReader(body, 0, body.Size()), data); err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	if o.SHA256 != [sha256.Size]byte{} && sha256.Sum256(data) != o.SHA256 {
		return fmt.Errorf("store %s: the bytes are not those of the SHA-256 that came with them", key)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old, ok := m.objects[key]
	switch {
	case ok && o.Mode == Create:
		return fmt.Errorf("store %s: %w", key, ErrExists)
	case o.Old != nil && (!ok || !bytes.Equal(old.data, o.Old)):
		return fmt.Errorf("store %s: %w", key, ErrChanged)
	}
	m.puts++
	m.objects[key] = memObject{data: data, sha256: o.SHA256, put: m.puts}
	return nil
}

func (m *mem) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	if err := CheckRange(key, offset, length); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.RLock()
	o, ok := m.objects[key]
	m.mu.RUnlock()
	if !ok {
		return nil, fmt.Errorf("%s: %w", key, ErrNotFound)
	}
	r := NewRange(ctx, bytes.NewReader(o.data), int64(len(o.data)), offset, length, nil)
	return &memReader{ReadCloser: r, version: o.info(key).Version}, nil
}

// memReader is a VersionReader.
type memReader struct {
	io.ReadCloser
	version string
}

func (r *memReader) Version() string { return r.version }

func (m *mem) Stat(ctx context.Context, key string) (Info, error) {
	if err := CheckKey(key); err != nil {
		return Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return Info{}, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	o, ok := m.objects[key]
	if !ok {
		return Info{}, fmt.Errorf("%s: %w", key, ErrNotFound)
	}
	return o.info(key), nil
}

func (m *mem) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := CheckPrefix(prefix); err != nil {
			yield(Info{}, err)
			return
		}
		var infos []Info
		m.mu.RLock()
		for key, o := range m.objects {
			if strings.HasPrefix(key, prefix) {
				infos = append(infos, o.info(key))
			}
		}
		m.mu.RUnlock()
		slices.SortFunc(infos, func(a, b Info) int { return strings.Compare(a.Key, b.Key) })
		for _, info := range infos {
			if err := ctx.Err(); err != nil {
				yield(Info{}, err)
				return
			}
			if !yield(info, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(Info{}, err)
		}
	}
}

func (m *mem) Delete(ctx context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
	return nil
}
