// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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

// findRegained looks for checkpoints that lost something and are whole, or less damaged, in
// another repository.
func (l *planner) findRegained(ctx context.Context) error {
	for _, m := range l.manifests {
		if m.LostBytes() == 0 {
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
	return nil
}

func (l *planner) regainDisk(ctx context.Context, m *chain.Manifest, d *chain.Disk, theirs *chain.Manifest, from Source) error {
	id := diskOf{m.Domain, m.Checkpoint, d.Name}
	other, ok := theirs.Disk(d.Name)
	if _, twice := l.regain[id]; twice || !ok || len(d.Lost) == 0 || other.LostBytes() >= d.LostBytes() || other.Size != d.Size {
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
	l.regain[id] = regain{from.Repo, other}
	l.Regained = append(l.Regained, Regained{id.domain, id.checkpoint, id.disk, from.Name, d.LostBytes() - other.LostBytes()})
	return nil
}

// planIndexes finds the packs that checkpoints need and that no sound index lists.
func (l *planner) planIndexes(ctx context.Context) error {
	damaged := make(map[archive.Digest]bool)
	for _, ref := range l.indexes {
		damaged[ref.Name] = true
	}
	listed := make(map[archive.Ref]bool)
	for info, err := range l.repo.Store.List(ctx, archive.IndexPrefix) {
		if err != nil {
			return err
		}
		_, name, ok := archive.ParseKey(info.Key)
		if !ok || damaged[name] {
			continue
		}
		_, err := archive.ReadIndex(ctx, l.repo.Store, archive.Ref{Name: name, Length: info.Size}, func(pack archive.Ref, _ []archive.PackChunk) error {
			listed[pack] = true
			return nil
		})
		if err != nil && !archive.IsDamage(err) && !errors.Is(err, objstore.ErrNotFound) {
			return err
		}
	}
	seen := make(map[archive.Ref]bool)
	return l.eachMap(ctx, l.over, l.allMaps(), func(m *archive.Map) error {
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
