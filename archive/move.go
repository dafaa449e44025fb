// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/imgbackup/imgbackup/objstore"
)

// A Mover takes chunks out of packs and puts them into new ones, as they are stored:
// each frame is decoded and proven, and then copied. [Mover.Move] is called for one
// pack after the other, and Finish stores the last new pack and the index. Its methods
// are for one goroutine.
//
// Packs are read and proven several at once, in batches, and the frames go into the new
// packs in the order of the calls. Most are proven by decoding them. A pack that is near,
// and of which much is moved, is read whole and proven by its name, which costs less; one
// whose bytes are not those of its name, then, frame by frame.
type Mover struct {
	store objstore.Store
	o     MoveOptions
	index *IndexWriter

	g     *errgroup.Group     // readers, and those that store
	given context.Context     // the caller's
	ctx   context.Context     // ends with the first error, too
	order chan *moveBatch     // to the packer, in order
	done  chan struct{}       // the packer has ended
	room  *semaphore.Weighted // bytes of batches in flight
	packs chan *packBuilder   // of movePacks, those that are free; nil: not made yet

	spare sync.Pool // *[]byte, of batches that are done

	mu    sync.Mutex
	moved map[Ref]*movedPack
	fresh []Ref // new packs, by number; zero until they are named
	stats MoveStats
}

// MoveOptions are the settings of a Mover; the zero value is good.
type MoveOptions struct {
	PackSize int64  // target size of a new pack, bytes; 0: 32 MiB
	TempDir  string // for indexes; "": os.TempDir
	// Stored is told, from several goroutines, of the bytes of frames that lie in packs
	// that have been stored.
	Stored func(bytes int64)
}

// MoveStats counts what was moved.
type MoveStats struct {
	Chunks    int64
	Bytes     int64 // of frames
	Packs     int64 // new ones
	PackBytes int64
}

const (
	moveBytes   = 4 << 20  // of frames that are decoded one after the other
	moveWhole   = 64 << 20 // a pack that is longer is never read whole
	moveRoom    = 64 << 20 // of batches in flight
	moveUploads = 3
	movePacks   = 1 + moveUploads
)

// movedPack is where the frames of one pack went.
type movedPack struct {
	offsets []int64 // in the old pack, ascending
	to      []movedFrame
}

type movedFrame struct {
	pack   uint32 // number of the new pack
	offset uint32
	length int32
	chunk  Digest
}

// moveBatch is some frames of one pack.
type moveBatch struct {
	pack   Ref
	chunks []PackChunk
	length int64  // of the frames
	whole  bool   // the pack is read whole
	stored []byte // the frames, one after the other
	err    error
	ready  chan struct{}
	to     *movedPack
}

// NewMover begins.
func NewMover(ctx context.Context, store objstore.Store, o MoveOptions) (*Mover, error) {
	if o.PackSize == 0 {
		o.PackSize = defaultPackSize
	}
	if o.PackSize < minPackSize || o.PackSize > maxPackSize {
		return nil, fmt.Errorf("archive: packs of %d bytes are out of range", o.PackSize)
	}
	index, err := NewIndexWriter(store, time.Now().Unix(), o.TempDir)
	if err != nil {
		return nil, err
	}
	workers := min(runtime.GOMAXPROCS(0)+2, 8)
	m := &Mover{
		store: store, o: o, given: ctx, index: index, order: make(chan *moveBatch, workers), done: make(chan struct{}),
		room: semaphore.NewWeighted(moveRoom), packs: make(chan *packBuilder, movePacks), moved: make(map[Ref]*movedPack),
	}
	for range movePacks {
		m.packs <- nil
	}
	m.g, m.ctx = errgroup.WithContext(ctx)
	m.g.Go(m.pack)
	return m, nil
}

// Move takes the frames at these offsets, ascending, out of a pack. The pack's own table
// says what they are; where it has no such frame, or is damaged, the error is a
// [DamageError], and nothing of the pack is moved. What is found out later is what
// Finish returns.
func (m *Mover) Move(pack Ref, offsets []uint32) error {
	table, err := ReadPackTable(m.ctx, m.store, pack)
	if err != nil {
		return err
	}
	chunks, err := chosen(pack, table, offsets)
	if err != nil {
		return err
	}
	to := &movedPack{}
	for _, b := range m.batches(pack, chunks) {
		b.to, b.ready = to, make(chan struct{})
		if err := m.room.Acquire(m.ctx, min(b.length, moveRoom)); err != nil {
			return context.Cause(m.ctx)
		}
		select {
		case m.order <- b:
		case <-m.ctx.Done():
			return context.Cause(m.ctx)
		}
		m.g.Go(func() error {
			defer close(b.ready)
			b.err = m.read(b)
			return b.err
		})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.moved[pack] = to
	return nil
}

// batches cuts what is moved of a pack into batches.
func (m *Mover) batches(pack Ref, chunks []PackChunk) []*moveBatch {
	whole := &moveBatch{pack: pack, chunks: chunks, whole: true}
	for i := range chunks {
		whole.length += int64(chunks[i].FrameLength)
	}
	if _, near := objstore.As[objstore.Placed](m.store); near && pack.Length <= moveWhole && whole.length >= pack.Length/4 {
		return []*moveBatch{whole}
	}
	var all []*moveBatch
	for len(chunks) > 0 {
		b := &moveBatch{pack: pack}
		n := 0
		for n < len(chunks) && (n == 0 || b.length+int64(chunks[n].FrameLength) <= moveBytes) {
			b.length += int64(chunks[n].FrameLength)
			n++
		}
		b.chunks, chunks = chunks[:n:n], chunks[n:]
		all = append(all, b)
	}
	return all
}

// chosen are the lines of a table with these offsets.
func chosen(pack Ref, table []PackChunk, offsets []uint32) ([]PackChunk, error) {
	var chunks []PackChunk
	for _, c := range table {
		if len(offsets) > 0 && c.FrameOffset == int64(offsets[0]) {
			chunks, offsets = append(chunks, c), offsets[1:]
		}
	}
	if len(offsets) > 0 {
		return nil, damagef(PackKey(pack.Name), int64(offsets[0]), 0, "a map names a frame there, and the pack's table does not have it")
	}
	return chunks, nil
}

// read reads and proves the frames of a batch.
func (m *Mover) read(b *moveBatch) error {
	b.stored = m.buffer(b.length)
	if b.whole {
		err := m.readWhole(b)
		if !IsDamage(err) {
			return err
		}
		b.stored = b.stored[:0] // perhaps what is moved is sound
	}
	return m.readFrames(b)
}

// buffer returns an empty buffer for n bytes.
func (m *Mover) buffer(n int64) []byte {
	if buf, ok := m.spare.Get().(*[]byte); ok && int64(cap(*buf)) >= n {
		return (*buf)[:0]
	}
	return make([]byte, 0, n)
}

// readWhole reads a whole pack, and proves it by its name.
func (m *Mover) readWhole(b *moveBatch) error {
	key := PackKey(b.pack.Name)
	r, err := getObject(m.ctx, m.store, key, 0, b.pack.Length)
	if err != nil {
		return err
	}
	h := sha256.New()
	in := io.TeeReader(io.LimitReader(r, b.pack.Length), h)
	between := make([]byte, copyBuffer(b.pack.Length))
	pos := int64(0)
	for i := 0; i <= len(b.chunks) && err == nil; i++ {
		next := b.pack.Length
		if i < len(b.chunks) {
			next = b.chunks[i].FrameOffset
		}
		_, err = io.CopyBuffer(onlyWriter{io.Discard}, io.LimitReader(in, next-pos), between)
		if pos = next; err == nil && i < len(b.chunks) {
			at := len(b.stored)
			b.stored = b.stored[:at+int(b.chunks[i].FrameLength)]
			_, err = io.ReadFull(in, b.stored[at:])
			pos += int64(b.chunks[i].FrameLength)
		}
	}
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return shortRead(m.ctx, m.store, key, b.pack.Length, b.pack.Length, err)
	}
	return checkName(key, b.pack.Name, Digest(h.Sum(nil)))
}

// readFrames reads frames, and proves each by what it decodes to.
func (m *Mover) readFrames(b *moveBatch) error {
	dec, err := newDecoder()
	if err != nil {
		return err
	}
	defer dec.close()
	key := PackKey(b.pack.Name)
	buf := make([]byte, 0, GridSize+bufSlack)
	for rest := b.chunks; len(rest) > 0; {
		n := together(rest)
		last := &rest[n-1]
		in := frameStream{ctx: m.ctx, store: m.store, key: key, length: b.pack.Length,
			pos: rest[0].FrameOffset, end: last.FrameOffset + int64(last.FrameLength)}
		if in.r, err = getObject(m.ctx, m.store, key, in.pos, in.end-in.pos); err != nil {
			return err
		}
		for i := range rest[:n] {
			if buf, err = m.readFrame(&in, dec, b, &rest[i], buf); err != nil {
				break
			}
		}
		in.close()
		if err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

func (m *Mover) readFrame(in *frameStream, dec *decoder, b *moveBatch, c *PackChunk, buf []byte) ([]byte, error) {
	at := len(b.stored)
	b.stored = b.stored[:at+int(c.FrameLength)]
	frame := b.stored[at:]
	if err := in.read(c.FrameOffset, frame); err != nil {
		return buf, err
	}
	out, err := dec.chunk(frame, buf, c.Chunk)
	if err == nil && len(out) != int(c.Length) {
		err = fmt.Errorf("it decodes to %d bytes, the pack's table says %d", len(out), c.Length)
	}
	if err != nil {
		return buf, &DamageError{Object: in.key, Offset: c.FrameOffset, Length: int64(c.FrameLength), Err: err}
	}
	return out, nil
}

// together is how many of the first chunks are read with one request.
func together(chunks []PackChunk) int {
	n := 1
	for n < len(chunks) && chunks[n].FrameOffset-chunks[n-1].FrameOffset-int64(chunks[n-1].FrameLength) <= maxGap {
		n++
	}
	return n
}

// pack fills new packs, and has them stored.
func (m *Mover) pack() error {
	defer close(m.done)
	var stores errgroup.Group
	stores.SetLimit(moveUploads)
	err := m.fill(&stores)
	return errors.Join(err, stores.Wait())
}

func (m *Mover) fill(stores *errgroup.Group) error {
	var p *packBuilder
	var number uint32
	flush := func() {
		if p != nil {
			full, n := p, number
			stores.Go(func() error {
				err := m.storePack(full, n)
				full.buf, full.chunks = full.buf[:0], full.chunks[:0]
				m.packs <- full
				return err
			})
			p = nil
		}
	}
	for b := range m.order {
		<-b.ready
		if b.err != nil || m.ctx.Err() != nil {
			continue // what went wrong is told by who met it
		}
		frames := b.stored
		for i := range b.chunks {
			c := &b.chunks[i]
			if p != nil && !p.hasRoom(int(c.FrameLength), m.o.PackSize) {
				flush()
			}
			if p == nil {
				if p = <-m.packs; p == nil {
					p = &packBuilder{buf: make([]byte, 0, m.o.PackSize)}
				}
				number = m.begin()
			}
			off := p.add(frames[:c.FrameLength], c.Length, c.Chunk)
			frames = frames[c.FrameLength:]
			m.put(b, c, movedFrame{pack: number, offset: uint32(off), length: c.FrameLength, chunk: c.Chunk})
		}
		buf := b.stored
		b.stored = nil
		m.spare.Put(&buf)
		m.room.Release(min(b.length, moveRoom))
	}
	if m.ctx.Err() == nil {
		flush()
	}
	return nil
}

func (m *Mover) begin() uint32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fresh = append(m.fresh, Ref{})
	return uint32(len(m.fresh) - 1)
}

func (m *Mover) put(b *moveBatch, c *PackChunk, at movedFrame) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b.to.offsets = append(b.to.offsets, c.FrameOffset)
	b.to.to = append(b.to.to, at)
	m.stats.Chunks++
	m.stats.Bytes += int64(c.FrameLength)
}

func (m *Mover) storePack(p *packBuilder, number uint32) error {
	frames := int64(len(p.buf))
	if err := p.seal(); err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	ref := Ref{Name: Sum(p.buf), Length: int64(len(p.buf))}
	if _, err := putObject(m.ctx, m.store, PackKey(ref.Name), ref.Name, bytes.NewReader(p.buf)); err != nil {
		return fmt.Errorf("store pack: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fresh[number] = ref
	m.stats.Packs++
	m.stats.PackBytes += ref.Length
	if m.o.Stored != nil {
		m.o.Stored(frames)
	}
	return m.index.Add(m.ctx, ref, p.chunks)
}

// Finish waits until all is stored, durably, and stores the index of the new packs. It
// must be called in any case, and ends the Mover. A frame that does not prove itself is
// a [DamageError]: then nothing counts.
func (m *Mover) Finish() (MoveStats, error) {
	close(m.order)
	err := m.g.Wait()
	<-m.done
	defer m.index.Close()
	switch {
	case err != nil:
		return MoveStats{}, err
	case m.given.Err() != nil:
		return MoveStats{}, context.Cause(m.given)
	}
	if err := m.index.Finish(m.given); err != nil {
		return MoveStats{}, err
	}
	return m.stats, nil
}

// Packs returns the new packs, after Finish.
func (m *Mover) Packs() []Ref { return m.fresh }

// Moved reports whether frames of a pack were moved.
func (m *Mover) Moved(pack Ref) bool { return m.moved[pack] != nil }

// Place changes an entry whose frame was moved so that it names the new place, after
// Finish; others stay as they are. An entry of a pack that was moved, without its frame,
// is a [DamageError].
func (m *Mover) Place(e *Entry) error {
	p := m.moved[e.Pack]
	if e.Zero || p == nil {
		return nil
	}
	i, ok := slices.BinarySearch(p.offsets, e.FrameOffset)
	if !ok || p.to[i].length != e.FrameLength || p.to[i].chunk != e.Chunk {
		return damagef(PackKey(e.Pack.Name), e.FrameOffset, int64(e.FrameLength),
			"a map names chunk %s there, and the pack's table another one or none", e.Chunk)
	}
	e.Pack, e.FrameOffset = m.fresh[p.to[i].pack], int64(p.to[i].offset)
	return nil
}
