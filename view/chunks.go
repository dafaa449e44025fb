// SPDX-License-Identifier: Apache-2.0

package view

import (
	"container/list"
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

// chunks fetches decoded chunks and keeps the last ones used. One object serves all
// disks of a server. It is safe for concurrent use.
type chunks struct {
	ctx     context.Context // of the server: a chunk is fetched for all who wait for it
	fetcher *archive.Fetcher
	limit   int64         // bytes kept
	loads   chan struct{} // how many fetch at once

	mu    sync.Mutex
	byKey map[archive.Digest]*chunk
	used  list.List // of *chunk; the one last used is in front
	kept  int64
	bufs  sync.Pool // of *gridBuffer
	work  sync.WaitGroup
}

// chunk is one that is fetched or there. Who has acquired it must release it.
type chunk struct {
	key   archive.Digest
	ready chan struct{} // closed when data or err is set
	data  []byte
	err   error

	// Under the lock of chunks.
	users int
	buf   *gridBuffer // where data is, if it is lent from the pool
	size  int64       // what it counts for, 0 while it is fetched
	elem  *list.Element
}

// gridBuffer holds any chunk.
type gridBuffer [archive.GridSize]byte

func newChunks(ctx context.Context, store objstore.Store, limit int64) *chunks {
	c := &chunks{ctx: ctx, limit: limit, loads: make(chan struct{}, 8), byKey: make(map[archive.Digest]*chunk)}
	c.bufs.New = func() any { return new(gridBuffer) }
	c.fetcher = archive.NewFetcher(store, archive.FetcherOptions{Parallel: 8, Buffer: func() []byte { return c.bufs.Get().(*gridBuffer)[:] }})
	return c
}

// acquire returns the chunks of entries, nil for zeros, and sees to it that those
// which are not there are fetched, with as few requests as possible. It does not
// wait for them.
func (c *chunks) acquire(entries []archive.Entry) []*chunk {
	all := make([]*chunk, len(entries))
	var missing []archive.Entry
	var fresh []*chunk
	c.mu.Lock()
	for i := range entries {
		e := &entries[i]
		if e.Zero {
			continue
		}
		k := c.byKey[e.Chunk]
		if k == nil {
			k = &chunk{key: e.Chunk, ready: make(chan struct{}), users: 1} // the loader is its first user
			k.elem = c.used.PushFront(k)
			c.byKey[e.Chunk] = k
			missing = append(missing, *e)
			fresh = append(fresh, k)
		} else {
			c.used.MoveToFront(k.elem)
		}
		k.users++
		all[i] = k
	}
	c.mu.Unlock()
	if len(missing) > 0 {
		c.work.Go(func() { c.load(missing, fresh) })
	}
	return all
}

// wait returns the part of the chunk that the entry wants, valid until k is
// released.
func (k *chunk) wait(ctx context.Context, e *archive.Entry) ([]byte, error) {
	select {
	case <-k.ready:
	default:
		select {
		case <-k.ready:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	if k.err != nil {
		return nil, k.err
	}
	return e.In(k.data)
}

// release gives up chunks that acquire has returned.
func (c *chunks) release(all ...*chunk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range all {
		if k != nil {
			k.users--
			c.forget(k)
		}
	}
	c.shrink()
}

// forget gives back the memory of a chunk that nobody uses and that is not kept.
func (c *chunks) forget(k *chunk) {
	if k.users == 0 && k.elem == nil && k.buf != nil {
		c.bufs.Put(k.buf)
		k.buf, k.data = nil, nil
	}
}

// drop takes a chunk out of those that are kept.
func (c *chunks) drop(k *chunk) {
	c.used.Remove(k.elem)
	k.elem = nil
	delete(c.byKey, k.key)
	c.kept -= k.size
	c.forget(k)
}

// shrink drops what is over the limit and not in use, oldest first.
func (c *chunks) shrink() {
	for e := c.used.Back(); e != nil && c.kept > c.limit; {
		k := e.Value.(*chunk)
		e = e.Prev()
		if k.users == 0 {
			c.drop(k)
		}
	}
}

// done sets what has become of a chunk that was fetched. data, if there is any,
// lies at the beginning of a buffer of the pool.
func (c *chunks) done(k *chunk, data []byte, err error) {
	var buf *gridBuffer
	if err == nil && cap(data) >= archive.GridSize {
		buf = (*gridBuffer)(data[:archive.GridSize])
		if len(data) <= archive.GridSize/2 { // a small one must not keep a large buffer
			data = slices.Clone(data)
			c.bufs.Put(buf)
			buf = nil
		}
	}
	c.mu.Lock()
	k.data, k.err, k.buf = data, err, buf
	close(k.ready)
	k.users--
	if err != nil {
		c.drop(k) // whoever wants it next tries again
	} else {
		k.size = int64(len(data))
		if buf != nil {
			k.size = archive.GridSize
		}
		c.kept += k.size
		c.shrink()
	}
	c.mu.Unlock()
}

// load fetches the chunks of entries for fresh.
func (c *chunks) load(entries []archive.Entry, fresh []*chunk) {
	select {
	case c.loads <- struct{}{}:
		defer func() { <-c.loads }()
	case <-c.ctx.Done():
	}
	got := make([]bool, len(entries))
	var mu sync.Mutex
	err := c.fetcher.Batch(c.ctx, entries, func(indexes []int, data []byte) error {
		for at, i := range indexes {
			if at > 0 { // a chunk has one buffer
				data = slices.Clone(data)
			}
			mu.Lock()
			had := got[i]
			got[i] = true
			mu.Unlock()
			if !had {
				c.done(fresh[i], data, nil)
			}
		}
		return nil
	})
	// One fault stops a batch: the others are fetched by themselves, so that each
	// one's fault is its own.
	for i := range entries {
		if got[i] {
			continue
		}
		if err == nil {
			err = errors.New("a chunk was not delivered")
		}
		if len(entries) == 1 || c.ctx.Err() != nil {
			c.done(fresh[i], nil, err)
			continue
		}
		data, err := c.fetcher.Chunk(c.ctx, entries[i], c.bufs.Get().(*gridBuffer)[:])
		c.done(fresh[i], data, err)
	}
}
