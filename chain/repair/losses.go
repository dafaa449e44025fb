// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/view"
)

// The part of a plan that is about what checkpoints lose, and what they get back.

// findLost finds out which ranges of which checkpoints need what nobody has.
func (l *planner) findLost(ctx context.Context) error {
	anyLost := len(l.wants.open()) > 0
	for _, m := range l.manifests {
		for i := range m.Disks {
			d := &m.Disks[i]
			id := diskOf{m.Domain, m.Checkpoint, d.Name}
			noMap := slices.ContainsFunc(d.Maps, func(r archive.MapRef) bool { return l.lostMaps[r] })
			named := slices.ContainsFunc(d.Maps, func(r archive.MapRef) bool { return l.maps[r] })
			if noMap {
				l.flat = append(l.flat, id)
			}
			if !noMap && (!named || !anyLost) {
				continue
			}
			set := chain.NewLossSet(d.Size)
			if err := l.loseOf(ctx, d, set); err != nil {
				return err
			}
			if all := set.All(); len(all) > 0 {
				l.lost[id] = set
				l.Lost = append(l.Lost, Lost{id.domain, id.checkpoint, id.disk, all})
			}
		}
	}
	slices.SortFunc(l.Lost, func(a, b Lost) int {
		return cmp.Or(cmp.Compare(a.Domain, b.Domain), cmp.Compare(a.Checkpoint, b.Checkpoint), cmp.Compare(a.Disk, b.Disk))
	})
	return nil
}

// loseOf adds the ranges that a disk loses.
func (l *planner) loseOf(ctx context.Context, d *chain.Disk, set *chain.LossSet) error {
	plain := *d
	plain.Lost = nil // what it had lost before
	layout, err := view.OpenTolerant(ctx, l.plain(), &plain, set.Add)
	if err != nil {
		return err
	}
	for e, err := range layout.Entries(ctx, 0, d.Size) {
		if err != nil {
			return err
		}
		if c := l.wants.of(&e); c != nil && c.found == nil {
			set.Add(chain.Lost{Offset: e.Offset, Length: e.Length, Reason: fmt.Sprintf("a chunk of %s is damaged or missing", archive.PackKey(e.Pack.Name))})
		}
	}
	return nil
}

// findRegained looks for disks that lost something, or would, and are whole, or less damaged,
// in another repository, which may have packed them otherwise.
func (l *planner) findRegained(ctx context.Context) error {
	for _, m := range l.manifests {
		if !slices.ContainsFunc(m.Disks, func(d chain.Disk) bool { return len(l.losesOf(m, &d)) > 0 }) {
			continue
		}
		for _, from := range l.o.From {
			theirs, err := from.Repo.Manifest(ctx, m.Domain, m.Checkpoint)
			if archive.IsDamage(err) || errors.Is(err, chain.ErrNoCheckpoint) {
				continue
			}
			if err != nil {
				return err
			}
			if theirs.UUID != m.UUID {
				continue
			}
			for i := range m.Disks {
				if err := l.regainDisk(ctx, m, &m.Disks[i], theirs, from); err != nil {
					return err
				}
			}
		}
	}
	l.doWithout()
	return nil
}

// losesOf is what a disk has lost, or is about to.
func (l *planner) losesOf(m *chain.Manifest, d *chain.Disk) []chain.Lost {
	if set := l.lost[diskOf{m.Domain, m.Checkpoint, d.Name}]; set != nil {
		return chain.Losses(append(slices.Clone(d.Lost), set.All()...), d.Size)
	}
	return d.Lost
}

func bytesOf(lost []chain.Lost) (sum int64) {
	for _, l := range lost {
		sum += l.Length
	}
	return sum
}

// isLess reports whether lost, both being of one disk and in order, is a part of what more is,
// and not all of it: fewer bytes at other places would be data that is nowhere else.
func isLess(lost, more []chain.Lost) bool {
	for _, l := range lost {
		at := l.Offset
		for _, m := range more {
			if m.Offset <= at {
				at = max(at, m.End())
			}
		}
		if at < l.End() {
			return false
		}
	}
	return bytesOf(lost) < bytesOf(more)
}

// doWithout takes out of the plan what was to be done for disks that get the other
// repository's maps instead.
func (l *planner) doWithout() {
	isRegained := func(id diskOf) bool { _, ok := l.regain[id]; return ok }
	l.flat = slices.DeleteFunc(l.flat, isRegained)
	l.Lost = slices.DeleteFunc(l.Lost, func(x Lost) bool { return isRegained(diskOf{x.Domain, x.Checkpoint, x.Disk}) })
	named := make(map[archive.MapRef]bool)
	for _, m := range l.manifests {
		for i := range m.Disks {
			if id := (diskOf{m.Domain, m.Checkpoint, m.Disks[i].Name}); isRegained(id) {
				delete(l.lost, id)
				continue
			}
			for _, ref := range m.Disks[i].Maps {
				named[ref] = true
			}
		}
	}
	maps.DeleteFunc(l.maps, func(ref archive.MapRef, _ bool) bool { return !named[ref] })
}

func (l *planner) regainDisk(ctx context.Context, m *chain.Manifest, d *chain.Disk, theirs *chain.Manifest, from Source) error {
	id := diskOf{m.Domain, m.Checkpoint, d.Name}
	other, ok := theirs.Disk(d.Name)
	loses := l.losesOf(m, d)
	if _, twice := l.regain[id]; twice || !ok || !isLess(other.Lost, loses) || other.Size != d.Size {
		return nil
	}
	only := *theirs
	only.Disks, only.Files = []chain.Disk{{Name: other.Name, Size: other.Size, Maps: other.Maps}}, nil
	err := l.takeNeeds(ctx, &only, from)
	if archive.IsDamage(err) {
		return nil
	}
	if err != nil {
		return err
	}
	l.regain[id] = regain{from.Repo, other, slices.Clone(d.Maps)}
	l.Regained = append(l.Regained, Regained{id.domain, id.checkpoint, id.disk, from.Name, bytesOf(loses) - other.LostBytes()})
	return nil
}

// planIndexes finds the packs that checkpoints need and that no sound index lists.
func (l *planner) planIndexes(ctx context.Context) error {
	listed := make(map[archive.Ref]bool)
	for info, err := range l.repo.Store.List(ctx, archive.IndexPrefix) {
		if err != nil {
			return err
		}
		if _, _, ok := archive.ParseKey(info.Key); !ok || slices.Contains(l.indexes, info.Key) {
			continue
		}
		note := func(pack archive.Ref, _ []archive.PackChunk) error {
			listed[pack] = true
			return nil
		}
		_, err := archive.ReadIndex(ctx, l.repo.Store, info.Key, archive.Indexing{Seals: l.repo.IndexSeals()}, note)
		if errors.Is(err, archive.ErrOldIndex) { // of use to nobody, and so would another one be
			_, err = archive.ReadIndex(ctx, l.repo.Store, info.Key, archive.Indexing{}, note)
		}
		if err != nil && !archive.IsDamage(err) && !errors.Is(err, objstore.ErrNotFound) {
			return err
		}
	}
	seen := make(map[archive.Ref]bool)
	stay := l.allMaps()
	for _, r := range l.regain {
		for _, ref := range r.disk.Maps {
			stay[ref] = true
		}
	}
	return l.eachMap(ctx, l.overlaid(), stay, func(m *archive.Map) error {
		for _, p := range m.Packs() {
			if !listed[p] && !seen[p] && l.badPacks[p] == nil {
				seen[p] = true
				l.unlisted = append(l.unlisted, p)
				l.Indexed++
			}
		}
		return nil
	})
}
