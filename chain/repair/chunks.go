// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// The part of a plan that is about single chunks, of packs that cannot be had whole: what
// has the same digest is the same, wherever it lies.

// want is a chunk that is looked for.
type want struct {
	frames []archive.Entry // where it may be: in damaged packs first, then elsewhere
	length int32           // at least so long, bytes
	places []place         // where images may have it
	where  []archive.Ref   // the packs that ought to have it
	found  *found          // nil: it is not found
}

// place is a range of a disk that was the chunk when it was backed up.
type place struct {
	disk string
	off  int64
}

// found is where a chunk is.
type found struct {
	fetcher *archive.Fetcher // of an entry
	entry   archive.Entry
	image   *Image      // else
	keys    *crypt.Keys // by which the digest is made; nil: it is a SHA-256
	off     int64
	length  int32
}

// So many places of one chunk are kept.
const maxPlaces = 8

// finders is how many chunks are looked for at once in what is near, or an image.
const finders = 8

// wants are the chunks that are looked for.
type wants struct {
	bad   map[archive.Ref]*Action // packs that cannot be had whole
	chunk map[archive.Digest]*want
}

// read returns the whole chunk, proven once more.
func (f *found) read(ctx context.Context, chunk archive.Digest) ([]byte, error) {
	if f.image == nil {
		return f.fetcher.Chunk(ctx, f.entry, make([]byte, 0, archive.GridSize))
	}
	data := make([]byte, f.length)
	if err := f.image.Reader.ReadAt(ctx, data, f.off); err != nil {
		return nil, fmt.Errorf("%s: %w", f.image.Name, err)
	}
	if !archive.ProvesChunk(f.keys, data, chunk) {
		return nil, fmt.Errorf("%s has changed while it was read", f.image.Name)
	}
	return data, nil
}

// of returns what is wanted of an entry; nil: its pack is sound.
func (w *wants) of(e *archive.Entry) *want {
	if e.Zero || w.bad[e.Pack] == nil {
		return nil
	}
	if c := w.chunk[e.Chunk]; c != nil {
		return c
	}
	return &want{} // of a map of which only a part can be read: nobody looked for it
}

// findMaps finds the maps that name packs which cannot be had whole.
func (l *planner) findMaps(ctx context.Context) error {
	l.wants = &wants{bad: l.badPacks, chunk: make(map[archive.Digest]*want)}
	if len(l.badPacks) == 0 {
		return nil
	}
	return l.eachMap(ctx, l.overlaid(), l.allMaps(), func(m *archive.Map) error {
		names := false
		for _, p := range m.Packs() {
			names = names || l.badPacks[p] != nil
		}
		if !names {
			return nil
		}
		if !l.lostMaps[m.Ref()] {
			l.maps[m.Ref()] = true
		}
		for e, err := range m.Entries(ctx, 0, m.Size()) {
			if err != nil {
				return err
			}
			if !e.Zero && l.badPacks[e.Pack] != nil {
				l.wants.add(m.Disk(), e)
			}
		}
		return nil
	})
}

// eachMap opens maps. One that is damaged is passed over: what that means is found
// elsewhere.
func (l *planner) eachMap(ctx context.Context, store objstore.Store, maps map[archive.MapRef]bool, do func(*archive.Map) error) error {
	for ref := range maps {
		m, err := archive.OpenMap(ctx, store, ref, 0)
		if err == nil {
			err = do(m)
		}
		if err != nil && !archive.IsDamage(err) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// add notes that an entry of a disk's map wants its chunk.
func (w *wants) add(disk string, e archive.Entry) {
	c := w.chunk[e.Chunk]
	if c == nil {
		c = &want{}
		w.chunk[e.Chunk] = c
	}
	c.length = max(c.length, e.ChunkOffset+int32(e.Length))
	c.addFrame(e)
	if !slices.Contains(c.where, e.Pack) {
		c.where = append(c.where, e.Pack)
	}
	at := place{disk, e.Offset - int64(e.ChunkOffset)}
	for _, p := range c.places {
		if p == at {
			return
		}
	}
	if len(c.places) < maxPlaces {
		c.places = append(c.places, at)
	}
}

func (c *want) addFrame(e archive.Entry) {
	e.Offset, e.ChunkOffset, e.Length = 0, 0, 0
	for _, f := range c.frames {
		if f == e {
			return
		}
	}
	if len(c.frames) < maxPlaces {
		c.frames = append(c.frames, e)
	}
}

// findChunks looks for all chunks that are wanted.
func (l *planner) findChunks(ctx context.Context) error {
	if len(l.wants.chunk) == 0 {
		return nil
	}
	if err := l.readTables(ctx); err != nil {
		return err
	}
	if keys := archive.KeysOf(l.repo.Store); keys != nil && !keys.Opens(crypt.Data) {
		return l.findWithoutKey(ctx)
	}
	// What is left in the damaged packs; then the same chunks elsewhere: a backup stores
	// again what it finds to be damaged.
	if err := l.tryFrames(ctx, l.overlaid()); err != nil {
		return err
	}
	if err := l.searchRepository(ctx, l.plain()); err != nil {
		return err
	}
	for _, from := range l.o.From {
		if err := l.searchRepository(ctx, from.Repo); err != nil {
			return err
		}
	}
	if err := l.tryImages(ctx); err != nil {
		return err
	}
	l.countChunks()
	return nil
}

// findWithoutKey is findChunks for who can't read the data: images tell what they have. What is
// not found there is not lost, as somebody else may read it.
func (l *planner) findWithoutKey(ctx context.Context) error {
	if err := l.tryImages(ctx); err != nil {
		return err
	}
	if n := len(l.wants.open()); n > 0 {
		return &crypt.KeyError{Half: crypt.Data, What: fmt.Sprintf(
			"is needed to see which of %d chunks of damaged packs are left, and these keys have only its public half: what is damaged was not repaired", n)}
	}
	l.countChunks()
	return nil
}

// readTables learns the lengths of chunks from the tables of packs, where they are left.
func (l *planner) readTables(ctx context.Context) error {
	for pack := range l.badPacks {
		chunks, err := archive.ReadPackTable(ctx, l.overlaid(), pack)
		if err != nil && !archive.IsDamage(err) {
			return err
		}
		for i := range chunks {
			if c := l.wants.chunk[chunks[i].Chunk]; c != nil && err == nil {
				c.length = chunks[i].Length
			}
		}
	}
	return nil
}

// open are the wants that are not found.
func (w *wants) open() map[archive.Digest]*want {
	open := make(map[archive.Digest]*want)
	for d, c := range w.chunk {
		if c.found == nil {
			open[d] = c
		}
	}
	return open
}

// each does something for the wants that are not found, several at once.
func (w *wants) each(ctx context.Context, atOnce int, do func(ctx context.Context, d archive.Digest, c *want) error) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for d, c := range w.open() {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error { return do(gctx, d, c) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// tryFrames tries the frames that are known of.
func (l *planner) tryFrames(ctx context.Context, store objstore.Store) error {
	fetcher := archive.NewFetcher(store, archive.FetcherOptions{Memory: l.repo.Memory})
	buffers := sync.Pool{New: func() any { b := make([]byte, 0, archive.GridSize); return &b }}
	atOnce := l.repo.Memory.Count(max(finders, objstore.Connections(store)), 2)
	return l.wants.each(ctx, atOnce, func(ctx context.Context, _ archive.Digest, c *want) error {
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		for _, e := range c.frames {
			_, err := fetcher.Chunk(ctx, e, *buf)
			if err == nil {
				c.found = &found{fetcher: fetcher, entry: e}
				return nil
			}
			if !archive.IsDamage(err) {
				return err
			}
		}
		return nil
	})
}

// searchRepository looks for what is wanted in all maps of a repository, by digest.
func (l *planner) searchRepository(ctx context.Context, repo *chain.Repository) error {
	open := l.wants.open()
	if len(open) == 0 {
		return nil
	}
	for _, c := range open {
		c.frames = nil
	}
	other := &planner{Plan: &Plan{repo: repo, over: &overlay{Store: repo.Store}}, refs: make(map[string]archive.Ref)}
	if err := other.readManifests(ctx); err != nil {
		return err
	}
	err := other.eachMap(ctx, repo.Store, other.allMaps(), func(m *archive.Map) error {
		for e, err := range m.Entries(ctx, 0, m.Size()) {
			if err != nil {
				return err
			}
			if c := open[e.Chunk]; c != nil && !e.Zero {
				c.addFrame(e)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return l.tryFrames(ctx, repo.Store)
}

// tryImages reads images where the chunks were.
func (l *planner) tryImages(ctx context.Context) error {
	for i := range l.o.Images {
		im := &l.o.Images[i]
		err := l.wants.each(ctx, finders, func(ctx context.Context, d archive.Digest, c *want) error {
			for _, p := range c.places {
				if p.disk != im.Disk || p.off < 0 || p.off+int64(c.length) > im.Size {
					continue
				}
				f := &found{image: im, off: p.off, length: c.length, keys: archive.KeysOf(l.repo.Store)}
				if _, err := f.read(ctx, d); err == nil {
					c.found = f
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// countChunks tells of each pack what is found of it. A chunk in several counts for each.
func (l *planner) countChunks() {
	for _, c := range l.wants.chunk {
		for _, e := range c.where {
			if c.found != nil {
				l.badPacks[e].Found++
			} else {
				l.badPacks[e].Lost++
			}
		}
	}
}
