// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

// An index lists packs and their chunks, so that a backup need not store them again. One
// is needed as long as it is the only one that lists some pack which is needed.

const (
	// smallIndex is the number of chunks below which an index is worth being merged.
	smallIndex = 1 << 15
	// manyIndexes is how many of these there may be.
	manyIndexes = 16
	// So many are read at once of a store that is near.
	nearReaders = 4
)

// indexReaders is how many indexes are read at once.
func (p *pruner) indexReaders() int { return max(nearReaders, objstore.Connections(p.repo.Store)) }

// index is what is known of one.
type index struct {
	kind   *kind    // those of one folder
	number int      // in that
	packs  []uint32 // that it lists and that are needed, by their numbers in the inventory
	bytes  []int64  // of what each of them has beside its table, in an encrypted repository
	chunks int      // in these packs
	time   int64    // seconds since 1970
	odd    bool     // it can't be read here, and stays
}

func (in *index) key() string {
	return archive.ObjectKey(in.kind.prefix, in.kind.objects[in.number].name)
}

// readIndexes reads all indexes. One that is damaged, or of a newer version, stays as it
// is, since it tells nothing: check finds it.
func (p *pruner) readIndexes(ctx context.Context, v *inventory) ([]index, error) {
	all := v.indexes()
	indexes := make([]index, len(all))
	var done int64
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(p.indexReaders())
	for i := range all {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			in, err := p.readIndex(gctx, v, all[i])
			if err != nil {
				return err
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			indexes[i] = in
			done++
			p.progress("reading indexes", done, int64(len(all)))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return indexes, context.Cause(ctx)
}

func (p *pruner) readIndex(ctx context.Context, v *inventory, empty index) (index, error) {
	in := empty
	packs := v.of(archive.PackPrefix)
	var err error
	in.time, err = archive.ReadIndex(ctx, p.repo.Store, in.key(), p.indexing, func(pack archive.Ref, chunks []archive.PackChunk) error {
		n := packs.find(pack.Name)
		if n >= 0 && packs.objects[n].size == pack.Length && packs.needed[n] {
			in.packs = append(in.packs, uint32(n))
			in.chunks += len(chunks)
			if len(chunks) > 0 && chunks[0].Keyed != nil {
				in.bytes = append(in.bytes, archive.FrameBytes(chunks))
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, objstore.ErrNotFound), errors.Is(err, archive.ErrOldIndex):
		return empty, nil // removed since it was listed, or of no use
	case archive.IsDamage(err):
		p.note("an index stays as it is: %v", err)
		empty.odd = true
		return empty, nil
	}
	return in, err
}

// useIndexes marks the indexes that are needed: those that list most first, until all
// packs are listed that are listed anywhere.
func (pl *plan) useIndexes() {
	listed := make([]bool, len(pl.inventory.of(archive.PackPrefix).objects))
	order := make([]int, len(pl.indexes))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		x, y := &pl.indexes[a], &pl.indexes[b]
		return cmp.Or(cmp.Compare(len(y.packs), len(x.packs)), cmp.Compare(y.time, x.time), cmp.Compare(a, b))
	})
	for _, i := range order {
		in := &pl.indexes[i]
		needed := in.odd
		for _, pack := range in.packs {
			needed = needed || !listed[pack]
			listed[pack] = true
		}
		in.kind.needed[in.number] = needed
	}
}

// chooseMerge decides which indexes are merged: the small ones, when there are many.
func (pl *plan) chooseMerge() {
	var small []int
	chunks := 0
	for i := range pl.indexes {
		in := &pl.indexes[i]
		if in.kind.needed[in.number] && !in.odd && in.chunks < smallIndex {
			small = append(small, i)
			chunks += in.chunks
		}
	}
	if len(small) <= manyIndexes {
		return
	}
	pl.merge = small
	pl.summary.Indexes = Merge{From: len(small), To: 1 + chunks/smallIndex}
}

// mergeIndexes stores what the chosen indexes say of packs that are needed as new ones.
// skip reports whether a pack is to be left out.
func (p *pruner) mergeIndexes(ctx context.Context, pl *plan, skip func(archive.Ref) bool) (Merge, error) {
	if len(pl.merge) == 0 {
		return Merge{}, nil
	}
	packs := pl.inventory.of(archive.PackPrefix)
	var newest int64
	for _, i := range pl.merge {
		newest = max(newest, pl.indexes[i].time)
	}
	own, err := p.repo.Indexing()
	if err != nil {
		return Merge{}, err
	}
	w, err := archive.NewIndexWriter(p.repo.Store, newest, p.o.TempDir, own)
	if err != nil {
		return Merge{}, err
	}
	defer w.Close()
	listed := make(map[archive.Digest]bool)
	for _, i := range pl.merge {
		_, err := archive.ReadIndex(ctx, p.repo.Store, pl.indexes[i].key(), p.indexing, func(pack archive.Ref, chunks []archive.PackChunk) error {
			n := packs.find(pack.Name)
			if n < 0 || !packs.needed[n] || listed[pack.Name] || skip(pack) {
				return nil
			}
			listed[pack.Name] = true
			return w.Add(ctx, pack, chunks)
		})
		if err != nil {
			return Merge{}, fmt.Errorf("merge indexes: %w", err)
		}
	}
	if err := w.Finish(ctx); err != nil {
		return Merge{}, fmt.Errorf("merge indexes: %w", err)
	}
	return Merge{From: len(pl.merge), To: len(w.Stored())}, nil
}
