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

// maxBatch is how many entries are fetched together and in use by one read at once, at
// most: more than 1 MiB in pieces of [archive.DiffSize], whatever a map says.
const maxBatch = 64

// chunks fetches decoded chunks and keeps the last ones used. One object serves all
// disks of a reader. It is safe for concurrent use.
//
// In memory are at most limit bytes of chunks, those in use and those that are on their way
// included: what cannot be made room for waits. (One batch is taken in any case.) How long a
// chunk is, is known only when it is there; one that turns out to be longer than there was
// room made for keeps only what was asked for.
type chunks struct {
	ctx     context.Context // of the reader: a chunk is fetched for all who wait for it
	fetcher *archive.Fetcher
	limit   int64         // bytes
	loads   chan struct{} // how many fetch at once

	mu      sync.Mutex
	byKey   map[place]*chunk
	used    list.List // of *chunk; the one last used is in front
	unread  list.List // likewise, those that were fetched ahead and that nobody has used
	ahead   int64     // bytes of unread
	held    int64     // bytes in memory, or to come
	inUse   int64     // of held, what has users
	idle    int64     // of unread, what has none
	lent    int64     // of inUse, what is lent
	waiting list.List // of *waiter: batches that wait for room, in order
	bufs    sync.Pool // of *gridBuffer
	zeros   []byte    // as many as a chunk has
	work    sync.WaitGroup
}

// waiter is who waits for a batch.
type waiter struct {
	batch *batch
	taken chan struct{} // closed when the batch is
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
	parts  []part
	chunks []*chunk
	cost   int64 // bytes that it added to what is in memory
	lent   bool
}

// chunk is one that is fetched or there.
type chunk struct {
	key   place
	ready chan struct{} // closed when data or err is set
	data  []byte
	err   error

	// Under the lock of chunks.
	users int
	lent  int           // of users, to whom it is lent
	want  int64         // up to where it was asked for
	ahead bool          // it is among the unread
	short bool          // it is longer than data
	buf   *gridBuffer   // where data is, if it is lent from the pool
	size  int64         // what it counts for: at least what data takes
	elem  *list.Element // nil: it is not to be found any more
}

// gridBuffer holds any chunk.
type gridBuffer [archive.GridSize]byte

func newChunks(ctx context.Context, store objstore.Store, limit int64, parallel int) *chunks {
	c := &chunks{ctx: ctx, limit: limit, loads: make(chan struct{}, parallel), byKey: make(map[place]*chunk), zeros: make([]byte, archive.GridSize)}
	c.bufs.New = func() any { return new(gridBuffer) }
	c.fetcher = archive.NewFetcher(store, archive.FetcherOptions{Parallel: parallel, Buffer: func() []byte { return c.bufs.Get().(*gridBuffer)[:] }})
	return c
}

// batchEntries is how many entries a batch may have, so that there is room for two.
func (c *chunks) batchEntries() int { return int(min(max(c.limit/archive.GridSize/2, 1), maxBatch)) }

// acquire sees to it that the chunks of at most batchEntries entries, which the batch
// keeps, are fetched if they are not there, with as few requests as possible. It waits
// for room in memory, but not for the chunks. The batch must be released.
func (c *chunks) acquire(ctx context.Context, parts []part) (*batch, error) {
	b := newBatch(parts)
	c.mu.Lock()
	if c.waiting.Len() == 0 && c.take(b, false) {
		c.mu.Unlock()
		return b, nil
	}
	w := &waiter{batch: b, taken: make(chan struct{})}
	elem := c.waiting.PushBack(w)
	c.mu.Unlock()
	select {
	case <-w.taken:
		return b, nil
	case <-ctx.Done():
	}
	c.mu.Lock()
	select {
	case <-w.taken: // at the same moment
		c.mu.Unlock()
		c.release(b)
	default:
		c.waiting.Remove(elem)
		c.next() // the one behind may want less
		c.mu.Unlock()
	}
	return nil, context.Cause(ctx)
}

// tryAcquire is acquire for what nobody wants yet, or nil where that would have to wait, or
// leave little room.
func (c *chunks) tryAcquire(parts []part) *batch {
	b := newBatch(parts)
	c.mu.Lock()
	defer c.mu.Unlock()
	// What was fetched ahead before is to be there when it is read.
	if c.waiting.Len() > 0 || !c.fits(b, c.limit/8*7-c.idle) || !c.take(b, true) {
		return nil
	}
	return b
}

func newBatch(parts []part) *batch {
	return &batch{parts: parts, chunks: make([]*chunk, len(parts))}
}

// roomFor is how much room is made for the chunk of a part, bytes. Most chunks are not
// longer than where they are used first; and of those that are, few are compressed to less
// than half.
func roomFor(p *part) int64 {
	n := max(p.end(), 2*int64(p.FrameLength))
	if n > archive.GridSize/2 {
		return archive.GridSize // a whole buffer
	}
	return n
}

// end is up to where the chunk is needed, as far as one can reach.
func (p *part) end() int64 { return min(max(p.reach, 0), archive.GridSize) }

// find returns the chunk of a part if it is there, or to come; and how many bytes more would be
// in use with it.
func (c *chunks) find(e *part) (k *chunk, more int64) {
	room := roomFor(e)
	k = c.byKey[placeOf(&e.Entry)]
	switch {
	case k == nil || k.short && e.end() > int64(len(k.data)):
		return nil, room
	case k.users == 0:
		return k, k.size
	case !k.isReady():
		return k, max(room-k.size, 0)
	}
	return k, 0
}

func (k *chunk) isReady() bool {
	select {
	case <-k.ready:
		return true
	default:
		return false
	}
}

// wants is how many bytes more would be in use with a batch; some may be counted twice.
func (c *chunks) wants(b *batch) (n int64) {
	for i := range b.parts {
		if e := &b.parts[i]; !e.Zero {
			_, more := c.find(e)
			n += more
		}
	}
	return n
}

// fits reports whether no more than limit is in use with a batch.
func (c *chunks) fits(b *batch, limit int64) bool {
	return c.inUse+int64(len(b.parts))*archive.GridSize <= limit || c.inUse+c.wants(b) <= limit
}

// take finds the chunks of a batch, and has those that are missing fetched, if there is
// room for all of it. With ahead, that is no use of them.
func (c *chunks) take(b *batch, ahead bool) bool {
	if c.inUse > 0 && !c.fits(b, c.limit) {
		return false
	}
	var missing []archive.Entry
	var fresh []*chunk
	for i := range b.parts {
		e := &b.parts[i]
		if e.Zero {
			continue
		}
		k, more := c.find(e)
		if k == nil {
			k = c.fresh(e, ahead)
			b.cost += k.size
			whole := e.Entry
			whole.ChunkOffset, whole.Length = 0, 0 // how much an entry wants is its own matter
			missing = append(missing, whole)
			fresh = append(fresh, k)
		} else {
			if !ahead {
				c.touch(k)
			}
			if k.users > 0 && more > 0 { // before it is there
				c.resize(k, k.size+more)
				c.inUse += more
			}
		}
		k.want = max(k.want, e.end())
		c.use(k)
		b.chunks[i] = k
	}
	c.shrink()
	if len(missing) > 0 {
		c.work.Go(func() { c.load(missing, fresh) })
	}
	return true
}

// fresh puts a chunk that is to be loaded among those that are kept. The loader is its first
// user.
func (c *chunks) fresh(e *part, ahead bool) *chunk {
	key := placeOf(&e.Entry)
	if old := c.byKey[key]; old != nil {
		c.drop(old)
	}
	k := &chunk{key: key, ready: make(chan struct{}), size: roomFor(e)}
	c.use(k)
	if k.ahead = ahead; ahead {
		k.elem = c.unread.PushFront(k)
		c.ahead += k.size
	} else {
		k.elem = c.used.PushFront(k)
	}
	c.byKey[key] = k
	c.held += k.size
	return k
}

// touch makes a chunk the one last used.
func (c *chunks) touch(k *chunk) {
	if !k.ahead {
		c.used.MoveToFront(k.elem)
		return
	}
	c.noMoreAhead(k)
	k.elem = c.used.PushFront(k)
}

// noMoreAhead takes a chunk from the unread ones.
func (c *chunks) noMoreAhead(k *chunk) {
	c.unread.Remove(k.elem)
	c.ahead -= k.size
	if k.users == 0 {
		c.idle -= k.size
	}
	k.ahead = false
}

// abandon is of chunks that were fetched ahead and that nobody will read, it seems: they are
// the first to be dropped.
func (c *chunks) abandon(list []*chunk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range list {
		if k.ahead {
			c.noMoreAhead(k)
			k.elem = c.used.PushBack(k)
		}
	}
}

// resize changes what a chunk counts for.
func (c *chunks) resize(k *chunk, size int64) {
	c.held += size - k.size
	if k.ahead {
		c.ahead += size - k.size
	}
	k.size = size
}

func (c *chunks) use(k *chunk) {
	if k.users++; k.users == 1 {
		c.inUse += k.size
		if k.ahead {
			c.idle -= k.size
		}
	}
}

// leave is the end of a use.
func (c *chunks) leave(k *chunk) {
	if k.users--; k.users == 0 {
		c.inUse -= k.size
		if k.ahead {
			c.idle += k.size
		}
		c.forget(k)
	}
}

// next lets those in who wait, as long as there is room.
func (c *chunks) next() {
	for e := c.waiting.Front(); e != nil; e = c.waiting.Front() {
		w := e.Value.(*waiter)
		if !c.take(w.batch, false) {
			return
		}
		c.waiting.Remove(e)
		close(w.taken)
	}
}

// each calls fn for each entry with its bytes, nil for zeros, as they come. What fn
// gets is valid until the batch is released. Where tolerate, which may be nil, agrees, what
// cannot be had is zeros.
func (b *batch) each(
	ctx context.Context, fn func(e *archive.Entry, data []byte), tolerate func(e *archive.Entry, err error) bool,
) error {
	for i := range b.parts {
		e := &b.parts[i].Entry
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

// lend reports whether the chunks of a batch, all of which are there, may stay in use for as
// long as somebody else likes. A quarter of the memory may: so those who wait for their
// bytes always find room, however slowly clients take theirs.
func (c *chunks) lend(b *batch) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	more := int64(0)
	for _, k := range b.chunks {
		if k != nil && k.lent == 0 {
			more += k.size
		}
	}
	if c.lent+more > c.limit/4 {
		return false
	}
	b.lent = true
	for _, k := range b.chunks {
		if k == nil {
			continue
		}
		if k.lent++; k.lent == 1 {
			c.lent += k.size
		}
	}
	return true
}

// release gives a batch up.
func (c *chunks) release(b *batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range b.chunks {
		if k == nil {
			continue
		}
		if b.lent {
			if k.lent--; k.lent == 0 {
				c.lent -= k.size
			}
		}
		c.leave(k)
	}
	c.shrink()
	c.next()
}

// forget gives back the memory of a chunk that nobody uses and that is not kept.
func (c *chunks) forget(k *chunk) {
	if k.users > 0 || k.elem != nil {
		return
	}
	c.held -= k.size
	if k.buf != nil {
		c.bufs.Put(k.buf)
	}
	k.buf, k.data = nil, nil
}

// drop takes a chunk out of those that are kept.
func (c *chunks) drop(k *chunk) {
	if k.ahead {
		c.noMoreAhead(k)
	} else {
		c.used.Remove(k.elem)
	}
	k.elem = nil
	delete(c.byKey, k.key)
	c.forget(k)
}

// mostAhead is how much of the memory what was fetched ahead may take, bytes: more than is
// fetched ahead, since of what lies before a stream's end not all need have been read.
func (c *chunks) mostAhead() int64 { return c.limit / 8 * 7 }

// shrink drops what is over the limit and not in use: of what was fetched ahead what is too
// much of that, then what was used, then the rest. Of what was used the oldest goes first; of
// what was fetched ahead the newest, which will be read last.
func (c *chunks) shrink() {
	c.trim(&c.unread, (*list.List).Front, (*list.Element).Next, func() bool { return c.held > c.limit && c.ahead > c.mostAhead() })
	c.trim(&c.used, (*list.List).Back, (*list.Element).Prev, func() bool { return c.held > c.limit })
	c.trim(&c.unread, (*list.List).Front, (*list.Element).Next, func() bool { return c.held > c.limit })
}

// trim drops chunks of a list that are not in use as long as there are too many.
func (c *chunks) trim(l *list.List, first func(*list.List) *list.Element, next func(*list.Element) *list.Element, tooMany func() bool) {
	for e := first(l); e != nil && tooMany(); {
		k := e.Value.(*chunk)
		e = next(e)
		if k.users == 0 {
			c.drop(k)
		}
	}
}

// dropAll drops what is not in use.
func (c *chunks) dropAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range []*list.List{&c.used, &c.unread} {
		c.trim(l, (*list.List).Back, (*list.Element).Prev, func() bool { return true })
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
	defer c.mu.Unlock()
	size := int64(len(data))
	if buf != nil {
		size = archive.GridSize
	}
	if size > k.size {
		data = slices.Clone(data[:min(k.want, int64(len(data)))])
		size, k.short = int64(len(data)), true
		if buf != nil {
			c.bufs.Put(buf)
			buf = nil
		}
	}
	k.data, k.err, k.buf = data, err, buf
	close(k.ready)
	c.inUse -= k.size - size
	c.resize(k, size)
	if err != nil {
		c.drop(k) // whoever wants it next tries again
	}
	c.leave(k)
	c.shrink()
	c.next()
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
