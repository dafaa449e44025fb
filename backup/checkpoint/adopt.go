// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// Adopt puts a checkpoint on record that another program made, as libvirt does while the
// VM runs: its bitmaps are in the images of the request, under the names that the
// definition gives. Each must be what libvirt itself demands: in the active image or a
// backing file, and from there downwards without a gap, recording, not in use, without
// damage. What is recorded of those that it follows must be in them, too: all that its
// own shows. Its parent, if it has one, must be on record.
//
// Nothing is written into an image. No archive ever builds on such a checkpoint.
func Adopt(ctx context.Context, repo *chain.Repository, req backup.Request, def Definition, hooks backup.Hooks) (*chain.Manifest, error) {
	for _, d := range req.Disks {
		name, ok := def.Bitmaps[d.Disk]
		switch {
		case !ok:
			return nil, wrong(d.Disk, "the definition has no bitmap for it")
		case !chain.ValidBitmapName(name):
			return nil, wrong(d.Disk, "%.80q is no name of a bitmap", name)
		}
	}
	req.Checkpoint, req.Description = def.Name, def.Description
	return backup.RecordStanding(ctx, repo, req, hooks, func(ctx context.Context, history []*chain.Manifest, disks []backup.Seen) (backup.Standing, error) {
		old := named(def.Name, history)
		if old == nil {
			return def.adopt(history, disks)
		}
		return def.adoptAgain(ctx, old, history, disks, hooks.Note)
	})
}

// adoptAgain puts a checkpoint on record anew. What its bitmaps were found to show first is
// the better evidence, and stays as long as they are believed by it. Where it is no longer
// fit to judge them, since images came or went below them, it begins anew. Bitmaps that
// lost what they showed are others of the same name, and another checkpoint's.
func (def *Definition) adoptAgain(ctx context.Context, old *chain.Manifest, history []*chain.Manifest, disks []backup.Seen, note func(string)) (backup.Standing, error) {
	if def.isOurs(old) {
		if note != nil {
			note(fmt.Sprintf("checkpoint %s is our own, which libvirt was told of: nothing is adopted", old.Checkpoint))
		}
		return backup.Standing{Old: old, Unchanged: true}, nil
	}
	if !adopted(old) {
		return backup.Standing{}, &chain.TakenError{Domain: old.Domain, Checkpoint: old.Checkpoint}
	}
	found, err := def.revision(old, history)
	if err != nil {
		return found, err
	}
	found.Adopted = true
	for _, d := range disks {
		another, err := def.adoptDiskAgain(ctx, d, old, history, found, note)
		if err != nil {
			return found, &chain.DiskError{Disk: d.Disk, Err: err}
		}
		if another {
			others := slices.DeleteFunc(slices.Clone(history), func(m *chain.Manifest) bool { return m == old })
			found, err = def.adopt(others, disks)
			found.InPlaceOf = old
			return found, err
		}
	}
	return found, nil
}

// isOurs reports whether a checkpoint of ours is what libvirt was told of: its bitmaps are
// those of the definition.
func (def *Definition) isOurs(m *chain.Manifest) bool {
	for disk, name := range def.Bitmaps {
		d, ok := m.Disk(disk)
		if !ok || d.Adopted != nil || d.LibvirtBitmap != name {
			return false
		}
	}
	return true
}

// adoptDiskAgain leaves what is on record of a disk, or takes its bitmap in anew; another:
// it is not the bitmap that is on record.
func (def *Definition) adoptDiskAgain(ctx context.Context, d backup.Seen, old *chain.Manifest, history []*chain.Manifest, found backup.Standing, note func(string)) (another bool, err error) {
	if hasBitmap(old, d.Disk) {
		why, err := doubt(ctx, d, old)
		if why == nil {
			return false, err
		}
		if another, err := lostWrites(ctx, d, old); another || err != nil {
			return another, err
		}
		if note != nil {
			note(fmt.Sprintf("checkpoint %s, disk %s: what was on record of its bitmap is given up for what it shows now: %v", def.Name, d.Disk, why))
		}
	}
	b, err := def.adoptBitmap(d, history)
	if err == nil {
		err = def.followsAll(d, b, found.Parent, history)
	}
	found.Bitmaps[d.Disk] = b
	return false, err
}

// adopted reports whether the bitmaps of a checkpoint are another program's.
func adopted(m *chain.Manifest) bool {
	return slices.ContainsFunc(m.Disks, func(d chain.Disk) bool { return d.Adopted != nil })
}

// lostWrites reports whether a bitmap no longer shows what it showed when its checkpoint
// was put on record, or whether that can't be read.
func lostWrites(ctx context.Context, d backup.Seen, m *chain.Manifest) (bool, error) {
	rec, ok := d.Judge.States.WithUUID(m.UUID)
	if !ok {
		return true, nil
	}
	own := rec.OwnRecord()
	if own == nil {
		return true, nil
	}
	then, err := d.Judge.Archive.Bitmap(ctx, own)
	if err == nil {
		var now []bitmapstore.Runs
		for i := range d.Judge.Image.Layers {
			if b := d.Judge.Image.Layers[i].Bitmap(own.Name); b != nil && b.Problem == nil && !b.InUse {
				now = append(now, b.Dirty)
			}
		}
		var all bool
		all, err = bitmapstore.Contains(bitmapstore.Union(now...), then)
		if err == nil {
			return !all, nil
		}
	}
	if archive.IsDamage(err) {
		return true, nil
	}
	return false, err
}

// adopt completes the definition by what the repository and the images say.
func (def *Definition) adopt(history []*chain.Manifest, disks []backup.Seen) (backup.Standing, error) {
	found := backup.Standing{
		UUID: chain.NewUUID(), Created: def.Created, Adopted: true, Bitmaps: make(map[string]backup.StandingBitmap),
	}
	var err error
	if found.Parent, err = def.parent(history); err != nil {
		return found, err
	}
	found.Sequence = def.place(found.Parent, history)
	for _, d := range disks {
		b, err := def.adoptBitmap(d, history)
		if err == nil {
			err = def.followsAll(d, b, found.Parent, history)
		}
		if err != nil {
			return found, &chain.DiskError{Disk: d.Disk, Err: err}
		}
		found.Bitmaps[d.Disk] = b
	}
	return found, nil
}

// place is the sequence of a checkpoint that was made outside: behind its parent, and
// behind what had been made by then. What is believed does not depend on it.
func (def *Definition) place(parent *chain.Manifest, history []*chain.Manifest) int64 {
	var before int64
	if parent != nil {
		before = parent.Sequence
	}
	for _, m := range history {
		if !m.Created.After(def.Created) {
			before = max(before, m.Sequence)
		}
	}
	return before + 1
}

// adoptBitmap finds the disk's bitmap where libvirt would have it: in one layer or
// several without a gap. It was made in the lowest.
func (def *Definition) adoptBitmap(d backup.Seen, history []*chain.Manifest) (backup.StandingBitmap, error) {
	b := backup.StandingBitmap{Name: def.Bitmaps[d.Disk]}
	for _, m := range history {
		if i := slices.IndexFunc(m.Disks, func(c chain.Disk) bool { return c.Bitmap == b.Name || c.LibvirtBitmap == b.Name }); i >= 0 && m.Checkpoint != def.Name {
			return b, usage.Errorf("bitmap %s belongs to checkpoint %s, which is on record", b.Name, m.Checkpoint)
		}
	}
	holders, err := d.Judge.Image.Holders(b.Name)
	if err == nil && len(holders) == 0 {
		err = fmt.Errorf("%s holds no bitmap %s", d.Judge.Image.Layers[0].Record.Path, b.Name)
	}
	if err != nil {
		return b, err
	}
	for _, b.Layer = range holders {
		if b.Granularity, err = granularity(d, b.Name, b.Layer); err != nil {
			return b, err
		}
	}
	return b, nil
}

// followsAll sees that the bitmaps of the checkpoints that this one follows show all that
// its own shows, since they have recorded for longer.
func (def *Definition) followsAll(d backup.Seen, b backup.StandingBitmap, parent *chain.Manifest, history []*chain.Manifest) error {
	for m := parent; m != nil; m = parentOf(m, history) {
		if older, ok := m.Disk(d.Disk); ok && older.Bitmap != "" {
			if err := showsAll(&d.Judge.Image.Layers[b.Layer], older.Bitmap, b.Name); err != nil {
				return fmt.Errorf("%w, which follows checkpoint %s", err, m.Checkpoint)
			}
		}
	}
	return nil
}

func parentOf(m *chain.Manifest, history []*chain.Manifest) *chain.Manifest {
	if m.Parent == nil {
		return nil
	}
	at := slices.IndexFunc(history, func(p *chain.Manifest) bool { return p.UUID == m.Parent.UUID && p.Sequence < m.Sequence })
	if at < 0 {
		return nil
	}
	return history[at]
}

// showsAll returns an error unless one bitmap of a layer shows all that another shows. One
// that isn't there, or can't be used, tells nothing.
func showsAll(layer *trust.Layer, older, newer string) error {
	o, n := layer.Bitmap(older), layer.Bitmap(newer)
	if o == nil || n == nil || o.InUse || o.Problem != nil || !o.Enabled {
		return nil
	}
	// In the granule that a disk was once cut in, a coarser bitmap keeps what a finer
	// one lost.
	grain, size := max(o.Granularity, n.Granularity), layer.Size
	if o.Granularity != n.Granularity {
		size -= size % grain
	}
	all, err := bitmapstore.Contains(o.Dirty.Clip(size).Round(grain, size), n.Dirty.Clip(size).Round(grain, size))
	if err != nil {
		return err
	}
	if !all {
		return fmt.Errorf("bitmap %s of %s lacks writes that %s shows: one of them was cleared or recreated, or is no bitmap of the checkpoint %s",
			older, layer.Record.Path, newer, newer)
	}
	return nil
}
