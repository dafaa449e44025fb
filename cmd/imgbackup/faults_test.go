// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"iter"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/imgbackup/imgbackup/objstore"
)

// deadlyStore kills the program at one of its operations.
type deadlyStore struct {
	objstore.Store
	at     int64
	prefix string // not empty: only what is stored under it counts
	done   atomic.Int64
}

func (d *deadlyStore) now() bool { return d.prefix == "" && d.done.Add(1) == d.at }

func (d *deadlyStore) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if d.now() || d.prefix != "" && strings.HasPrefix(key, d.prefix) && d.done.Add(1) == d.at {
		body = deadlyBody{body}
	}
	return d.Store.Put(ctx, key, body, o)
}

func (d *deadlyStore) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if d.now() {
		killSelf()
	}
	return d.Store.Get(ctx, key, offset, length)
}

func (d *deadlyStore) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if d.now() {
		killSelf()
	}
	return d.Store.Stat(ctx, key)
}

func (d *deadlyStore) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	if d.now() {
		killSelf()
	}
	return d.Store.List(ctx, prefix)
}

func (d *deadlyStore) Delete(ctx context.Context, key string) error {
	if d.now() {
		killSelf()
	}
	return d.Store.Delete(ctx, key)
}

// deadlyBody kills the program while its bytes are being stored.
type deadlyBody struct{ objstore.Body }

func (deadlyBody) ReadAt([]byte, int64) (int, error) {
	killSelf()
	return 0, io.ErrUnexpectedEOF
}

// failure is how a store fails.
type failure string

const (
	failsOnce   failure = "once"
	failsLost   failure = "lost"   // once, and what it was asked for is done
	failsOutage failure = "outage" // from then on
)

// failingStore fails at one of its operations, and lists them.
type failingStore struct {
	objstore.Store
	at  int64 // from 1 on; 0: none fails
	how failure

	mu  sync.Mutex
	ops []string
}

func (f *failingStore) around(s objstore.Store) objstore.Store {
	f.Store = s
	return f
}

type storeError struct{ op, key string }

func (e *storeError) Error() string { return e.op + " " + e.key + ": the store does not answer" }

// fails counts an operation. With do, it is done in spite of the error.
func (f *failingStore) fails(op, key string) (err error, do bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops = append(f.ops, op)
	n := int64(len(f.ops))
	if f.at > 0 && (n == f.at || n > f.at && f.how == failsOutage) {
		return &storeError{op, key}, f.how == failsLost
	}
	return nil, true
}

func (f *failingStore) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	fault, do := f.fails("put", key)
	if do {
		if err := f.Store.Put(ctx, key, body, o); err != nil {
			return err
		}
	}
	return fault
}

func (f *failingStore) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err, _ := f.fails("get", key); err != nil {
		return nil, err
	}
	return f.Store.Get(ctx, key, offset, length)
}

func (f *failingStore) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if err, _ := f.fails("stat", key); err != nil {
		return objstore.Info{}, err
	}
	return f.Store.Stat(ctx, key)
}

func (f *failingStore) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	if err, _ := f.fails("list", prefix); err != nil {
		return func(yield func(objstore.Info, error) bool) { yield(objstore.Info{}, err) }
	}
	return f.Store.List(ctx, prefix)
}

func (f *failingStore) Delete(ctx context.Context, key string) error {
	fault, do := f.fails("delete", key)
	if do {
		if err := f.Store.Delete(ctx, key); err != nil {
			return err
		}
	}
	return fault
}

// Contains implements [objstore.Placed]: the process may use the folder. Nothing else of the store
// is reached past the one that dies.
func (s *deadlyStore) Contains(path string) (bool, error) {
	p, ok := objstore.As[objstore.Placed](s.Store)
	if !ok {
		return false, nil
	}
	return p.Contains(path)
}

// Dir implements [objstore.Placed].
func (s *deadlyStore) Dir() string {
	if p, ok := objstore.As[objstore.Placed](s.Store); ok {
		return p.Dir()
	}
	return ""
}
