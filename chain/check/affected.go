// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/view"
)

// The part of a check that says what damage means: which disks of which
// checkpoints can't be restored, and which of their bytes.

// maxReplays bounds how many disks of checkpoints are replayed to find out
// what a damaged pack means for them.
const maxReplays = 1024

func (c *check) findAffected(ctx context.Context) error {
	if len(c.report.Findings) == 0 {
		return nil
	}
	byKey := make(map[string]*Finding, len(c.report.Findings))
	packs := false
	for i := range c.report.Findings {
		f := &c.report.Findings[i]
		byKey[f.Object] = f
		packs = packs || f.Kind == KindPack
		if k := chain.ParseKey(f.Object); k.Kind == chain.KeyManifest {
			f.add(Affected{Domain: k.Domain, Checkpoint: k.Name}, "checkpoint "+k.Domain+"/"+k.Name)
		}
	}
	for ref, use := range c.maps {
		if f := byKey[archive.MapKey(ref.Name)]; f != nil {
			for _, by := range use.by {
				d := c.disks[by.disk]
				f.add(d.affected(Range{Length: d.size}), d.String())
			}
		}
	}
	for b, use := range c.bitmaps {
		if f := byKey[archive.BitmapKey(b.object.Name)]; f != nil {
			for _, by := range use.by {
				d := c.disks[by.disk]
				f.add(d.affected(), "bitmap "+b.header.Name+" of "+d.String()+" (its data is not)")
			}
		}
	}
	for p, use := range c.clusters {
		if f := byKey[archive.ClustersKey(p.Object.Name)]; f != nil {
			for _, by := range use.by {
				d := c.disks[by.disk]
				f.add(d.affected(), "the cluster map of "+d.String()+" (its data is not)")
			}
		}
	}
	for ref, use := range c.files {
		if f := byKey[archive.FileKey(ref.Object.Name)]; f != nil {
			for _, by := range use.by {
				d := c.disks[by.disk]
				f.add(Affected{Domain: d.domain, Checkpoint: d.checkpoint, File: d.disk},
					"the "+d.disk+" of "+d.domain+"/"+d.checkpoint+" (its disks are not)")
			}
		}
	}
	if packs {
		if err := c.findAffectedByPacks(ctx, byKey); err != nil {
			return err
		}
	}
	for _, f := range byKey {
		slices.Sort(f.Affects)
		f.Affects = slices.Compact(f.Affects)
		if f.More > 0 {
			f.Affects = append(f.Affects, fmt.Sprintf("and up to %d more", f.More))
		}
	}
	return nil
}

func (d diskID) affected(ranges ...Range) Affected {
	a := Affected{Domain: d.domain, Checkpoint: d.checkpoint, Disk: d.disk}
	for _, r := range ranges {
		if r.Length > 0 {
			a.Ranges = append(a.Ranges, r)
			a.Bytes += r.Length
		}
	}
	return a
}

func (f *Finding) add(a Affected, words string) {
	if len(f.Details) >= maxAffected {
		f.More++
		return
	}
	f.Details = append(f.Details, a)
	f.Affects = append(f.Affects, words)
}

// findAffectedByPacks replays every disk that has a map which names a damaged
// pack, and tries each of the frames that it needs of it.
func (c *check) findAffectedByPacks(ctx context.Context, byKey map[string]*Finding) error {
	disks := make(map[int32]struct{})
	for ref, use := range c.maps {
		if c.damagedKey(archive.MapKey(ref.Name)) {
			continue
		}
		m, err := archive.OpenMap(ctx, c.repo.Store, ref, 0)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(m.Packs(), func(p archive.Ref) bool { return byKey[archive.PackKey(p.Name)] != nil }) {
			for _, by := range use.by {
				disks[by.disk] = struct{}{}
			}
		}
	}
	t := &trial{
		byKey:  byKey,
		prover: archive.NewProver(c.repo.Store),
		lost:   make(map[frameID]bool),
	}
	ids := make([]int32, 0, len(disks))
	for id := range disks {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for n, id := range ids {
		c.progress("what is affected", int64(n), int64(len(ids)))
		if n >= maxReplays {
			c.note("%d more disks of checkpoints have maps that name damaged packs;"+
				" whether they are affected was not looked at", len(ids)-n)
			for _, f := range byKey {
				if f.Kind == KindPack {
					f.More += len(ids) - n
				}
			}
			break
		}
		if err := c.replayDamaged(ctx, c.disks[id], t); err != nil {
			return err
		}
	}
	return nil
}

// trial tries the frames of damaged packs, each one once.
type trial struct {
	byKey  map[string]*Finding
	prover *archive.Prover
	lost   map[frameID]bool
}

type frameID struct {
	pack   archive.Digest
	offset int64
	length int32
	chunk  archive.Digest
}

func (t *trial) isLost(ctx context.Context, e archive.Entry) (bool, error) {
	id := frameID{pack: e.Pack.Name, offset: e.FrameOffset, length: e.FrameLength, chunk: e.Chunk}
	lost, known := t.lost[id]
	if known {
		return lost, nil
	}
	err := t.prover.Prove(ctx, e)
	if err != nil && !archive.IsDamage(err) {
		return false, err
	}
	t.lost[id] = err != nil
	return err != nil, nil
}

// replayDamaged adds one disk of one checkpoint to the findings about the packs
// that it can't do without.
func (c *check) replayDamaged(ctx context.Context, d diskID, t *trial) error {
	m, err := c.repo.Manifest(ctx, d.domain, d.checkpoint)
	if errors.Is(err, chain.ErrNoCheckpoint) || archive.IsDamage(err) {
		return nil // gone, or reported already
	}
	if err != nil {
		return err
	}
	disk, ok := m.Disk(d.disk)
	if !ok {
		return nil // its manifest has been replaced
	}
	layout, err := view.OpenLayout(ctx, c.repo, disk)
	if archive.IsDamage(err) {
		return nil // all of it is lost, and that is reported already
	}
	if err != nil {
		return err
	}
	hit := make(map[string]*Affected)
	for e, err := range layout.Entries(ctx, 0, disk.Size) {
		if archive.IsDamage(err) {
			break
		}
		if err != nil {
			return err
		}
		key := archive.PackKey(e.Pack.Name)
		if e.Zero || t.byKey[key] == nil {
			continue
		}
		lost, err := t.isLost(ctx, e)
		if err != nil {
			return err
		}
		if !lost {
			continue
		}
		if hit[key] == nil {
			a := d.affected()
			hit[key] = &a
		}
		hit[key].addRange(Range{Offset: e.Offset, Length: e.Length})
	}
	for key, a := range hit {
		t.byKey[key].add(*a, d.String()+a.words())
	}
	return nil
}

// addRange adds a range that lies behind the ones before.
func (a *Affected) addRange(r Range) {
	a.Bytes += r.Length
	if n := len(a.Ranges); n > 0 && a.Ranges[n-1].Offset+a.Ranges[n-1].Length == r.Offset && a.MoreRanges == 0 {
		a.Ranges[n-1].Length += r.Length
		return
	}
	if len(a.Ranges) >= maxRanges {
		a.MoreRanges++
		return
	}
	a.Ranges = append(a.Ranges, r)
}

func (a *Affected) words() string {
	s := fmt.Sprintf(" (%d bytes", a.Bytes)
	for i, r := range a.Ranges {
		if i == 3 {
			s += ", …"
			break
		}
		s += fmt.Sprintf(", at %d+%d", r.Offset, r.Length)
	}
	return s + ")"
}
