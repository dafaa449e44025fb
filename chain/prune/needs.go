// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// needs is what checkpoints need, of an inventory.
type needs struct {
	census  []string // keys of all manifests
	lists   *lists
	parts   []segment
	live    *liveFrames      // nil: not asked for
	young   map[int]bool     // packs that stay whole, since young checkpoints have needed them in some version
	missing map[string]int64 // needed, and not in the inventory: its length
}

// findNeeds reads all manifests, and all maps once, several at once, and marks in the
// inventory what is needed. With frames, it also finds out which frames of which packs
// are. What is needed and was not listed was stored since; or it is missing, which is an
// error, as is a listing that leaves out what is there.
func (p *pruner) findNeeds(ctx context.Context, v *inventory, known []string, frames bool) (*needs, error) {
	n := &needs{missing: make(map[string]int64), lists: newLists(), young: make(map[int]bool)}
	var read int64
	census, err := p.repo.Census(ctx, append(known, v.manifests...), func(m *chain.Manifest) error {
		read++
		p.progress("reading checkpoints", read, int64(len(v.manifests)))
		for ref := range m.References() {
			n.need(v, ref.Key, ref.Object)
		}
		for i := range m.Disks {
			n.lists.add(&m.Disks[i])
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("what every checkpoint needs has to be known before anything is deleted: %w", err)
	}
	n.census = census
	if err := p.left(ctx, func(ref chain.Reference) { n.wanted(v, ref.Key, ref.Object) }); err != nil {
		return nil, err
	}
	if frames {
		n.live = newLiveFrames(len(v.of(archive.PackPrefix).objects))
	}
	if err := p.readMaps(ctx, v, n); err != nil {
		return nil, err
	}
	if err := p.young(ctx, v, n); err != nil {
		return nil, err
	}
	return n, p.checkMissing(ctx, n)
}

// young marks what young checkpoints have needed in any version of their manifests, where the
// store keeps all of it for a time: so whoever has described one anew, forgotten it or put
// something in its place has taken nothing away from it yet.
func (p *pruner) young(ctx context.Context, v *inventory, n *needs) error {
	rule := p.repo.Config.ObjectLock
	if rule == nil {
		return nil
	}
	since := time.Now().Add(-time.Duration(rule.Days) * 24 * time.Hour)
	revisions, err := p.repo.YoungRevisions(ctx, since)
	if err != nil {
		return err
	}
	claims := p.repo.Beneath(nil).NewClaims()
	for _, r := range revisions {
		if r.Manifest == nil {
			continue // a damaged one that counts is an error of the census
		}
		objects, err := claims.Add(ctx, r.Manifest)
		if err != nil && !chain.Unusable(err) {
			return err
		}
		for _, o := range objects {
			n.wanted(v, o.Key, o.Ref)
			if prefix, name, _ := archive.ParseKey(o.Key); prefix == archive.PackPrefix {
				n.young[v.of(prefix).find(name)] = true
			}
		}
	}
	return nil
}

// need marks an object. mu need not be held by who is alone.
func (n *needs) need(v *inventory, key string, ref archive.Ref) {
	if !n.wanted(v, key, ref) {
		n.missing[key] = ref.Length
	}
}

// wanted marks an object that may be missing, and reports whether it is there.
func (n *needs) wanted(v *inventory, key string, ref archive.Ref) bool {
	prefix, _, _ := archive.ParseKey(key)
	k := v.of(prefix)
	i := k.find(ref.Name)
	if i >= 0 {
		k.needed[i] = true
	}
	return i >= 0 && k.objects[i].size == ref.Length
}

// left calls f for what forgotten checkpoints left for others to ask. All manifests must
// have been read before: what one of them names is in such a list before it is removed.
func (p *pruner) left(ctx context.Context, f func(chain.Reference)) error {
	for list, err := range p.repo.AllForgotten(ctx) {
		if err != nil {
			return fmt.Errorf("what forgotten checkpoints left has to be known before anything is deleted: %w", err)
		}
		for ref := range list.References() {
			f(ref)
		}
	}
	return nil
}

// readMaps marks the packs that the maps name, and finds out which of their frames are
// read by checkpoints.
func (p *pruner) readMaps(ctx context.Context, v *inventory, n *needs) error {
	n.parts = n.lists.segments()
	refs := make([][]archive.MapRef, len(n.parts))
	for i := range n.parts {
		refs[i] = n.parts[i].maps
	}
	var done int64
	return p.repo.EachMaps(ctx, refs, func(ctx context.Context, _ int, maps []*archive.Map) error {
		packs := v.of(archive.PackPrefix)
		numbers := make(map[archive.Ref]int) // in the inventory; -1: not listed
		for _, m := range maps {
			for _, ref := range m.Packs() {
				numbers[ref] = packs.find(ref.Name)
			}
		}
		p.mu.Lock()
		for ref := range numbers {
			n.need(v, archive.PackKey(ref.Name), ref)
		}
		done++
		p.progress("reading maps", done, int64(len(n.parts)))
		p.mu.Unlock()
		if n.live == nil {
			return nil
		}
		if len(maps) == 1 {
			return addFrames(ctx, n.live, maps[0], numbers)
		}
		return addMerged(ctx, n.live, maps, numbers)
	})
}

// frameBatch hands frames on in batches.
type frameBatch struct {
	live   *liveFrames
	frames []pendingFrame
}

func (b *frameBatch) add(pack int, offset int64, length int32) {
	if pack < 0 {
		return // stored since the listing
	}
	if len(b.frames) == cap(b.frames) {
		b.end()
	}
	b.frames = append(b.frames, pendingFrame{pack: uint32(pack), offset: uint32(offset), length: length})
}

func (b *frameBatch) end() {
	b.live.add(b.frames)
	b.frames = b.frames[:0]
}

const batchFrames = 4096

// addFrames collects the frames that a map names.
func addFrames(ctx context.Context, live *liveFrames, m *archive.Map, numbers map[archive.Ref]int) error {
	local := make([]int, len(m.Packs()))
	for i, ref := range m.Packs() {
		local[i] = numbers[ref]
	}
	b := frameBatch{live: live, frames: make([]pendingFrame, 0, batchFrames)}
	defer b.end()
	return m.Frames(ctx, func(f *archive.Frame) error {
		b.add(local[f.Pack], f.Offset, f.Length)
		return nil
	})
}

// addMerged collects the frames that maps name which are read together.
func addMerged(ctx context.Context, live *liveFrames, maps []*archive.Map, numbers map[archive.Ref]int) error {
	b := frameBatch{live: live, frames: make([]pendingFrame, 0, batchFrames)}
	defer b.end()
	for e, err := range archive.Merge(ctx, maps) {
		if err != nil {
			return err
		}
		if !e.Zero {
			b.add(numbers[e.Pack], e.FrameOffset, e.FrameLength)
		}
	}
	return nil
}

// checkMissing looks for what is needed and was not listed.
func (p *pruner) checkMissing(ctx context.Context, n *needs) error {
	prefixes := make(map[string]bool)
	for key := range n.missing {
		prefix, _, _ := archive.ParseKey(key)
		prefixes[prefix] = true
	}
	for _, prefix := range slices.Sorted(maps.Keys(prefixes)) {
		for info, err := range p.repo.Store.List(ctx, prefix) {
			if err != nil {
				return fmt.Errorf("list %s: %w", prefix, err)
			}
			if length, ok := n.missing[info.Key]; ok && length == info.Size {
				delete(n.missing, info.Key)
			}
		}
	}
	for key, length := range n.missing {
		stands, err := archive.Stands(ctx, p.repo.Store, key, length)
		switch {
		case err != nil:
			return err
		case stands:
			return &chain.ListingError{Object: key}
		}
		return archive.Damaged(key, objstore.MarkNotFound(errors.New(
			"a checkpoint needs it, and it is missing or of another length, so that nothing is deleted now: what is unused"+
				" may have what was lost (imgbackup check tells which checkpoints are affected; forget or repair them first)")))
	}
	return nil
}
