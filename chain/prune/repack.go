// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
)

// A repack is a writer as a backup is one, with a lease of its own: it stores new packs,
// then new maps, and then the manifests' next revisions, which name them. It is over
// before anything is marked. What it leaves when it is cut off, nothing needs: it goes
// with the next prune.

// rewrite does what the plan says of packs that are partly unused and of indexes.
func (p *pruner) rewrite(ctx context.Context, pl *plan) (err error) {
	w, err := p.repo.BeginRepack(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(w.Explain(err), w.End(ctx)) }()
	ctx = w.Context()
	var moved *archive.Mover
	if len(pl.repack) > 0 {
		if moved, err = p.move(ctx, pl); err != nil {
			return err
		}
		if err := p.revise(ctx, w, pl, moved); err != nil {
			return err
		}
		p.result.Repack.add(&pl.summary.Repack)
		p.o.RepackMax -= pl.summary.Repack.Moves
	}
	skip := func(pack archive.Ref) bool { return moved != nil && moved.Moved(pack) }
	merged, err := p.mergeIndexes(ctx, pl, skip)
	p.result.Indexes.From += merged.From
	p.result.Indexes.To += merged.To
	return err
}

func (r *Repack) add(s *Repack) {
	r.Packs += s.Packs
	r.Bytes += s.Bytes
	r.Moves += s.Moves
	r.Frees += s.Frees
	r.Unused = s.Unused
}

// move copies what is used of the chosen packs into new ones.
func (p *pruner) move(ctx context.Context, pl *plan) (*archive.Mover, error) {
	order, err := p.inOrder(ctx, pl)
	if err != nil {
		return nil, err
	}
	total := pl.summary.Repack.Moves
	var stored int64
	p.progress("repacking", 0, total)
	own, err := p.repo.Indexing()
	if err != nil {
		return nil, err
	}
	m, err := archive.NewMover(ctx, p.repo.Store, archive.MoveOptions{
		Indexing: own,
		PackSize: p.o.packSize, TempDir: p.o.TempDir, Memory: p.repo.Memory,
		Stored: func(n int64) { // one at a time
			stored += n
			p.progress("repacking", min(stored, total), total)
		},
	})
	if err != nil {
		return nil, err
	}
	packs := pl.inventory.of(archive.PackPrefix)
	for _, n := range order {
		if len(pl.needs.live.packs[n].offsets) == 0 {
			continue // nothing of it is read
		}
		if err = m.Move(packs.ref(n), pl.needs.live.packs[n].offsets); err != nil {
			break
		}
	}
	_, ferr := m.Finish()
	if err == nil || ferr != nil && !archive.IsDamage(err) {
		err = ferr // the first one that was met
	}
	return m, err
}

// inOrder are the packs that are emptied, in the order in which the largest maps name
// them: what is read together lies together afterwards, too.
func (p *pruner) inOrder(ctx context.Context, pl *plan) ([]int, error) {
	packs := pl.inventory.of(archive.PackPrefix)
	at := make(map[int][2]int, len(pl.repack)) // a pack's place: in which map, and where
	for _, c := range pl.repack {
		at[c.pack] = [2]int{math.MaxInt, 0}
	}
	parts := slices.Clone(pl.needs.parts)
	slices.SortFunc(parts, func(a, b segment) int {
		x, y := &a.maps[len(a.maps)-1], &b.maps[len(b.maps)-1]
		return cmp.Or(cmp.Compare(y.Length, x.Length), slices.Compare(x.Name[:], y.Name[:]))
	})
	pl.rewrites = nil
	err := p.repo.EachMaps(ctx, mapsOf(parts), func(_ context.Context, i int, maps []*archive.Map) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		names, j := false, 0
		for _, m := range slices.Backward(maps) {
			for _, ref := range m.Packs() {
				n := packs.find(ref.Name)
				place, chosen := at[n]
				j++
				names = names || chosen
				if chosen && i < place[0] {
					at[n] = [2]int{i, j}
				}
			}
		}
		if names {
			pl.rewrites = append(pl.rewrites, parts[i])
		}
		return nil
	})
	order := make([]int, 0, len(at))
	for n := range at {
		order = append(order, n)
	}
	slices.SortFunc(order, func(a, b int) int {
		x, y := at[a], at[b]
		return slices.Compare(append(x[:], a), append(y[:], b))
	})
	return order, err
}

// mapsOf are the maps of segments.
func mapsOf(parts []segment) [][]archive.MapRef {
	refs := make([][]archive.MapRef, len(parts))
	for i := range parts {
		refs[i] = parts[i].maps
	}
	return refs
}

// revise stores the maps anew that name what was moved, and then the manifests that name
// these maps, one after the other.
func (p *pruner) revise(ctx context.Context, w *chain.Repacking, pl *plan, moved *archive.Mover) error {
	maps, err := p.rewriteMaps(ctx, pl, moved)
	if err != nil {
		return err
	}
	for i, key := range pl.needs.census {
		p.progress("rewriting checkpoints", int64(i), int64(len(pl.needs.census)))
		k := chain.ParseKey(key)
		for {
			err := p.reviseOne(ctx, w, k, pl.needs.lists, maps)
			if errors.As(err, new(*chain.RevisedError)) {
				continue // by somebody else, just now
			}
			if errors.Is(err, chain.ErrNoCheckpoint) {
				err = nil // forgotten since
			}
			if err != nil {
				return err
			}
			break
		}
	}
	return nil
}

func (p *pruner) reviseOne(
	ctx context.Context, w *chain.Repacking, k chain.Key, known *lists, fresh map[int32]archive.MapRef,
) error {
	m, err := p.repo.Manifest(ctx, k.Domain, k.Name)
	if err != nil {
		return err
	}
	changed := false
	for i := range m.Disks {
		maps, is := known.rewrite(m.Disks[i].Maps, fresh)
		if is {
			m.Disks[i].Maps, changed = maps, true
		}
	}
	if !changed {
		return nil
	}
	return w.Revise(ctx, m)
}

// rewriteMaps stores maps in place of segments that name what was moved or is unused, each
// as one, several at once, and returns them by the segments' nodes.
func (p *pruner) rewriteMaps(
	ctx context.Context, pl *plan, moved *archive.Mover,
) (map[int32]archive.MapRef, error) {
	packs := pl.inventory.of(archive.PackPrefix)
	fresh := make(map[archive.Ref]bool)
	for _, ref := range moved.Packs() {
		fresh[ref] = true
	}
	seen := func(ref archive.Ref) bool {
		n := packs.find(ref.Name)
		return n >= 0 && packs.objects[n].size == ref.Length || fresh[ref]
	}
	rewritten := make(map[int32]archive.MapRef)
	var done int64
	err := p.repo.EachMaps(ctx, mapsOf(pl.rewrites), func(ctx context.Context, i int, maps []*archive.Map) error {
		ref, err := p.rewriteMap(ctx, maps, moved, seen)
		if err != nil {
			return fmt.Errorf("write map %s anew: %w", maps[0].Ref().Name, err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		rewritten[pl.rewrites[i].node] = ref
		done++
		p.progress("rewriting maps", done, int64(len(pl.rewrites)))
		return nil
	})
	return rewritten, err
}

func (p *pruner) rewriteMap(
	ctx context.Context, maps []*archive.Map, moved *archive.Mover, seen func(archive.Ref) bool,
) (archive.MapRef, error) {
	m := maps[0]
	entries := archive.Merge(ctx, maps)
	if len(maps) == 1 {
		entries = m.Entries(ctx, 0, m.Size())
	}
	o := archive.MapOptions{
		Disk: m.Disk(), Size: m.Size(), Full: maps[len(maps)-1].Full(), TempDir: p.o.TempDir, Seen: seen,
	}
	return archive.WriteMap(ctx, p.repo.Store, o, func(yield func(archive.Entry, error) bool) {
		for e, err := range entries {
			if err == nil {
				err = moved.Place(&e)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	})
}
