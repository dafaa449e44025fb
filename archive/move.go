// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/memory"
	"github.com/imgbackup/imgbackup/objstore"
)

// A Mover takes chunks out of packs and puts them into new ones, as they are stored:
// each frame is proven, and copied. [Mover.Move] is called for one pack after the other,
// and Finish stores the last new pack and the index. Its methods are for one goroutine.
//
// Where a frame goes is known before it is read, since the packs' tables say how long each
// is: so it is read into its place in the new pack, several packs at once, and is proven
// there. In which of two ways is a question of what it costs ([Mover.byName]): by decoding
// it, or with all others of its pack by the pack's name. A pack whose bytes are not those of
// its name is tried frame by frame: perhaps what is moved is sound.
type Mover struct {
	store objstore.Store
	keys  *crypt.Keys // nil: it is plain; else what is moved are groups, as if each were a frame
	o     MoveOptions
	index *IndexWriter
	near  bool // the store is a folder
	spool *packSpool

	g     *errgroup.Group // those that read, and those that store
	given context.Context // the caller's
	ctx   context.Context // ends with the first error, too
	work  chan *moveBatch // for those that read
	free  chan *newPack   // of movePacks or fewer; nil: not made yet
	open  *newPack        // is being filled; nil: none is

	moved map[Ref]*movedPack

	mu    sync.Mutex // guards what is below, until Finish
	fresh []Ref      // new packs, by number; zero until they are named
	stats MoveStats
}

// MoveOptions are the settings of a Mover; the zero value is good.
type MoveOptions struct {
	PackSize int64         // target size of a new pack, bytes; 0: 32 MiB
	TempDir  string        // for indexes; "": [spool.TempDir]
	Memory   memory.Budget // decides how many packs are in memory
	// Stored is told, from several goroutines, of the bytes of frames that lie in packs
	// that have been stored.
	Stored   func(bytes int64)
	Indexing Indexing // of what is stored
}

// MoveStats counts what was moved.
type MoveStats struct {
	Chunks    int64
	Bytes     int64 // of frames
	Packs     int64 // new ones
	PackBytes int64
}

const (
	moveBytes = 4 << 20  // of frames that one goroutine reads, one after the other
	moveWhole = 64 << 20 // a pack that is longer is never read whole
	// movePacks is how many new packs are in memory. What is read as one may go to three,
	// and a fourth lets those that wait for it be stored. Where memory is short there are
	// fewer, and nothing is read as one.
	movePacks = 4
	// mostReaders bounds what those take that read, however many connections there are.
	mostReaders = 16
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

// newPack is a pack from its first frame until it is stored.
type newPack struct {
	packBuilder
	number  uint32
	coming  sync.WaitGroup // batches that are read into it
	unsound atomic.Bool    // one of them was not, or not proven
}

// moveBatch is some frames of one pack, that are read and proven together.
type moveBatch struct {
	pack   Ref
	whole  bool // by reading the whole pack
	chunks []PackChunk
	length int64      // of the frames
	dst    [][]byte   // where each goes
	into   []*newPack // in which these places are
}

// NewMover begins.
func NewMover(ctx context.Context, store objstore.Store, o MoveOptions) (*Mover, error) {
	if o.PackSize == 0 {
		o.PackSize = defaultPackSize
	}
	if o.PackSize < minPackSize || o.PackSize > maxPackSize {
		return nil, fmt.Errorf("archive: packs of %d bytes are out of range", o.PackSize)
	}
	index, err := NewIndexWriter(store, time.Now().Unix(), o.TempDir, o.Indexing)
	if err != nil {
		return nil, err
	}
	_, isNear := objstore.As[objstore.Placed](store)
	m := &Mover{
		store: store, keys: KeysOf(store), o: o, given: ctx, index: index, near: isNear, work: make(chan *moveBatch),
		free: make(chan *newPack, o.Memory.Count(movePacks, 1)), moved: make(map[Ref]*movedPack),
	}
	for range cap(m.free) {
		m.free <- nil
	}
	m.g, m.ctx = errgroup.WithContext(ctx)
	m.spool = newPackSpool(store, o.TempDir, cap(m.free), func(string, ...any) {})
	readers := max(min(runtime.GOMAXPROCS(0)+2, 8), min(objstore.Connections(store), mostReaders))
	for range o.Memory.Count(readers, 2) {
		m.g.Go(m.reader)
	}
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
	to := &movedPack{offsets: make([]int64, 0, len(chunks)), to: make([]movedFrame, 0, len(chunks))}
	b := &moveBatch{pack: pack, whole: m.byName(pack, chunks)}
	for rest := chunks; len(rest) > 0; {
		n := groupOf(rest)
		if b, err = m.place(b, rest[:n], to); err != nil {
			return err
		}
		rest = rest[n:]
	}
	if err := m.hand(b); err != nil {
		return err
	}
	m.moved[pack] = to
	m.count(chunks)
	return nil
}

// place gives a frame its place, that of one chunk or a group of several, and hands the batch
// over before that if it is long enough, or goes to the new pack that is full.
func (m *Mover) place(b *moveBatch, chunks []PackChunk, to *movedPack) (*moveBatch, error) {
	c := &chunks[0]
	full := m.open != nil && !m.open.hasRoom(int(c.FrameLength), len(chunks), m.o.PackSize)
	if !b.whole && (full || b.length+int64(c.FrameLength) > moveBytes) {
		if err := m.hand(b); err != nil {
			return nil, err
		}
		b = &moveBatch{pack: b.pack}
	}
	if full {
		m.close()
	}
	if err := m.begin(); err != nil {
		b.drop()
		return nil, err
	}
	off, dst := m.open.reserve(chunks)
	b.add(c, dst, m.open)
	to.offsets = append(to.offsets, c.FrameOffset)
	to.to = append(to.to, movedFrame{pack: m.open.number, offset: uint32(off), length: c.FrameLength, chunk: c.Chunk})
	return b, nil
}

func (m *Mover) count(chunks []PackChunk) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stats.Chunks += int64(len(chunks))
	for len(chunks) > 0 {
		m.stats.Bytes += int64(chunks[0].FrameLength)
		chunks = chunks[groupOf(chunks):]
	}
}

// What it costs to prove a byte, in quarters of what its SHA-256 does. To decode what is
// not compressed is to copy it.
const (
	costHash     = 4
	costDecode   = 7 // for each byte that comes out
	costCopy     = 1
	costReadNear = 1
	costReadFar  = 16
)

// byName reports whether to prove what is moved of a pack by the pack's name, which takes
// all its bytes.
func (m *Mover) byName(pack Ref, chunks []PackChunk) bool {
	read := int64(costReadNear)
	if !m.near {
		read = costReadFar
	}
	var frames, length int64
	for rest := chunks; len(rest) > 0; rest = rest[groupOf(rest):] {
		c := &rest[0]
		length += int64(c.FrameLength)
		if c.Keyed != nil {
			frames += int64(c.FrameLength) * (read + costHash)
			continue
		}
		decode := int64(costDecode)
		if c.FrameLength >= c.Length {
			decode = costCopy
		}
		frames += int64(c.FrameLength)*read + int64(c.Length)*(costHash+decode)
	}
	return cap(m.free) >= movePacks && pack.Length <= moveWhole && PackLength(length, len(chunks)) <= m.o.PackSize &&
		pack.Length*(read+costHash) < frames
}

// begin has a pack open.
func (m *Mover) begin() error {
	if m.open != nil {
		return nil
	}
	select {
	case m.open = <-m.free:
	case <-m.ctx.Done():
		return context.Cause(m.ctx)
	}
	if m.open == nil {
		m.open = &newPack{packBuilder: packBuilder{keys: m.keys, buf: make([]byte, 0, max(m.o.PackSize, int64(frameLimit(m.keys))))}}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open.number = uint32(len(m.fresh))
	m.fresh = append(m.fresh, Ref{})
	return nil
}

// reserve takes room for a frame, or a group, of these chunks. The buffer never moves: it has
// room for all that hasRoom allows.
func (p *newPack) reserve(chunks []PackChunk) (offset int64, dst []byte) {
	at := len(p.buf)
	p.buf = p.buf[:at+int(chunks[0].FrameLength)]
	for _, c := range chunks {
		c.FrameOffset = int64(at)
		p.chunks = append(p.chunks, c)
	}
	return int64(at), p.buf[at:]
}

func (b *moveBatch) add(c *PackChunk, dst []byte, p *newPack) {
	b.chunks, b.dst = append(b.chunks, *c), append(b.dst, dst)
	b.length += int64(c.FrameLength)
	if !slices.Contains(b.into, p) {
		p.coming.Add(1)
		b.into = append(b.into, p)
	}
}

// hand gives a batch to who reads it.
func (m *Mover) hand(b *moveBatch) error {
	if len(b.chunks) == 0 {
		return nil
	}
	select {
	case m.work <- b:
		return nil
	case <-m.ctx.Done():
		b.drop()
		return context.Cause(m.ctx)
	}
}

// drop gives up what is read into new packs.
func (b *moveBatch) drop() {
	for _, p := range b.into {
		p.unsound.Store(true)
		p.coming.Done()
	}
}

// close has the open pack stored, when all of it is there and proven.
func (m *Mover) close() {
	p := m.open
	m.open = nil
	m.g.Go(func() error {
		p.coming.Wait()
		if p.unsound.Load() || m.ctx.Err() != nil {
			return nil // what went wrong is told by who met it
		}
		free := sync.OnceFunc(func() { m.free <- &newPack{packBuilder: packBuilder{keys: m.keys, buf: p.buf[:0]}} })
		defer free()
		return m.storePack(&p.packBuilder, p.number, free)
	})
}

// chosen are the lines of a table with these offsets.
func chosen(pack Ref, table []PackChunk, offsets []uint32) ([]PackChunk, error) {
	var chunks []PackChunk
	for ; len(table) > 0 && len(offsets) > 0; table = table[groupOf(table):] {
		if table[0].FrameOffset == int64(offsets[0]) {
			chunks, offsets = append(chunks, table[:groupOf(table)]...), offsets[1:]
		}
	}
	if len(offsets) > 0 {
		return nil, damagef(PackKey(pack.Name), int64(offsets[0]), 0, "a map names a frame there, and the pack's table does not have it")
	}
	return chunks, nil
}

// reader reads batches, until there are no more or one is not sound.
func (m *Mover) reader() error {
	dec, err := newDecoder()
	if err != nil {
		return err
	}
	defer dec.close()
	r := &moveReader{Mover: m, dec: dec, chunk: make([]byte, 0, GridSize+bufSlack), between: make([]byte, 256<<10)}
	for b := range m.work {
		if err := r.read(b); err != nil {
			b.drop()
			return err
		}
		for _, p := range b.into {
			p.coming.Done()
		}
	}
	return nil
}

// moveReader is what one goroutine needs to read batches.
type moveReader struct {
	*Mover
	dec     *decoder
	chunk   []byte // what is decoded
	between []byte // what is read and not moved
}

// read reads and proves the frames of a batch.
func (m *moveReader) read(b *moveBatch) error {
	if b.whole {
		if err := m.readWhole(b); !IsDamage(err) {
			return err
		}
	}
	return m.readFrames(b)
}

// readWhole reads a whole pack, and proves it by its name.
func (m *moveReader) readWhole(b *moveBatch) error {
	key := PackKey(b.pack.Name)
	r, err := getObject(m.ctx, m.store, key, 0, b.pack.Length)
	if err != nil {
		return err
	}
	h := sha256.New()
	pos := int64(0)
	for i := 0; i <= len(b.chunks) && err == nil; i++ {
		next := b.pack.Length
		if i < len(b.chunks) {
			next = b.chunks[i].FrameOffset
		}
		for pos < next && err == nil {
			p := m.between[:min(int64(len(m.between)), next-pos)]
			_, err = io.ReadFull(r, p)
			h.Write(p)
			pos += int64(len(p))
		}
		if err == nil && i < len(b.chunks) {
			_, err = io.ReadFull(r, b.dst[i])
			h.Write(b.dst[i])
			pos += int64(len(b.dst[i]))
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
func (m *moveReader) readFrames(b *moveBatch) error {
	key := PackKey(b.pack.Name)
	for i := 0; i < len(b.chunks); {
		n := m.together(b.chunks[i:])
		first, last := &b.chunks[i], &b.chunks[i+n-1]
		in := frameStream{ctx: m.ctx, store: m.store, key: key, length: b.pack.Length,
			pos: first.FrameOffset, end: last.FrameOffset + int64(last.FrameLength)}
		var err error
		if in.r, err = getObject(m.ctx, m.store, key, in.pos, in.end-in.pos); err != nil {
			return err
		}
		for ; n > 0 && err == nil; i, n = i+1, n-1 {
			err = m.readFrame(&in, &b.chunks[i], b.dst[i])
		}
		in.close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *moveReader) readFrame(in *frameStream, c *PackChunk, frame []byte) error {
	if err := in.read(c.FrameOffset, frame); err != nil {
		return err
	}
	if c.Keyed != nil {
		if Sum(frame) != c.Keyed.Group {
			return damagef(in.key, c.FrameOffset, int64(c.FrameLength), "the group does not have the SHA-256 that the pack's table states")
		}
		return nil
	}
	out, err := m.dec.chunk(frame, m.chunk, c.Chunk)
	if err == nil && len(out) != int(c.Length) {
		err = fmt.Errorf("it decodes to %d bytes, the pack's table says %d", len(out), c.Length)
	}
	if err != nil {
		return &DamageError{Object: in.key, Offset: c.FrameOffset, Length: int64(c.FrameLength), Err: err}
	}
	return nil
}

// together is how many of the first chunks are read with one request. In a folder a
// request costs less than the bytes between.
func (m *Mover) together(chunks []PackChunk) int {
	gap := int64(maxGap)
	if m.near {
		gap = maxGapNear
	}
	n := 1
	for n < len(chunks) && chunks[n].FrameOffset-chunks[n-1].FrameOffset-int64(chunks[n-1].FrameLength) <= gap {
		n++
	}
	return n
}

// maxGapNear is maxGap for a store in a folder, bytes.
const maxGapNear = 64 << 10

// storePack calls free when the pack's memory may be used again, unless that is when it returns.
func (m *Mover) storePack(p *packBuilder, number uint32, free func()) error {
	frames := int64(len(p.buf))
	if err := p.seal(); err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	ref := Ref{Name: Sum(p.buf), Length: int64(len(p.buf))}
	body, err := m.spool.body(m.ctx, p.buf)
	if err != nil {
		return err
	}
	defer body.end()
	if body.apart {
		free()
	}
	if _, err := putObject(m.ctx, m.store, PackKey(ref.Name), ref.Name, body); err != nil {
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
	close(m.work)
	if m.open != nil {
		m.close()
	}
	err := m.g.Wait()
	m.spool.close()
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
	if !ok || p.to[i].length != e.FrameLength || m.keys == nil && p.to[i].chunk != e.Chunk {
		return damagef(PackKey(e.Pack.Name), e.FrameOffset, int64(e.FrameLength),
			"a map names chunk %s there, and the pack's table another one or none", e.Chunk)
	}
	e.Pack, e.FrameOffset = m.fresh[p.to[i].pack], int64(p.to[i].offset)
	return nil
}
