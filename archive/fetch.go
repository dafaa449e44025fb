// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"errors"
	"io"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/internal/memory"
	"github.com/imgbackup/imgbackup/objstore"
)

// FetcherOptions are the settings of a Fetcher; the zero value is good.
type FetcherOptions struct {
	Parallel int           // requests and decoders at work at once; 0: one per CPU, at least 4, at most 16, by Memory
	Memory   memory.Budget // decides how much is in hand at once
	// Buffer, if it is not nil, lends Batch a buffer of GridSize bytes for each
	// chunk. The chunk that fn gets begins where the buffer does, and is fn's.
	Buffer func() []byte
}

// Fetcher reads and proves chunks. A request is a stream that is decoded frame by
// frame, so that for each of Parallel requests at work only one frame and its
// chunk are in memory. It is safe for concurrent use and needs no closing.
type Fetcher struct {
	store objstore.Store
	o     FetcherOptions
	slots chan *fetchSlot
}

// fetchSlot is what one request at work needs.
type fetchSlot struct {
	dec    *decoder
	stored []byte
	chunk  []byte
}

// NewFetcher returns a fetcher.
func NewFetcher(store objstore.Store, o FetcherOptions) *Fetcher {
	if o.Parallel <= 0 {
		o.Parallel = o.Memory.Count(min(max(4, runtime.GOMAXPROCS(0)), 16), 2)
	}
	f := &Fetcher{store: store, o: o, slots: make(chan *fetchSlot, o.Parallel)}
	for range o.Parallel {
		f.slots <- &fetchSlot{}
	}
	return f
}

func (f *Fetcher) slot(ctx context.Context) (*fetchSlot, error) {
	select {
	case s := <-f.slots:
		if s.dec == nil {
			dec, err := newDecoder()
			if err != nil {
				f.slots <- s
				return nil, err
			}
			s.dec = dec
		}
		return s, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// checkFrame judges what a map says of a frame before it is asked for.
func checkFrame(e *Entry) error {
	if e.Zero {
		return errors.New("archive: a run of zeros has no chunk")
	}
	if e.FrameOffset < 0 || e.FrameLength <= 0 || e.FrameLength > maxFrame || e.Pack.Length > maxPackLength ||
		e.FrameOffset > e.Pack.Length-int64(e.FrameLength) {
		return damagef(PackKey(e.Pack.Name), 0, 0, "a map names a frame of %d bytes at %d, in a pack of %d bytes",
			e.FrameLength, e.FrameOffset, e.Pack.Length)
	}
	return nil
}

// decode proves the frame of e and that the chunk is long enough for it.
func (s *fetchSlot) decode(e *Entry, frame, buf []byte) ([]byte, error) {
	chunk, err := s.dec.chunk(frame, buf, e.Chunk)
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
	if err := checkFrame(&e); err != nil {
		return nil, err
	}
	s, err := f.slot(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { f.slots <- s }()
	s.stored = sized(s.stored, int(e.FrameLength))
	if err := readRange(ctx, f.store, PackKey(e.Pack.Name), e.FrameOffset, s.stored, e.Pack.Length); err != nil {
		return nil, err
	}
	return s.decode(&e, s.stored, buf)
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
	g.SetLimit(f.o.Parallel)
	for i := range requests {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			s, err := f.slot(gctx)
			if err != nil {
				return err
			}
			defer func() { f.slots <- s }()
			return f.fetch(gctx, s, entries, &requests[i], fn)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// Slices is Batch for whoever wants each entry's own bytes: fn gets an entry's index and
// what it has of its chunk, from several goroutines at once, and must not keep it.
func (f *Fetcher) Slices(ctx context.Context, entries []Entry, fn func(i int, data []byte) error) error {
	return f.Batch(ctx, entries, func(indexes []int, chunk []byte) error {
		for _, i := range indexes {
			data, err := entries[i].In(chunk)
			if err != nil {
				return &EntryError{Indexes: []int{i}, Entry: entries[i], Err: err}
			}
			if err := fn(i, data); err != nil {
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

func (f *Fetcher) fetch(ctx context.Context, s *fetchSlot, entries []Entry, r *request, fn func([]int, []byte) error) error {
	pack := entries[r.uses[0]].Pack
	in := frameStream{ctx: ctx, store: f.store, key: PackKey(pack.Name), length: pack.Length, pos: r.offset, end: r.end}
	var err error
	if in.r, err = getObject(ctx, f.store, in.key, r.offset, r.end-r.offset); err != nil {
		return &EntryError{Indexes: slices.Clone(r.uses), Entry: entries[r.uses[0]], Err: err}
	}
	defer in.close()
	for uses := r.uses; len(uses) > 0; {
		e := &entries[uses[0]]
		n := 1
		for n < len(uses) && compareFrames(e, &entries[uses[n]]) == 0 {
			n++
		}
		if err := f.deliver(s, entries, uses[:n], &in, fn); err != nil {
			return err
		}
		uses = uses[n:]
	}
	return nil
}

// deliver decodes one frame and hands it out.
func (f *Fetcher) deliver(s *fetchSlot, entries []Entry, uses []int, in *frameStream, fn func([]int, []byte) error) error {
	e := &entries[uses[0]]
	s.stored = sized(s.stored, int(e.FrameLength))
	err := in.read(e.FrameOffset, s.stored)
	var chunk []byte
	if err == nil {
		if f.o.Buffer != nil {
			chunk, err = s.decode(e, s.stored, f.o.Buffer())
		} else if chunk, err = s.decode(e, s.stored, s.chunk); err == nil {
			s.chunk = chunk
		}
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
