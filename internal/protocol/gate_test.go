// SPDX-License-Identifier: Apache-2.0

package protocol_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

// asked answers calls.
type asked interface {
	ask(c *call) (answer, error)
}

// gate is the store of one process, whose operations are calls.
type gate struct {
	to   asked
	pool *pool
}

func (g gate) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if err := errors.Join(objstore.CheckKey(key), o.Check(), o.CheckNotRetained(), ctx.Err()); err != nil {
		return err
	}
	data := make([]byte, body.Size()) // not nil
	if _, err := io.ReadFull(io.NewSectionReader(body, 0, body.Size()), data); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	c := &call{kind: create, key: key, old: g.pool.of(o.Old), data: g.pool.of(data)}
	switch {
	case o.Old != nil:
		c.kind = swap
	case o.Mode == objstore.Replace:
		c.kind = put
	}
	got, err := g.to.ask(c)
	if got.twice && o.Late != nil {
		*o.Late = true
	}
	return says(key, errors.Join(got.err, err))
}

func (g gate) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := errors.Join(objstore.CheckKey(key), objstore.CheckRange(key, offset, length), ctx.Err()); err != nil {
		return nil, err
	}
	got, err := g.to.ask(&call{kind: "get", key: key, offset: offset, length: length})
	if err = says(key, errors.Join(got.err, err)); err != nil {
		return nil, err
	}
	size := int64(len(got.blob.data))
	return objstore.NewRange(ctx, bytes.NewReader(got.blob.data), size, offset, length, nil), nil
}

func (g gate) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if err := errors.Join(objstore.CheckKey(key), ctx.Err()); err != nil {
		return objstore.Info{}, err
	}
	got, err := g.to.ask(&call{kind: "stat", key: key})
	if err = says(key, errors.Join(got.err, err)); err != nil {
		return objstore.Info{}, err
	}
	return object{key, got.blob}.info(), nil
}

func (o object) info() objstore.Info {
	return objstore.Info{Key: o.key, Size: int64(len(o.data)), Version: fmt.Sprintf("%x", o.sum)}
}

func (g gate) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		if err := errors.Join(objstore.CheckPrefix(prefix), ctx.Err()); err != nil {
			yield(objstore.Info{}, err)
			return
		}
		got, err := g.to.ask(&call{kind: "list", key: prefix})
		if err = errors.Join(got.err, err); err != nil {
			yield(objstore.Info{}, err)
			return
		}
		for _, o := range got.list {
			if err := ctx.Err(); err != nil {
				yield(objstore.Info{}, err)
				return
			}
			if !yield(o.info(), nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(objstore.Info{}, err)
		}
	}
}

func (g gate) Delete(ctx context.Context, key string) error {
	if err := errors.Join(objstore.CheckKey(key), ctx.Err()); err != nil {
		return err
	}
	got, err := g.to.ask(&call{kind: remove, key: key})
	return says(key, errors.Join(got.err, err))
}

func says(key string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", key, err)
}

// TestStore: what the processes use is a store as any other.
func TestStore(t *testing.T) {
	t.Parallel()
	objstoretest.Run(t, func(*testing.T) objstore.Store { return gate{to: &alone{}, pool: newPool()} })
}

// alone answers at once.
type alone struct {
	mu      sync.Mutex
	objects objects
}

func (a *alone) ask(c *call) (answer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var got answer
	a.objects, got = a.objects.do(c)
	return got, nil
}
