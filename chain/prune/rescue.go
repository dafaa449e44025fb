// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// rescued is what of a mark's list checkpoints need after all.
type rescued struct {
	mu     sync.Mutex
	list   *chain.MarkList
	has    []bool // by the objects of the list
	packs  map[archive.Digest]bool
	census []string
}

func (r *rescued) need(key string) {
	i, ok := slices.BinarySearch(r.list.Objects, key)
	if !ok {
		return
	}
	r.has[i] = true
	if prefix, name, _ := archive.ParseKey(key); prefix == archive.PackPrefix {
		r.packs[name] = true
	}
}

// readAgain reads all manifests once more, when every writer has ended that may have
// known the repository without the mark: what they need stays. of is what was known when
// the list was made: maps that were needed then name nothing that is in it.
func (p *pruner) readAgain(ctx context.Context, list *chain.MarkList, v *inventory, of *needs) (*rescued, error) {
	r := &rescued{list: list, has: make([]bool, len(list.Objects)), packs: make(map[archive.Digest]bool)}
	known := v.of(archive.MapPrefix)
	seen := make(map[archive.Digest]bool)
	var maps []archive.MapRef
	var read int64
	census, err := p.repo.Census(ctx, list.Census, func(m *chain.Manifest) error {
		read++
		p.progress("reading checkpoints again", read, int64(len(list.Census)))
		for ref := range m.References() {
			r.need(ref.Key)
			if ref.Map == nil || seen[ref.Map.Name] {
				continue
			}
			seen[ref.Map.Name] = true
			if i := known.find(ref.Map.Name); of == nil || i < 0 || !known.needed[i] {
				maps = append(maps, *ref.Map)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("what every checkpoint needs has to be known before anything is deleted: %w", err)
	}
	r.census = census
	if err := p.left(ctx, func(ref chain.Reference) { r.need(ref.Key) }); err != nil {
		return nil, err
	}
	err = p.repo.EachMap(ctx, maps, func(_ context.Context, _ int, m *archive.Map) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, pack := range m.Packs() {
			r.need(archive.PackKey(pack.Name))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return r, p.rescueIndexes(ctx, r)
}

var errRescue = errors.New("it lists a pack that is needed")

// rescueIndexes keeps the indexes of packs that are needed after all. Nothing but
// deduplication is lost with one that can't be read.
func (p *pruner) rescueIndexes(ctx context.Context, r *rescued) error {
	if len(r.packs) == 0 {
		return nil
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(p.indexReaders())
	for i, key := range r.list.Objects {
		prefix, _, _ := archive.ParseKey(key)
		if _, is := archive.IsIndex(prefix); !is || gctx.Err() != nil {
			continue
		}
		g.Go(func() error {
			_, err := archive.ReadIndex(gctx, p.repo.Store, key, p.indexing, func(pack archive.Ref, _ []archive.PackChunk) error {
				if r.packs[pack.Name] {
					return errRescue
				}
				return nil
			})
			if errors.Is(err, errRescue) {
				r.has[i] = true // nobody else's
				return nil
			}
			if err != nil && !archive.IsDamage(err) && !errors.Is(err, objstore.ErrNotFound) && !errors.Is(err, archive.ErrOldIndex) {
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}
