// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"fmt"

	"github.com/imgbackup/imgbackup/archive/known"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/zero"
)

// cell is one unit of work in flight.
type cell struct {
	m           *MapWriter
	off, length int64
	ctx         context.Context
	produce     Producer
	last        bool // the end of the map
	flush       bool // no end, but the pack is to be stored; of no map

	done    chan struct{} // gets one token when results or err are there
	results []result
	out     []byte // the frames of results
	err     error
}

// result is what became of a piece.
type result struct {
	off, length int64
	whole       int32 // bytes of the chunk
	zero        bool
	known       bool // at is a place in a pack
	reused      bool // the pack was there before this session
	at          place
	chunkOff    int32
	start, end  int // else: the frame in cell.out
	chunk       Digest
	parts       []crypt.Part // of an encrypted repository
	grouped     bool         // at is in the group that is open in the pack
	lone        *KeyedChunk  // out has a group of one frame, encrypted
}

// worker runs producers, and turns data into frames.
type worker struct {
	w    *Writer
	enc  *encoder
	buf  []byte // the producers'
	wide []byte // for a frame that is to be encrypted
	back []byte // for frames that are read back
	last place  // of the group that was last found to stand
}

func newWorker(w *Writer) (*worker, error) {
	enc, err := newEncoder(w.o.Level, !w.o.SkipVerify)
	if err != nil {
		return nil, err
	}
	return &worker{w: w, enc: enc}, nil
}

func (k *worker) run() {
	defer k.enc.close()
	for c := range k.w.jobs {
		if c.err = k.w.err(); c.err == nil {
			c.err = k.cell(c)
		}
		if c.err != nil {
			k.w.fail(c.err)
		}
		c.done <- struct{}{}
	}
}

func (k *worker) cell(c *cell) error {
	ctx, cancel := context.WithCancelCause(c.ctx)
	defer cancel(nil)
	stop := context.AfterFunc(k.w.ctx, func() { cancel(k.w.err()) })
	defer stop()
	if k.buf == nil {
		k.buf = make([]byte, GridSize)
	}
	pieces, err := c.produce(ctx, k.buf)
	if err != nil {
		return err
	}
	next := c.off
	for i := range pieces {
		p := &pieces[i]
		if p.Offset < next || p.Length <= 0 || p.Length > c.off+c.length-p.Offset {
			return fmt.Errorf("archive: disk %s: the piece of %d bytes at %d is out of order or outside of its cell",
				c.m.build.head.disk, p.Length, p.Offset)
		}
		next = p.Offset + p.Length
		if err := k.piece(ctx, c, p); err != nil {
			return fmt.Errorf("disk %s at %d: %w", c.m.build.head.disk, p.Offset, err)
		}
	}
	return nil
}

func (k *worker) piece(ctx context.Context, c *cell, p *Piece) error {
	r := result{off: p.Offset, length: p.Length}
	if p.Reuse != nil {
		ok, err := k.reuse(ctx, &r, p)
		if err != nil {
			return err
		}
		if ok {
			c.results = append(c.results, r)
			return nil
		}
	}
	if !p.fits() {
		return fmt.Errorf("archive: a piece of %d bytes comes with %d bytes of data", p.Length, len(p.Data))
	}
	if r.whole = int32(len(p.Data)); p.Part != nil {
		r.chunkOff = *p.Part
	}
	if p.Zero || zero.Is(p.Data) {
		r.zero = true
		c.results = append(c.results, r)
		return nil
	}
	switch keys := k.w.keys; {
	case keys != nil:
		r.parts = keys.Digests().Parts(make([]crypt.Part, 0, partCount(int32(len(p.Data)))), p.Data)
		r.chunk = keys.Digests().Chunk(len(p.Data), r.parts)
	case p.Digest != nil:
		r.chunk = *p.Digest
	default:
		r.chunk = Sum(p.Data)
	}
	if err := k.find(ctx, &r, p.Data); err != nil {
		return err
	}
	if !r.known {
		r.start = len(c.out)
		if err := k.frame(c, &r, p.Data); err != nil {
			return err
		}
		r.end = len(c.out)
	}
	c.results = append(c.results, r)
	return nil
}

// frame makes a frame of data, and of one that is a group by itself the group. To encrypt
// it is work like compressing it is, and should not wait for its turn in the pack.
func (k *worker) frame(c *cell, r *result, data []byte) (err error) {
	keys := k.w.keys
	if keys == nil {
		c.out, err = k.enc.frame(c.out, data)
		return err
	}
	if k.wide, err = k.enc.frame(k.wide[:0], data); err != nil {
		return err
	}
	if len(k.wide) < groupSize {
		c.out = append(c.out, k.wide...)
		return nil
	}
	at := len(c.out)
	if c.out, err = appendLone(c.out, keys, k.wide, len(data), &r.chunk); err != nil {
		return err
	}
	r.lone = &KeyedChunk{Frame: int32(len(k.wide)), Group: Sum(c.out[at:]), Generation: keys.Generation(), Parts: r.parts}
	return nil
}

// fits reports whether the piece's data is what the piece says.
func (p *Piece) fits() bool {
	switch {
	case p.Zero != (p.Data == nil) || len(p.Data) > GridSize:
		return false
	case p.Data == nil:
		return true
	case p.Part == nil:
		return int64(len(p.Data)) == p.Length
	}
	return *p.Part >= 0 && int64(*p.Part)+p.Length <= int64(len(p.Data))
}

// reuse refers to a chunk that the producer knows. Without data to store instead,
// a pack that is not there is an error.
func (k *worker) reuse(ctx context.Context, r *result, p *Piece) (bool, error) {
	e := *p.Reuse
	if e.Offset > p.Offset || e.End() < p.Offset+p.Length || e.Length < 0 {
		return false, fmt.Errorf("archive: the entry to be reused does not cover the piece of %d bytes", p.Length)
	}
	e.Clip(p.Offset, p.Offset+p.Length)
	if e.Zero {
		r.zero = true
		return true, nil
	}
	err := checkFrame(&e, frameLimit(k.w.keys))
	var n uint32
	if err == nil {
		n, err = k.w.packs.seen(ctx, e.Pack)
	}
	if err != nil {
		if p.Data == nil || ctx.Err() != nil {
			return false, err
		}
		return false, nil
	}
	r.known, r.reused = true, true
	r.at = place{pack: n, frameOff: uint32(e.FrameOffset), frameLen: uint32(e.FrameLength)}
	r.chunkOff, r.chunk = e.ChunkOffset, e.Chunk
	return true, nil
}

// find looks for an equal chunk. One that this session did not write counts only
// after its frame has been read back and compared.
func (k *worker) find(ctx context.Context, r *result, data []byte) error {
	if len(data) < minDedup {
		return nil
	}
	at, ok, err := k.w.table.lookup(&r.chunk)
	if err != nil {
		return fmt.Errorf("what this backup has stored before can't be read (TMPDIR says where it is kept): %w", err)
	}
	if !ok {
		return k.findKnown(ctx, r, data)
	}
	if !at.proven() {
		ok, err := k.readBack(ctx, at, r.chunk, data)
		if err != nil || !ok {
			return err
		}
		k.w.table.prove(&r.chunk, at)
	}
	k.found(r, at)
	return nil
}

func (k *worker) found(r *result, at place) {
	r.known, r.at, r.reused = true, at, k.w.packs.foreign(at.pack)
}

// findKnown looks for a chunk in the table that this machine keeps of the repository.
func (k *worker) findKnown(ctx context.Context, r *result, data []byte) (err error) {
	if k.w.known == nil {
		return nil
	}
	k.w.known.Find((*known.Digest)(&r.chunk), func(p known.Place) bool {
		at := place{pack: k.w.packs.number(Ref{Name: p.Pack.Name, Length: p.Pack.Length}), frameOff: p.Offset, frameLen: p.Length}
		var ok bool
		if ok, err = k.readBack(ctx, at, r.chunk, data); !ok {
			return err != nil
		}
		at.frameLen |= provenBit
		k.w.table.learn(ctx, &r.chunk, at)
		k.found(r, at)
		return true
	})
	return err
}

// readBack reports whether a frame in an older pack holds data: by reading it or, where
// that is enough, by what the store vouches for. If not, or when it can't be had, there
// is a note, and the chunk is stored again.
func (k *worker) readBack(ctx context.Context, at place, chunk Digest, data []byte) (bool, error) {
	ref := k.w.packs.ref(at.pack)
	if k.w.packs.isBad(at.pack) {
		return false, nil
	}
	_, err := k.w.packs.seen(ctx, ref)
	if err != nil {
		return false, ctx.Err()
	}
	if k.w.blind() {
		return k.stands(ctx, ref, at, chunk, len(data))
	}
	if k.back == nil {
		k.back = make([]byte, 0, GridSize+bufSlack)
	}
	if k.w.o.Vouched {
		defer k.w.tables.sampling(ref, func() bool { return k.w.packs.toSample(at.pack) })()
	}
	if k.w.o.Vouched && k.w.packs.sampled(at.pack) {
		if has, err := k.w.tables.has(ctx, ref, at, chunk, len(data)); err == nil && has {
			return true, nil
		} // else its frame is read, and proves itself or is told of
	}
	e := Entry{Pack: ref, FrameOffset: int64(at.frameOff), FrameLength: at.length(), Chunk: chunk}
	got, err := k.w.fetcher.Chunk(ctx, e, k.back)
	if err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		if k.madeUp(ctx, ref, at, chunk, len(data), err) {
			return false, nil
		}
		k.w.note("a chunk is stored again, since the one that is there can't be used: %v", err)
		return false, nil
	}
	if !bytes.Equal(got, data) {
		return false, nil
	}
	k.w.packs.sample(at.pack)
	return true, nil
}

// madeUp reports whether it was the machine's own table that promised what is not there:
// the pack's does not. Then it is of no more use, and no damage of the repository.
func (k *worker) madeUp(ctx context.Context, pack Ref, at place, chunk Digest, length int, err error) bool {
	if k.w.known == nil || !IsDamage(err) {
		return false
	}
	has, err := k.w.tables.has(ctx, pack, at, chunk, length)
	if err != nil || has {
		return false
	}
	if !k.w.known.Dropped() {
		k.w.note("what this machine keeps of the repository's chunks was wrong, and is made anew by the next backup")
	}
	k.w.known.Drop()
	return true
}
