// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/objstore"
)

// A Mover takes chunks out of packs and puts them into new ones, as they are stored:
// each frame is decoded and proven, and then copied. [Mover.Move] is called for one
// pack after the other, and Finish stores the last new pack and the index. Its methods
// are for one goroutine.
//
// Packs are read and proven several at once, in batches of at most moveBytes, and
// the frames go into the new packs in the order of the calls.
type Mover struct {
	store objstore.Store
	o     MoveOptions
	index *IndexWriter

	g     *errgroup.Group // readers, and those that store
	given context.Context // the caller's
	ctx   context.Context // ends with the first error, too
	order chan *moveBatch // to the packer, in order
	done  chan struct{}   // the packer has ended
	room  chan struct{}   // one token for each batch in flight
	packs chan struct{}   // one token for each new pack in memory

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
	moveBytes   = 4 << 20 // of frames that are read and proven together
	movePacks   = 3       // new packs in memory: one is filled while two are stored
	moveUploads = 2
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
		room: make(chan struct{}, workers), packs: make(chan struct{}, movePacks), moved: make(map[Ref]*movedPack),
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
	for len(chunks) > 0 {
		n, total := 0, int64(0)
		for n < len(chunks) && (n == 0 || total+int64(chunks[n].FrameLength) <= moveBytes) {
			total += int64(chunks[n].FrameLength)
			n++
		}
		b := &moveBatch{pack: pack, chunks: chunks[:n:n], ready: make(chan struct{}), to: to}
		chunks = chunks[n:]
		select {
		case m.room <- struct{}{}:
		case <-m.ctx.Done():
			return context.Cause(m.ctx)
		}
		m.order <- b // there is room: as much as there are tokens
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
	dec, err := newDecoder()
	if err != nil {
		return err
	}
	defer dec.close()
	var total int
	for i := range b.chunks {
		total += int(b.chunks[i].FrameLength)
	}
	b.stored = make([]byte, 0, total)
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
				<-m.packs
				return err
			})
			p = nil
		}
	}
	for b := range m.order {
		<-b.ready
		<-m.room
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
				select {
				case m.packs <- struct{}{}:
				case <-m.ctx.Done():
					continue
				}
				p = &packBuilder{buf: make([]byte, 0, m.o.PackSize)}
				number = m.begin()
			}
			off := p.add(frames[:c.FrameLength], c.Length, c.Chunk)
			frames = frames[c.FrameLength:]
			m.put(b, c, movedFrame{pack: number, offset: uint32(off), length: c.FrameLength, chunk: c.Chunk})
		}
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
