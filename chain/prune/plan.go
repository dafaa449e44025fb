// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"cmp"
	"context"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
)

// plan is what one prune means to do. To make it writes nothing.
type plan struct {
	keyed     bool // the repository is encrypted
	inventory *inventory
	needs     *needs
	indexes   []index
	repack    []repackOf // the packs that are to be emptied
	merge     []int      // numbers of the indexes that are to be merged
	summary   Summary

	rewrites []segment // what names packs which are emptied
}

// repackOf is a pack that is to be emptied.
type repackOf struct {
	pack   int // its number in the inventory
	unused int64
}

// makePlan reads all that tells what is needed. known are manifests that an earlier
// prune saw; with repack, packs that are partly used are looked at, too.
func (p *pruner) makePlan(ctx context.Context, known []string, repack bool) (*plan, error) {
	v, err := takeInventory(ctx, p.repo, func(done int64) { p.progress("listing", done, 0) })
	if err != nil {
		return nil, err
	}
	pl := &plan{inventory: v, keyed: archive.KeysOf(p.repo.Store) != nil}
	if pl.needs, err = p.findNeeds(ctx, v, known, repack); err != nil {
		return nil, err
	}
	if pl.indexes, err = p.readIndexes(ctx, v); err != nil {
		return nil, err
	}
	pl.useIndexes()
	if repack {
		pl.chooseMerge()
		pl.chooseRepack(p.o.MaxUnused, p.o.RepackMax, p.damaged)
	}
	pl.summary.Checkpoints = len(pl.needs.census)
	pl.summary.Kept = v.neededAmounts()
	pl.summary.Remove = v.unneeded()
	for _, l := range v.probes {
		pl.summary.Remove.add("probes", 1, l.Size)
	}
	return pl, nil
}

// heldBytes is, by the indexes, what each pack of an encrypted repository has beside its
// table, whose length can't be told from its groups; nil: the repository is plain.
func (pl *plan) heldBytes(packs int) []int64 {
	if !pl.keyed {
		return nil
	}
	held := make([]int64, packs)
	for i := range pl.indexes {
		in := &pl.indexes[i]
		if len(in.bytes) != len(in.packs) {
			continue
		}
		for j, pack := range in.packs {
			held[pack] = in.bytes[j]
		}
	}
	return held
}

// chooseRepack decides which packs are emptied: those in which most is unused, until no
// more is unused in the others than the limit allows.
func (pl *plan) chooseRepack(limit Limit, most int64, damaged map[archive.Digest]bool) {
	live := pl.needs.live
	live.end()
	packs := pl.inventory.of(archive.PackPrefix)
	held := pl.heldBytes(len(packs.objects))
	var partly []repackOf
	var total, unused int64
	for i := range packs.objects {
		o := &packs.objects[i]
		use := &live.packs[i]
		if !packs.needed[i] {
			continue
		}
		total += o.size
		if pl.needs.young[i] {
			continue // to empty it frees nothing before the store lets it go
		}
		waste := o.size // if none of it is read
		switch {
		case len(use.offsets) == 0:
		case held != nil:
			waste = held[i] - use.bytes // of what no index lists nothing is known
		default:
			waste -= archive.PackLength(use.bytes, len(use.offsets))
		}
		if waste <= 0 {
			continue
		}
		unused += waste
		if !damaged[o.name] {
			partly = append(partly, repackOf{pack: i, unused: waste})
		}
	}
	slices.SortFunc(partly, func(a, b repackOf) int {
		x, y := float64(a.unused)/float64(packs.objects[a.pack].size), float64(b.unused)/float64(packs.objects[b.pack].size)
		return cmp.Or(cmp.Compare(y, x), cmp.Compare(a.pack, b.pack))
	})
	s := &pl.summary.Repack
	allowed := limit.of(total)
	chunks := 0
	for _, c := range partly {
		use := &live.packs[c.pack]
		if unused <= allowed || chunks+len(use.offsets) > maxMoved && chunks > 0 {
			break
		}
		if s.Moves+use.bytes > most {
			continue
		}
		pl.repack = append(pl.repack, c)
		unused -= c.unused
		chunks += len(use.offsets)
		s.Packs++
		s.Bytes += packs.objects[c.pack].size
		s.Moves += use.bytes
		s.Frees += c.unused
	}
	s.Unused = unused
}

// maxMoved bounds the chunks that are moved in one go, since where each went is kept in
// memory.
const maxMoved = 1 << 20
