// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"errors"
	"io"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/memory"
	"github.com/imgbackup/imgbackup/objstore"
)

// FetcherOptions are the settings of a Fetcher; the zero value is good.
type FetcherOptions struct {
	Parallel int           // requests at work at once; 0: as many as the store is worth, by Memory
	Memory   memory.Budget // decides how much is in hand at once
	// Buffer, if it is not nil, lends Batch a buffer of GridSize bytes for each
	// chunk. The chunk that fn gets begins where the buffer does, and is fn's.
	Buffer func() []byte
}

// Fetcher reads and proves chunks. A request is a stream that is decoded frame by
// frame, so that of each one at work only one frame is in memory; there are as many as
// the store is worth, and chunks of no more than processors are kept busy by. It is safe
// for concurrent use and needs no closing.
type Fetcher struct {
	store    objstore.Store
	keys     *crypt.Keys // nil: the store is plain
	groups   groupCache
	buffer   func() []byte
	far      bool
	frames   chan []byte      // for the frame of each request; nil: not made yet
	decoders chan *chunkSpace // each with a decoder; nil: not made yet
}

// chunkSpace is what it takes to decode a chunk.
type chunkSpace struct {
	dec     *decoder
	chunk   []byte
	content []byte // of a group
}

// mostRequests bounds what their frames take, however many connections there are.
const mostRequests = 64

// counts is how many requests are made at once, and how many chunks are decoded: each is
// work for a processor, as is all of a request where the store is near.
func (o *FetcherOptions) counts(store objstore.Store) (requests, chunks int) {
	near := min(max(4, runtime.GOMAXPROCS(0)), 16)
	requests = o.Parallel
	if requests <= 0 {
		requests = objstore.Connections(store)
		if requests == 0 {
			requests = near
		}
		requests = o.Memory.Count(min(requests, mostRequests), min(requests, 2))
	}
	return requests, o.Memory.Count(min(requests, near), min(requests, 2))
}

// NewFetcher returns a fetcher.
func NewFetcher(store objstore.Store, o FetcherOptions) *Fetcher {
	requests, chunks := o.counts(store)
	f := &Fetcher{
		store: store, keys: KeysOf(store), buffer: o.Buffer, far: objstore.Connections(store) > 0,
		frames: make(chan []byte, requests), decoders: make(chan *chunkSpace, chunks),
	}
	for range requests {
		f.frames <- nil
	}
	for range chunks {
		f.decoders <- nil
	}
	return f
}

// requests is how many are at work at once.
func (f *Fetcher) requests() int { return cap(f.frames) }

func (f *Fetcher) frame(ctx context.Context) ([]byte, error) {
	select {
	case b := <-f.frames:
		return b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// space waits for what it takes to decode a chunk. Who has it asks the store for nothing.
func (f *Fetcher) space(ctx context.Context) (*chunkSpace, error) {
	select {
	case s := <-f.decoders:
		if s != nil {
			return s, nil
		}
		dec, err := newKeyedDecoder(f.keys)
		if err != nil {
			f.decoders <- nil
			return nil, err
		}
		return &chunkSpace{dec: dec}, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// checkFrame judges what a map says of a frame, of at most limit bytes, before it is asked for.
func checkFrame(e *Entry, limit int32) error {
	if e.Zero {
		return errors.New("archive: a run of zeros has no chunk")
	}
	if e.FrameOffset < 0 || e.FrameLength <= 0 || e.FrameLength > limit || e.Pack.Length > maxPackLength ||
		e.FrameOffset > e.Pack.Length-int64(e.FrameLength) {
		return damagef(PackKey(e.Pack.Name), 0, 0, "a map names a frame of %d bytes at %d, in a pack of %d bytes",
			e.FrameLength, e.FrameOffset, e.Pack.Length)
	}
	return nil
}

// open decrypts what was read in place of frames, e's among them. A plain frame is its own group.
func (s *chunkSpace) open(e *Entry, stored []byte) (g group, err error) {
	if s.dec.keys == nil {
		return group{rest: stored}, nil
	}
	if s.content, err = s.dec.keys.Open(s.content, crypt.Data, stored); err == nil {
		g, err = openGroup(s.content)
	}
	return g, unopened(PackKey(e.Pack.Name), e.FrameOffset, int64(e.FrameLength), err)
}

// decode proves the frame of e and that the chunk is long enough for it.
func (s *chunkSpace) decode(e *Entry, g *group, buf []byte) ([]byte, error) {
	frame, err := g.rest, error(nil)
	if s.dec.keys != nil {
		frame, err = g.frame(&e.Chunk)
	}
	var chunk []byte
	if err == nil {
		chunk, err = s.dec.chunk(frame, buf, e.Chunk)
	}
	if err != nil {
		return nil, &DamageError{Object: PackKey(e.Pack.Name), Offset: e.FrameOffset, Length: int64(e.FrameLength), Err: err}
	}
	if _, err := e.In(chunk); err != nil {
		return nil, err
	}
	return chunk, nil
}

// Chunk returns the whole chunk of e, proven by its digest, in buf if that is
// large enough (GridSize bytes always are). What is missing or wrong is a
// [DamageError]; a store that fails is not.
func (f *Fetcher) Chunk(ctx context.Context, e Entry, buf []byte) ([]byte, error) {
	if err := checkFrame(&e, frameLimit(f.keys)); err != nil {
		return nil, err
	}
	if g := f.groups.get(&e); g != nil {
		return f.chunkOf(ctx, &e, g, buf)
	}
	chunk, err := f.readChunk(ctx, e, buf)
	if IsDamage(err) && objstore.Doubted(ctx, f.store, PackKey(e.Pack.Name)) {
		return f.readChunk(ctx, e, buf)
	}
	return chunk, err
}

func (f *Fetcher) readChunk(ctx context.Context, e Entry, buf []byte) ([]byte, error) {
	frame, err := f.frame(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { f.frames <- frame }()
	frame = sized(frame, int(e.FrameLength))
	if err := readRange(ctx, f.store, PackKey(e.Pack.Name), e.FrameOffset, frame, e.Pack.Length); err != nil {
		return nil, err
	}
	s, err := f.space(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { f.decoders <- s }()
	g, err := s.open(&e, frame)
	if err != nil {
		return nil, err
	}
	f.groups.keep(&e, &g)
	return s.decode(&e, &g, buf)
}

// chunkOf is Chunk of a group that is open.
func (f *Fetcher) chunkOf(ctx context.Context, e *Entry, g *group, buf []byte) ([]byte, error) {
	s, err := f.space(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { f.decoders <- s }()
	return s.decode(e, g, buf)
}

// EntryError says which entries of a batch could not be had.
type EntryError struct {
	Indexes []int // in the batch
	Entry   Entry // the first of them
	Err     error
}

func (e *EntryError) Error() string { return e.Err.Error() }
func (e *EntryError) Unwrap() error { return e.Err }

// Batch fetches the chunks of entries, each once, with one or two requests for each pack and
// several at a time. fn gets a chunk, proven, together with the indexes of all entries that use it;
// it is called from several goroutines at once and must not keep the indexes, nor the chunk unless
// FetcherOptions.Buffer lent it. Entries that are zeros are passed over. The first error stops the
// batch: an [EntryError] for what could not be fetched (damage or outage, by what it wraps), or
// what fn returned.
func (f *Fetcher) Batch(ctx context.Context, entries []Entry, fn func(indexes []int, chunk []byte) error) error {
	requests, err := f.plan(entries)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(f.requests())
	for i := range requests {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			frame, err := f.frame(gctx)
			if err != nil {
				return err
			}
			defer func() { f.frames <- frame }()
			frame, err = f.fetch(gctx, frame, entries, &requests[i], fn)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// Slices is Batch for whoever wants each entry's own bytes: fn gets an entry's index, what it
// has of its chunk, and whether that is all of it, from several goroutines at once, and must
// not keep it.
func (f *Fetcher) Slices(ctx context.Context, entries []Entry, fn func(i int, data []byte, whole bool) error) error {
	return f.Batch(ctx, entries, func(indexes []int, chunk []byte) error {
		for _, i := range indexes {
			data, err := entries[i].In(chunk)
			if err != nil {
				return &EntryError{Indexes: []int{i}, Entry: entries[i], Err: err}
			}
			if err := fn(i, data, len(data) == len(chunk)); err != nil {
				return err
			}
		}
		return nil
	})
}

// frameStream reads the frames of a request one after the other.
type frameStream struct {
	ctx    context.Context
	store  objstore.Store
	key    string
	length int64 // of the pack
	r      io.ReadCloser
	pos    int64 // in the pack, of r
	end    int64 // of the request
}

// read fills frame with the bytes at offset. Frames that cannot be read in the
// course of the stream, because it met damage or they overlap, are asked for by
// themselves, so that each one's fault is its own.
func (s *frameStream) read(offset int64, frame []byte) error {
	if s.r == nil || offset < s.pos || offset+int64(len(frame)) > s.end {
		s.close() // nobody waits for a request while it holds one
		return readRange(s.ctx, s.store, s.key, offset, frame, s.length)
	}
	_, err := io.CopyN(io.Discard, s.r, offset-s.pos)
	if err == nil {
		_, err = io.ReadFull(s.r, frame)
	}
	if err != nil {
		s.close()
		return shortRead(s.ctx, s.store, s.key, offset+int64(len(frame)), s.length, err)
	}
	s.pos = offset + int64(len(frame))
	return nil
}

func (s *frameStream) close() {
	if s.r != nil {
		_ = s.r.Close() // all that is wanted has been read and proven, or has failed
		s.r = nil
	}
}

// fetch works on a request. It returns the buffer that it was given for frames.
func (f *Fetcher) fetch(
	ctx context.Context, frame []byte, entries []Entry, r *request, fn func([]int, []byte) error,
) ([]byte, error) {
	pack := entries[r.uses[0]].Pack
	in := frameStream{ctx: ctx, store: f.store, key: PackKey(pack.Name), length: pack.Length, pos: r.offset, end: r.end}
	var err error
	if in.r, err = getObject(ctx, f.store, in.key, r.offset, r.end-r.offset); err != nil {
		return frame, &EntryError{Indexes: slices.Clone(r.uses), Entry: entries[r.uses[0]], Err: err}
	}
	defer in.close()
	for uses := r.uses; len(uses) > 0; {
		e := &entries[uses[0]]
		n := 1
		for n < len(uses) && f.readWith(e, &entries[uses[n]]) {
			n++
		}
		frame = sized(frame, int(e.FrameLength))
		err := f.readAndDeliver(&in, entries, uses[:n], frame, fn)
		if IsDamage(err) && objstore.Doubted(ctx, f.store, in.key) {
			in.close() // from now on each frame is asked for by itself
			err = f.readAndDeliver(&in, entries, uses[:n], frame, fn)
		}
		if err != nil {
			return frame, err
		}
		uses = uses[n:]
	}
	return frame, nil
}

func (f *Fetcher) readAndDeliver(in *frameStream, entries []Entry, uses []int, frame []byte, fn func([]int, []byte) error) error {
	e := &entries[uses[0]]
	if err := in.read(e.FrameOffset, frame); err != nil {
		return &EntryError{Indexes: slices.Clone(uses), Entry: *e, Err: err}
	}
	return f.deliver(in.ctx, entries, uses, frame, fn)
}

// readWith reports whether one is read when the other is: they are of the same frame, or group.
func (f *Fetcher) readWith(a, b *Entry) bool {
	if f.keys != nil {
		return a.FrameOffset == b.FrameOffset && a.FrameLength == b.FrameLength
	}
	return compareFrames(a, b) == 0
}

// deliver decodes what was read for some uses, and hands it out.
func (f *Fetcher) deliver(ctx context.Context, entries []Entry, uses []int, stored []byte, fn func([]int, []byte) error) error {
	s, err := f.space(ctx)
	if err != nil {
		return err
	}
	defer func() { f.decoders <- s }()
	g, err := s.open(&entries[uses[0]], stored)
	if err != nil {
		return &EntryError{Indexes: slices.Clone(uses), Entry: entries[uses[0]], Err: err}
	}
	for len(uses) > 0 {
		n := 1
		for n < len(uses) && compareFrames(&entries[uses[0]], &entries[uses[n]]) == 0 {
			n++
		}
		if err := f.hand(s, &g, entries, uses[:n], fn); err != nil {
			return err
		}
		uses = uses[n:]
	}
	return nil
}

// hand decodes one chunk and hands it out.
func (f *Fetcher) hand(s *chunkSpace, g *group, entries []Entry, uses []int, fn func([]int, []byte) error) (err error) {
	e := &entries[uses[0]]
	var chunk []byte
	if f.buffer != nil {
		chunk, err = s.decode(e, g, f.buffer())
	} else if chunk, err = s.decode(e, g, s.chunk); err == nil {
		s.chunk = chunk
	}
	for i := 1; i < len(uses) && err == nil; i++ {
		if _, err = entries[uses[i]].In(chunk); err != nil {
			uses = uses[i : i+1]
		}
	}
	if err != nil {
		return &EntryError{Indexes: slices.Clone(uses), Entry: entries[uses[0]], Err: err}
	}
	return fn(uses, chunk)
}
