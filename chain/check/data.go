// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"unique"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// The part of a check that is about packs, and about what nothing refers to.

// listed is an object of data, or about it, as the store lists it.
type listed struct {
	prefix string
	name   archive.Digest
	size   int64
}

// listObjects asks the store for what it has. A listing proves what is there, not what is
// absent.
func (c *check) listObjects(ctx context.Context) error {
	var n int64
	whole := false // the listing has what is certainly there
	for info, err := range c.repo.Store.List(ctx, "") {
		if err != nil {
			return err
		}
		if n++; n%1024 == 0 {
			c.progress("listing", n, 0)
		}
		whole = whole || info.Key == chain.ConfigKey
		prefix, name, ok := archive.ParseKey(info.Key)
		if !ok {
			c.takeOther(info.Key)
			continue
		}
		prefix = unique.Make(strings.Clone(prefix)).Value() // so that the key is not kept
		c.listed = append(c.listed, listed{prefix, name, info.Size})
		if prefix == archive.MapPrefix {
			c.mapLengths[name] = info.Size
		}
	}
	if !whole && !c.damagedKey(chain.ConfigKey) {
		// What manifests name is asked for all the same, and damage told that is found by that.
		c.unlisted = &chain.ListingError{Object: chain.ConfigKey}
	}
	return nil
}

// compareListed compares what is listed with what the manifests refer to.
func (c *check) compareListed(context.Context) error {
	if c.unlisted != nil {
		return c.unlisted
	}
	known := make(map[string]struct{}, len(c.maps)+len(c.bitmaps)+len(c.clusters)+len(c.files))
	for ref := range c.maps {
		known[archive.MapKey(ref.Name)] = struct{}{}
	}
	for b := range c.bitmaps {
		known[archive.BitmapKey(b.object.Name)] = struct{}{}
	}
	for p := range c.clusters {
		known[archive.ClustersKey(p.Object.Name)] = struct{}{}
	}
	for f := range c.files {
		known[archive.FileKey(f.Object.Name)] = struct{}{}
	}
	for _, l := range c.listed {
		ref := archive.Ref{Name: l.name, Length: l.size}
		if _, used := c.packs[ref]; used && l.prefix == archive.PackPrefix {
			c.packs[ref] = true
			continue
		}
		if key := archive.KeyOf(l.prefix, l.name); c.all() {
			if _, used := known[key]; !used {
				c.loose = append(c.loose, objstore.Info{Key: key, Size: l.size})
			}
		}
	}
	return nil
}

// takeOther takes in a key that is listed, and of no data.
func (c *check) takeOther(key string) {
	switch k := chain.ParseKey(key); {
	case k.Kind == chain.KeyUnknown && c.all():
		c.note("%s is not an object of a repository", key)
	case (k.Kind == chain.KeyDrill || k.Kind == chain.KeyDrillSignature) && c.wants(k.Domain):
		c.drills = append(c.drills, k)
	}
}

// checkLengths asks for each pack that was not listed as it should be.
func (c *check) checkLengths(ctx context.Context) error {
	var refs []archive.Ref
	for ref, seen := range c.packs {
		if !seen {
			refs = append(refs, ref)
		}
	}
	err := each(ctx, c, "packs that were not listed", refs, one, func(ctx context.Context, ref archive.Ref) error {
		err := archive.VerifyPack(ctx, c.repo.Store, ref, false)
		if err == nil {
			return nil // it is counted with the others
		}
		return c.record(KindPack, archive.PackKey(ref.Name), 0, err)
	})
	if err != nil {
		return err
	}
	// A pack of the wrong length is used, though not as it is.
	used := make(map[archive.Digest]struct{}, len(refs))
	for _, ref := range refs {
		used[ref.Name] = struct{}{}
	}
	c.loose = slices.DeleteFunc(c.loose, func(info objstore.Info) bool {
		prefix, name, _ := archive.ParseKey(info.Key)
		_, is := used[name]
		return is && prefix == archive.PackPrefix
	})
	for _, info := range c.loose {
		prefix, _, _ := archive.ParseKey(info.Key)
		if _, is := archive.IsIndex(prefix); !is {
			c.report.Unreferenced++
			c.report.UnreferencedLength += info.Size
		}
	}
	if n := c.report.Unreferenced; n > 0 {
		c.note("objects that no checkpoint uses: %d, of %d bytes: left by backups that did not finish,"+
			" by checkpoints that were removed, or by a backup that is running", n, c.report.UnreferencedLength)
	}
	return nil
}

// readData reads what of the data is to be read: packs, of which every chunk is decoded;
// and what nothing refers to, the indexes and what a later backup might use again.
func (c *check) readData(ctx context.Context) error {
	chosen := c.choose(c.data())
	c.read = make(map[archive.Ref]bool, len(chosen))
	for i := range chosen {
		if chosen[i].loose == nil {
			c.read[chosen[i].ref] = true
		}
	}
	length := func(d datum) int64 { return d.ref.Length }
	return each(ctx, c, "packs", chosen, length, c.readDatum)
}

func (c *check) readDatum(ctx context.Context, d datum) error {
	key := d.key()
	if c.damagedKey(key) {
		return nil
	}
	prefix, _, _ := archive.ParseKey(key)
	undecoded := c.report.NoDecode && prefix == archive.PackPrefix
	var err error
	_, isIndex := archive.IsIndex(prefix)
	switch {
	case isIndex && c.repo.IndexSeals() != nil:
		err = c.readIndex(ctx, key)
	case undecoded && c.o.NoDecode:
		err = archive.VerifyName(ctx, c.sourceOf(d), key, d.ref.Length)
	default:
		err = archive.VerifyObject(ctx, c.sourceOf(d), key, d.ref.Length, true)
	}
	kind := KindPack
	if d.loose != nil {
		if errors.Is(err, objstore.ErrNotFound) {
			return nil // deleted since it was listed
		}
		kind = map[string]string{
			archive.PackPrefix: KindPack, archive.MapPrefix: KindMap,
			archive.BitmapPrefix: KindBitmap,
			archive.FilePrefix:   KindFile, archive.ClustersPrefix: KindClusters,
		}[prefix]
		if isIndex {
			kind = KindIndex
		}
	}
	if rerr := c.record(kind, key, d.ref.Length, err); rerr != nil {
		return rerr
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil && undecoded && c.provenAt(d.ref.Name) == 0:
		// It is whole. What is in it nobody has decoded yet.
	case err == nil:
		c.proven = append(c.proven, d.ref.Name)
	default:
		c.unsound = append(c.unsound, d.ref.Name)
	}
	return nil
}

// readIndex proves an index, and who has signed it.
func (c *check) readIndex(ctx context.Context, key string) error {
	every := func(archive.Ref, []archive.PackChunk) error { return nil }
	_, err := archive.ReadIndex(ctx, objstore.Direct(c.repo.Store), key, archive.Indexing{Seals: c.repo.IndexSeals()}, every)
	if errors.Is(err, archive.ErrOldIndex) {
		return nil
	}
	return err
}

// countUnread counts the packs of which only the length was looked at.
func (c *check) countUnread(context.Context) error {
	for ref := range c.packs {
		if c.read[ref] || c.damagedKey(archive.PackKey(ref.Name)) {
			continue
		}
		c.report.Objects++
		c.report.Bytes += ref.Length
		c.report.UnreadPacks++
		c.report.UnreadBytes += ref.Length
	}
	c.sumProofs()
	return nil
}

// maxTableChunks bounds the tables of packs that are kept at once.
const maxTableChunks = 1 << 19

// mapsAtOnce is how many maps are opened at once to be compared with packs.
const mapsAtOnce = 32

// checkReferences proves that each run of each map names a frame that its pack
// has: that all packs and all maps are sound does not say yet that they match.
func (c *check) checkReferences(ctx context.Context) error {
	tables := &packTables{store: c.repo.Store, atOnce: c.o.Workers, tables: make(map[archive.Digest]map[framePlace]archive.PackChunk)}
	refs := slices.DeleteFunc(slices.Collect(maps.Keys(c.maps)), func(ref archive.MapRef) bool { return c.damagedKey(archive.MapKey(ref.Name)) })
	var n int64
	for part := range slices.Chunk(refs, c.repo.Memory.Count(mapsAtOnce, 1)) {
		opened, errs := c.openMaps(ctx, part)
		tables.wanted = tables.wanted[:0]
		for _, m := range opened {
			if m != nil {
				tables.wanted = append(tables.wanted, slices.DeleteFunc(slices.Clone(m.Packs()), func(pack archive.Ref) bool { return !c.sound(pack) })...)
			}
		}
		for i, ref := range part {
			c.progress("references of maps", n, int64(len(refs)))
			n++
			err := errs[i]
			if err == nil {
				err = c.checkReferencesOf(ctx, ref, opened[i], tables)
			}
			if archive.IsDamage(err) {
				c.mu.Lock()
				c.found(KindMap, archive.MapKey(ref.Name), err)
				c.mu.Unlock()
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// openMaps opens maps, all at once.
func (c *check) openMaps(ctx context.Context, refs []archive.MapRef) ([]*archive.Map, []error) {
	opened, errs := make([]*archive.Map, len(refs)), make([]error, len(refs))
	var work sync.WaitGroup
	for i, ref := range refs {
		work.Go(func() { opened[i], errs[i] = archive.OpenMap(ctx, c.repo.Store, ref, 0) })
	}
	work.Wait()
	return opened, errs
}

func (c *check) checkReferencesOf(ctx context.Context, ref archive.MapRef, m *archive.Map, tables *packTables) error {
	for e, err := range m.Entries(ctx, 0, m.Size()) {
		if err != nil {
			return err
		}
		if e.Zero || !c.sound(e.Pack) {
			continue
		}
		table, err := tables.get(ctx, e.Pack)
		if err != nil {
			return err
		}
		f, ok := table[framePlace{e.FrameOffset, e.Chunk}]
		if !ok || f.FrameLength != e.FrameLength || f.Chunk != e.Chunk ||
			int64(e.ChunkOffset)+e.Length > int64(f.Length) {
			return archive.Damaged(archive.MapKey(ref.Name), fmt.Errorf(
				"its run at guest offset %d names chunk %s in frame %d+%d of %s, which is not there",
				e.Offset, e.Chunk, e.FrameOffset, e.FrameLength, archive.PackKey(e.Pack.Name)))
		}
	}
	return nil
}

// sound reports whether a pack was read, and is not damaged.
func (c *check) sound(pack archive.Ref) bool {
	return c.read[pack] && !c.damagedKey(archive.PackKey(pack.Name))
}

// packTables holds tables of packs, by the offsets of their frames. When there
// are too many, all are dropped: maps name packs mostly in order.
type packTables struct {
	store  objstore.Store
	atOnce int
	wanted []archive.Ref // mostly in the order in which they are asked for
	tables map[archive.Digest]map[framePlace]archive.PackChunk
	chunks int
}

// framePlace is a chunk's place in a pack: several of an encrypted pack have one offset.
type framePlace struct {
	offset int64
	chunk  archive.Digest
}

func (p *packTables) get(ctx context.Context, ref archive.Ref) (map[framePlace]archive.PackChunk, error) {
	if t, ok := p.tables[ref.Name]; ok {
		return t, nil
	}
	if err := p.fetch(ctx, ref, p.next(ref)); err != nil {
		return nil, err
	}
	return p.tables[ref.Name], nil
}

// next are packs whose tables are likely to be asked for after that of one, and are not there.
func (p *packTables) next(ref archive.Ref) (next []archive.Ref) {
	for _, other := range p.wanted[slices.Index(p.wanted, ref)+1:] {
		if len(next) == p.atOnce-1 {
			break
		}
		if _, ok := p.tables[other.Name]; !ok && other != ref && !slices.Contains(next, other) {
			next = append(next, other)
		}
	}
	return next
}

// fetch gets the table of a pack, or fails, and at the same time those of others, if it can.
func (p *packTables) fetch(ctx context.Context, ref archive.Ref, others []archive.Ref) error {
	refs := append([]archive.Ref{ref}, others...)
	fetched, errs := make([][]archive.PackChunk, len(refs)), make([]error, len(refs))
	var work sync.WaitGroup
	for i := range refs {
		work.Go(func() { fetched[i], errs[i] = archive.ReadPackTable(ctx, p.store, refs[i]) })
	}
	work.Wait()
	if errs[0] != nil {
		return errs[0]
	}
	n := 0
	for i := range fetched {
		n += len(fetched[i])
	}
	if p.chunks += n; p.chunks > maxTableChunks {
		clear(p.tables)
		p.chunks = n
	}
	for i, chunks := range fetched {
		if errs[i] != nil {
			continue // it is told when that one is asked for
		}
		t := make(map[framePlace]archive.PackChunk, len(chunks))
		for _, f := range chunks {
			t[framePlace{f.FrameOffset, f.Chunk}] = f
		}
		p.tables[refs[i].Name] = t
	}
	return nil
}
