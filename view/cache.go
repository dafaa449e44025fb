// SPDX-License-Identifier: Apache-2.0

package view

import (
	"container/list"
	"context"
	"errors"
	"slices"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

const (
	// batchEntries is how much is fetched together and in use by one read at once:
	// more than 1 MiB in pieces of [archive.DiffSize], whatever a map says.
	batchEntries = 64
	// maxInUse is the number of chunks that all reads together hold at once; each may
	// take [archive.GridSize] bytes.
	maxInUse = 256
)

// chunks fetches decoded chunks and keeps the last ones used. One object serves all
// disks of a reader. It is safe for concurrent use.
//
// In memory are at most limit bytes of chunks, or, if that is more, those that are in
// use: maxInUse of them.
type chunks struct {
	ctx     context.Context // of the reader: a chunk is fetched for all who wait for it
	fetcher *archive.Fetcher
	limit   int64               // bytes kept
	inUse   *semaphore.Weighted // of maxInUse chunks
	loads   chan struct{}       // how many fetch at once

	mu    sync.Mutex
	byKey map[place]*chunk
	used  list.List // of *chunk; the one last used is in front
	kept  int64
	bufs  sync.Pool // of *gridBuffer
	work  sync.WaitGroup
}

// place is where a chunk lies. The same bytes elsewhere are another chunk: one may be
// damaged where the other is not.
type place struct {
	pack   archive.Ref
	offset int64
	length int32
	chunk  archive.Digest
}

func placeOf(e *archive.Entry) place {
	return place{pack: e.Pack, offset: e.FrameOffset, length: e.FrameLength, chunk: e.Chunk}
}

// batch is some entries with their chunks, nil for zeros.
type batch struct {
	entries []archive.Entry
	chunks  []*chunk
	held    int64 // of maxInUse
}

// chunk is one that is fetched or there.
type chunk struct {
	key   place
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
	c := &chunks{ctx: ctx, limit: limit, inUse: semaphore.NewWeighted(maxInUse), loads: make(chan struct{}, 8), byKey: make(map[place]*chunk)}
	c.bufs.New = func() any { return new(gridBuffer) }
	c.fetcher = archive.NewFetcher(store, archive.FetcherOptions{
		Parallel: max(8, objstore.Connections(store)),
		Buffer:   func() []byte { return c.bufs.Get().(*gridBuffer)[:] },
	})
	return c
}

// acquire sees to it that the chunks of at most batchEntries entries, which the batch
// keeps, are fetched if they are not there, with as few requests as possible. It waits
// while too many are in use, but not for the chunks. The batch must be released.
func (c *chunks) acquire(ctx context.Context, entries []archive.Entry) (*batch, error) {
	b := newBatch(entries)
	if err := c.inUse.Acquire(ctx, b.held); err != nil {
		return nil, context.Cause(ctx)
	}
	c.want(b)
	return b, nil
}

// tryAcquire is acquire, or nil where that would have to wait.
func (c *chunks) tryAcquire(entries []archive.Entry) *batch {
	b := newBatch(entries)
	if !c.inUse.TryAcquire(b.held) {
		return nil
	}
	c.want(b)
	return b
}

func newBatch(entries []archive.Entry) *batch {
	b := &batch{entries: entries, chunks: make([]*chunk, len(entries))}
	for i := range entries {
		if !entries[i].Zero {
			b.held++
		}
	}
	return b
}

// want finds the chunks of a batch, and has those that are missing fetched.
func (c *chunks) want(b *batch) {
	var missing []archive.Entry
	var fresh []*chunk
	c.mu.Lock()
	for i := range b.entries {
		e := &b.entries[i]
		if e.Zero {
			continue
		}
		key := placeOf(e)
		k := c.byKey[key]
		if k == nil {
			k = &chunk{key: key, ready: make(chan struct{}), users: 1} // the loader is its first user
			k.elem = c.used.PushFront(k)
			c.byKey[key] = k
			whole := *e
			whole.ChunkOffset, whole.Length = 0, 0 // how much an entry wants is its own matter
			missing = append(missing, whole)
			fresh = append(fresh, k)
		} else {
			c.used.MoveToFront(k.elem)
		}
		k.users++
		b.chunks[i] = k
	}
	c.mu.Unlock()
	if len(missing) > 0 {
		c.work.Go(func() { c.load(missing, fresh) })
	}
}

// each calls fn for each entry with its bytes, nil for zeros, as they come. What fn
// gets is valid until the batch is released. Where tolerate, which may be nil, agrees, what
// cannot be had is zeros.
func (b *batch) each(
	ctx context.Context, fn func(e *archive.Entry, data []byte), tolerate func(e *archive.Entry, err error) bool,
) error {
	for i := range b.entries {
		e := &b.entries[i]
		if e.Zero {
			fn(e, nil)
			continue
		}
		data, err := b.chunks[i].wait(ctx, e)
		if err != nil && (tolerate == nil || !tolerate(e, err)) {
			return err
		}
		fn(e, data)
	}
	return nil
}

// wait returns the part of the chunk that the entry wants.
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

// release gives a batch up.
func (c *chunks) release(b *batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range b.chunks {
		if k != nil {
			k.users--
			c.forget(k)
		}
	}
	c.shrink()
	c.inUse.Release(b.held)
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

// dropAll drops what is not in use.
func (c *chunks) dropAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.used.Back(); e != nil; {
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
