// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/objstore"
)

// textFrames turns lines into frames as they come.
type textFrames struct {
	kind   byte
	width  int // of a line
	enc    *encoder
	out    scratch
	text   []byte
	stored []byte
	frames []dirFrame // offsets count from the first frame of out
	first  int64      // guest offset of the first run in text
	end    int64      // and the end of the last
}

// line returns the space for the next line.
func (t *textFrames) line() ([]byte, error) {
	if len(t.text) == frameLines*t.width {
		if err := t.cut(); err != nil {
			return nil, err
		}
	}
	if cap(t.text) == 0 {
		t.text = make([]byte, 0, frameLines*t.width)
	}
	n := len(t.text)
	t.text = t.text[:n+t.width]
	return t.text[n:], nil
}

// cut ends the frame.
func (t *textFrames) cut() error {
	if len(t.text) == 0 {
		return nil
	}
	var err error
	if t.stored, err = t.enc.frame(t.stored[:0], t.text); err != nil {
		return fmt.Errorf("map: %w", err)
	}
	t.frames = append(t.frames, dirFrame{
		kind: t.kind, offset: t.out.Size(), length: int32(len(t.stored)), raw: int32(len(t.text)),
		first: t.first, end: t.end, lines: int32(len(t.text) / t.width), sum: Sum(t.stored),
	})
	t.text = t.text[:0]
	_, err = t.out.Write(t.stored)
	return err
}

// mapBuilder collects the runs of one map.
type mapBuilder struct {
	head   mapHead
	keys   *crypt.Keys // nil: it is stored as it is
	dir    string      // for temporary files
	sealed spool.Spool // encrypted
	enc    *encoder
	names  textFrames // lines that number the packs
	runs   textFrames
	last   run // not written yet, since it may go on
	open   bool
	next   int64 // nothing may begin before it
	counts mapCounts
}

func newMapBuilder(disk string, size int64, full bool, enc *encoder, tempDir string, keys *crypt.Keys) (*mapBuilder, error) {
	b := &mapBuilder{head: mapHead{disk: disk, size: size, full: full}, enc: enc, keys: keys, dir: tempDir}
	b.runs = textFrames{kind: kindRuns, width: runLineLen, enc: enc, out: newScratch(tempDir, keys != nil)}
	b.names = textFrames{kind: kindPacks, width: namedLineLen, enc: enc, out: newScratch(tempDir, keys != nil)}
	if err := b.head.check(); err != nil {
		return nil, fmt.Errorf("map of disk %.80q: %w", disk, err)
	}
	return b, nil
}

// add takes the next run. packs is the number of packs that it may refer to. In a
// full map zeros are what is left out.
func (b *mapBuilder) add(r *run, packs int) error {
	if r.off < b.next || !r.valid(b.head.size, packs, frameLimit(b.keys)) {
		return fmt.Errorf("map of disk %s: the run of %d bytes at %d is out of order or out of range", b.head.disk, r.len, r.off)
	}
	b.next = r.end()
	if r.zero && b.head.full {
		return nil
	}
	if b.open && b.last.continuedBy(r) {
		b.last.len += r.len
		return nil
	}
	if err := b.flush(); err != nil {
		return err
	}
	b.last, b.open = *r, true
	return nil
}

func (b *mapBuilder) flush() error {
	if !b.open {
		return nil
	}
	b.open = false
	line, err := b.runs.line()
	if err != nil {
		return err
	}
	if len(b.runs.text) == runLineLen {
		b.runs.first = b.last.off
	}
	b.runs.end = b.last.end()
	b.counts.add(&b.last)
	if !b.last.put(line) {
		return fmt.Errorf("map of disk %s: the run at %d does not fit its line", b.head.disk, b.last.off)
	}
	return nil
}

// endRuns ends the last frame of runs and gives back its buffers. add must not be
// called after it.
func (b *mapBuilder) endRuns() error {
	if err := b.flush(); err != nil {
		return err
	}
	err := b.runs.cut()
	b.runs.text, b.runs.stored = nil, nil
	return err
}

// builtMap is a map ready to be stored.
type builtMap struct {
	ref  MapRef
	body objstore.Body
}

// seal ends the map. packs yields the packs in the order of their numbers.
func (b *mapBuilder) seal(count int, packs iter.Seq[Ref]) (builtMap, error) {
	if err := b.endRuns(); err != nil {
		return builtMap{}, err
	}
	if count > maxMapPacks {
		return builtMap{}, fmt.Errorf("map of disk %s: %d packs are too many for one map", b.head.disk, count)
	}
	b.head.packs = int64(count)
	text := []byte(b.head.text())
	head := textFrames{kind: kindHead, width: len(text), enc: b.enc, text: text}
	names := &b.names
	end := textFrames{kind: kindEnd, width: endLineLen, enc: b.enc}
	n := 0
	for ref := range packs {
		line, err := names.line()
		if err != nil {
			return builtMap{}, err
		}
		if !putNamed(line, n, ref) {
			return builtMap{}, fmt.Errorf("map of disk %s: pack %s does not fit its line", b.head.disk, ref.Name)
		}
		n++
	}
	line, err := end.line()
	if err != nil {
		return builtMap{}, err
	}
	if n != count || !b.counts.put(line) {
		return builtMap{}, fmt.Errorf("map of disk %s: the counts are wrong", b.head.disk)
	}
	for _, t := range []*textFrames{&head, names, &end} {
		if err := t.cut(); err != nil {
			return builtMap{}, err
		}
	}
	head.frames[0].lines = int32(bytes.Count(text, []byte("\n")))
	return b.compose(&head, names, &b.runs, &end)
}

// compose puts the frames of several kinds one after the other, and the directory
// after them.
func (b *mapBuilder) compose(kinds ...*textFrames) (builtMap, error) {
	var frames []dirFrame
	var parts []objstore.Body
	var offset int64
	for _, t := range kinds {
		for _, f := range t.frames {
			f.offset += offset
			frames = append(frames, f)
		}
		offset += t.out.Size()
		parts = append(parts, &t.out.Spool)
	}
	dir, err := appendDir(nil, frames, offset)
	if err != nil {
		return builtMap{}, fmt.Errorf("map of disk %s: %w", b.head.disk, err)
	}
	if b.keys != nil {
		return b.encrypt(dir, kinds)
	}
	m := builtMap{body: objstore.Concat(append(parts, bytes.NewReader(dir))...)}
	if m.ref.Name, err = hashBody(m.body); err != nil {
		return builtMap{}, fmt.Errorf("map of disk %s: %w", b.head.disk, err)
	}
	m.ref.Length = m.body.Size()
	m.ref.DirLength = int64(len(dir))
	m.ref.DirDigest = Sum(dir)
	return m, nil
}

// encrypt is the end of compose for an encrypted repository.
func (b *mapBuilder) encrypt(dir []byte, kinds []*textFrames) (m builtMap, err error) {
	b.sealed.Dir = b.dir
	w, err := b.keys.Writer(crypt.Metadata, &b.sealed)
	for i := 0; i < len(kinds) && err == nil; i++ {
		err = kinds[i].out.copyTo(w)
	}
	if err == nil {
		_, err = w.Write(dir)
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		m.body = &b.sealed
		m.ref.Name, err = hashBody(m.body)
	}
	if err != nil {
		return builtMap{}, fmt.Errorf("map of disk %s: %w", b.head.disk, err)
	}
	m.ref.Length, m.ref.DirLength, m.ref.DirDigest = m.body.Size(), int64(len(dir)), Sum(dir)
	return m, nil
}

// close gives back what the map's body reads from.
func (b *mapBuilder) close() {
	b.sealed.Close()
	b.names.out.Close()
	b.runs.out.Close()
}

// MapOptions say what [WriteMap] writes.
type MapOptions struct {
	Disk    string
	Size    int64  // the disk's virtual size, bytes
	Full    bool   // what the map leaves out is zero; else it is as in the parent
	TempDir string // for a map too large for memory; "": [spool.TempDir]
	// Seen, if not nil, reports whether a pack has been seen in the store with its
	// length; the others are asked for.
	Seen func(Ref) bool
}

// WriteMap stores a map made of entries, which come in order and do not overlap:
// a synthetic full is WriteMap of a [Replay]. In a full map zero entries are left
// out. The map counts only after each pack that it names has been seen in the
// store with its length.
func WriteMap(ctx context.Context, store objstore.Store, o MapOptions, entries iter.Seq2[Entry, error]) (MapRef, error) {
	enc, err := newEncoder(LevelFastest, false)
	if err != nil {
		return MapRef{}, err
	}
	defer enc.close()
	b, err := newMapBuilder(o.Disk, o.Size, o.Full, enc, o.TempDir, KeysOf(store))
	if err != nil {
		return MapRef{}, err
	}
	defer b.close()
	var packs packList
	for e, err := range entries {
		if err != nil {
			return MapRef{}, err
		}
		r := run{off: e.Offset, len: e.Length, zero: true}
		if !e.Zero {
			r = run{off: e.Offset, len: e.Length, frameOff: e.FrameOffset, frameLen: e.FrameLength, chunkOff: e.ChunkOffset, chunk: e.Chunk}
			r.pack, _ = packs.number(e.Pack)
		}
		if err := b.add(&r, len(packs.refs)); err != nil {
			return MapRef{}, err
		}
	}
	unseen := packs.refs
	if o.Seen != nil {
		unseen = slices.DeleteFunc(slices.Clone(unseen), o.Seen)
	}
	if err := statPacks(ctx, store, unseen); err != nil {
		return MapRef{}, fmt.Errorf("map of disk %s: %w", o.Disk, err)
	}
	m, err := b.seal(len(packs.refs), slices.Values(packs.refs))
	if err != nil {
		return MapRef{}, err
	}
	if _, err := putObject(ctx, store, MapKey(m.ref.Name), m.ref.Name, m.body); err != nil {
		return MapRef{}, fmt.Errorf("store the map of disk %s: %w", o.Disk, err)
	}
	return m.ref, nil
}

// StatPacks checks that every pack that the maps name is there with its length.
// One that is not is a [DamageError]; their content is not read. The maps are looked for,
// too, where the store may have answered for them by what it remembers.
func StatPacks(ctx context.Context, store objstore.Store, maps ...*Map) error {
	var packs packList
	for _, m := range maps {
		for _, p := range m.packs {
			packs.number(p)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	if _, ok := objstore.As[objstore.Remembering](store); ok {
		g.Go(func() error { return statMaps(ctx, store, maps) })
	}
	g.Go(func() error { return statPacks(ctx, store, packs.refs) })
	return g.Wait()
}

// statMaps checks that maps are there with their lengths: they may have been read from
// what is remembered of the store.
func statMaps(ctx context.Context, store objstore.Store, maps []*Map) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(mapStats)
	for _, m := range maps {
		g.Go(func() error {
			_, err := statObject(ctx, store, m.key, m.ref.Length)
			return err
		})
	}
	return g.Wait()
}

// mapStats is how many maps are asked for at once.
const mapStats = 64

// listPacks is the number of packs from which on one listing of all packs costs
// less than a question for each.
const listPacks = 64

// statPacks checks that packs are there with their lengths.
func statPacks(ctx context.Context, store objstore.Store, packs []Ref) error {
	if len(packs) >= listPacks {
		var err error
		if packs, err = unlistedPacks(ctx, store, packs); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, p := range packs {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			_, err := statObject(gctx, store, PackKey(p.Name), p.Length)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// unlistedPacks returns those of the packs that a listing does not show with
// their lengths.
func unlistedPacks(ctx context.Context, store objstore.Store, packs []Ref) ([]Ref, error) {
	want := make(map[Ref]struct{}, len(packs))
	for _, p := range packs {
		want[p] = struct{}{}
	}
	for info, err := range store.List(ctx, PackPrefix) {
		if err != nil {
			return nil, fmt.Errorf("list the packs: %w", err)
		}
		if _, name, ok := ParseKey(info.Key); ok {
			delete(want, Ref{Name: name, Length: info.Size})
		}
	}
	return slices.Collect(maps.Keys(want)), nil
}
