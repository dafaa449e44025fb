// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sort"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// Map is a stored map, opened for reading. It is safe for concurrent use and needs
// no closing.
type Map struct {
	store  objstore.Store
	ref    MapRef
	key    string
	head   mapHead
	length int64 // of its content; where it is not encrypted, ref.Length
	packs  []Ref
	frames []dirFrame // those of kind kindRuns
	end    dirFrame

	frameLimit int32 // of the frames that it names
}

// OpenMap fetches a map's directory and header, and proves both by ref. A map that
// is missing or not what ref says is a [DamageError]. A map of at most keep bytes,
// and any of up to 512 KiB, is fetched with one request, kept in memory, and never
// fetched again.
func OpenMap(ctx context.Context, store objstore.Store, ref MapRef, keep int64) (*Map, error) {
	m, err := openMap(ctx, store, ref, keep)
	if IsDamage(err) && objstore.Doubted(ctx, store, MapKey(ref.Name)) {
		return openMap(ctx, store, ref, keep)
	}
	return m, err
}

func openMap(ctx context.Context, store objstore.Store, ref MapRef, keep int64) (*Map, error) {
	keys := KeysOf(store)
	m := &Map{store: store, ref: ref, key: MapKey(ref.Name), length: ref.Length, frameLimit: frameLimit(keys)}
	if ref.DirLength < skippableHead || ref.DirLength > maxDirLength || ref.Length > maxMapLength || ref.DirLength > ref.Length {
		return nil, damagef(m.key, 0, 0, "a map of %d bytes with a directory of %d bytes can't be", ref.Length, ref.DirLength)
	}
	dir, err := m.readEnds(ctx, keys, keep)
	if err != nil {
		return nil, err
	}
	at := m.length - ref.DirLength
	if Sum(dir) != ref.DirDigest {
		return nil, damagef(m.key, at, ref.DirLength, "the map's directory does not have the SHA-256 that the manifest states")
	}
	frames, err := parseDir(dir, at)
	if err != nil {
		return nil, &DamageError{Object: m.key, Offset: at, Length: ref.DirLength, Err: err}
	}
	last := len(frames) - 1
	m.end = frames[last]
	begin := sort.Search(last, func(i int) bool { return frames[i].kind == kindRuns || frames[i].kind == kindEnd })
	m.frames = frames[begin:last]
	if err := m.readHead(ctx, frames[:begin]); err != nil {
		return nil, err
	}
	if k, ok := m.store.(keptObject); ok && int64(len(k.data)) < m.length {
		m.store = k.Store // its beginning has been used
	}
	if n := len(m.frames); n > 0 && m.frames[n-1].end > m.head.size {
		return nil, damagef(m.key, at, ref.DirLength, "the map has runs beyond the end of the disk")
	}
	return m, nil
}

const (
	// smallMap is the length up to which a map is fetched with one request and
	// kept, bytes.
	smallMap = 512 << 10
	// mapStart is how much of a larger one is fetched together with its
	// directory, bytes: its header and the names of some thousand packs.
	mapStart = 256 << 10
	// maxKept bounds what is kept of one map, bytes.
	maxKept = 16 << 20
)

// readEnds fetches the map's directory, and with it the map or its beginning, for
// which the store is not asked again then. Its parts are proven as they are used.
func (m *Map) readEnds(ctx context.Context, keys *crypt.Keys, keep int64) (dir []byte, err error) {
	if keys != nil {
		return m.openEnds(ctx, keys, keep)
	}
	ref := m.ref
	at := ref.Length - ref.DirLength
	if ref.Length <= max(smallMap, min(keep, maxKept)) {
		data := make([]byte, ref.Length)
		if err := readRange(ctx, m.store, m.key, 0, data, ref.Length); err != nil {
			return nil, err
		}
		if err := m.proveWhole(data); err != nil {
			return nil, err
		}
		m.store = keptObject{Store: m.store, key: m.key, data: data}
		return data[at:], nil
	}
	// The object's length is known before the buffer is made, so that a wrong
	// reference costs no memory.
	if ref.DirLength > 1<<20 {
		if _, err := statObject(ctx, m.store, m.key, ref.Length); err != nil {
			return nil, err
		}
	}
	dir = make([]byte, ref.DirLength)
	start := make([]byte, min(mapStart, at))
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return readRange(gctx, m.store, m.key, at, dir, ref.Length) })
	g.Go(func() error { return readRange(gctx, m.store, m.key, 0, start, ref.Length) })
	if err := g.Wait(); err != nil {
		return nil, err
	}
	m.store = keptObject{Store: m.store, key: m.key, data: start}
	return dir, nil
}

// proveWhole proves a map that is kept by its name where the store may have another one that
// is right: later it is not read again.
func (m *Map) proveWhole(stored []byte) error {
	if _, ok := objstore.As[objstore.Doubter](m.store); !ok {
		return nil
	}
	return checkName(m.key, m.ref.Name, Sum(stored))
}

// keptObject is a store of which the beginning of one object, or all of it, has
// been read already.
type keptObject struct {
	objstore.Store
	key  string
	data []byte
}

func (k keptObject) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if key != k.key || offset < 0 || length < 0 || offset > int64(len(k.data))-length {
		return k.Store.Get(ctx, key, offset, length)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return io.NopCloser(bytes.NewReader(k.data[offset : offset+length])), nil
}

// readHead reads the header and the numbers of the packs with one request.
func (m *Map) readHead(ctx context.Context, frames []dirFrame) (err error) {
	last := frames[len(frames)-1]
	end := last.offset + int64(last.length)
	r, err := getObject(ctx, m.store, m.key, 0, end)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // all that is wanted has been read and proven
	dec, err := newDecoder()
	if err != nil {
		return err
	}
	defer dec.close()
	var stored, text []byte
	for i := range frames {
		f := &frames[i]
		stored = sized(stored, int(f.length))
		if _, err := io.ReadFull(r, stored); err != nil {
			return shortRead(ctx, m.store, m.key, f.offset+int64(f.length), m.ref.Length, err)
		}
		if text, err = m.proven(f, dec, stored, text); err != nil {
			return err
		}
		if f.kind == kindHead {
			if m.head, err = parseMapHead(string(text)); err != nil {
				return &DamageError{Object: m.key, Offset: f.offset, Length: int64(f.length), Err: err}
			}
			continue
		}
		for line := text; len(line) > 0; line = line[namedLineLen:] {
			ref, ok := parseNamed(line, len(m.packs))
			if !ok {
				return damagef(m.key, f.offset, int64(f.length), "the line of pack %d is not valid", len(m.packs))
			}
			m.packs = append(m.packs, ref)
		}
	}
	if int64(len(m.packs)) != m.head.packs {
		return damagef(m.key, 0, end, "the map names %d packs, its header says %d", len(m.packs), m.head.packs)
	}
	return nil
}

// sized returns buf with length n, replaced if it is too small.
func sized(buf []byte, n int) []byte {
	if cap(buf) < n {
		return make([]byte, n, n+n/8)
	}
	return buf[:n]
}

// proven decodes the stored bytes of a frame and proves them by the directory.
func (m *Map) proven(f *dirFrame, dec *decoder, stored, text []byte) ([]byte, error) {
	if Sum(stored) != f.sum {
		return nil, damagef(m.key, f.offset, int64(f.length), "a frame does not have the SHA-256 that the map's directory states")
	}
	text, err := dec.frame(stored, text, int64(f.raw))
	if err == nil && len(text) != int(f.raw) {
		err = fmt.Errorf("%w: decodes to %d bytes, the directory says %d", errFrame, len(text), f.raw)
	}
	if err != nil {
		return nil, &DamageError{Object: m.key, Offset: f.offset, Length: int64(f.length), Err: err}
	}
	return text, nil
}

// Size is the disk's virtual size, bytes.
func (m *Map) Size() int64 { return m.head.size }

// Full reports whether what the map leaves out is zero; else it is as in the parent.
func (m *Map) Full() bool { return m.head.full }

// Disk is the name of the disk.
func (m *Map) Disk() string { return m.head.disk }

// Ref is what the map was opened by.
func (m *Map) Ref() MapRef { return m.ref }

// Packs lists the packs that the map names. The slice must not be changed.
func (m *Map) Packs() []Ref { return m.packs }

// Entries yields the runs that overlap [start, end), clipped to it, in order. Each
// frame is proven before any of its runs comes out. An error comes last.
func (m *Map) Entries(ctx context.Context, start, end int64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if err := m.checkRange(start, end); err != nil {
			yield(Entry{}, err)
			return
		}
		c, err := newCursor(ctx, m, end, 1)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		defer c.close()
		for {
			ok, err := c.next(start)
			if err != nil {
				yield(Entry{}, err)
				return
			}
			if !ok || c.run.off >= end {
				return
			}
			e := m.entry(&c.run)
			e.Clip(start, end)
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (m *Map) checkRange(start, end int64) error {
	if start < 0 || start > end || end > m.head.size {
		return fmt.Errorf("range %d to %d is outside of disk %s, which has %d bytes", start, end, m.head.disk, m.head.size)
	}
	return nil
}

func (m *Map) entry(r *run) Entry {
	if r.zero {
		return Entry{Offset: r.off, Length: r.len, Zero: true}
	}
	return Entry{Offset: r.off, Length: r.len, Pack: m.packs[r.pack], FrameOffset: r.frameOff,
		FrameLength: r.frameLen, ChunkOffset: r.chunkOff, Chunk: r.chunk}
}

var errOutOfOrder = errors.New("a run of the map is not valid, out of order or out of range")
