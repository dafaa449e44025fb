// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// named is the checkpoint of a name; nil: there is none.
func named(name string, history []*chain.Manifest) *chain.Manifest {
	at := slices.IndexFunc(history, func(m *chain.Manifest) bool { return m.Checkpoint == name })
	if at < 0 {
		return nil
	}
	return history[at]
}

// again describes a checkpoint of ours anew that is on record.
func (def *Definition) again(ctx context.Context, old *chain.Manifest, half string, history []*chain.Manifest, disks []backup.Seen) (backup.Standing, error) {
	if chain.BitmapName(old.Checkpoint, old.UUID) != def.Name+"."+half {
		return backup.Standing{}, &chain.TakenError{Domain: old.Domain, Checkpoint: old.Checkpoint}
	}
	found, err := def.revision(old, history)
	if err != nil {
		return found, err
	}
	for _, d := range disks {
		if err := def.diskAgain(ctx, d, old, half, found); err != nil {
			return found, &chain.DiskError{Disk: d.Disk, Err: err}
		}
	}
	return found, nil
}

// diskAgain sees that the image agrees, and takes in a disk that the checkpoint lacked.
func (def *Definition) diskAgain(ctx context.Context, d backup.Seen, old *chain.Manifest, half string, found backup.Standing) (err error) {
	var b backup.StandingBitmap
	b.Name, b.Libvirt = def.ours(d.Disk, half)
	if b.Granularity, err = granularity(d, b.Name, 0); err != nil {
		return err
	}
	if !hasBitmap(old, d.Disk) {
		if old.Kind == chain.KindArchive {
			return usage.Errorf("checkpoint %s is an archive, which has no bitmap of this disk", old.Checkpoint)
		}
		found.Bitmaps[d.Disk] = b
		return nil
	}
	why, err := doubt(ctx, d, old)
	return errors.Join(why, err)
}

// revision is the next one of a checkpoint on record. What its archive is made of, and
// where it stands among the others, does not change.
func (def *Definition) revision(old *chain.Manifest, history []*chain.Manifest) (backup.Standing, error) {
	found := backup.Standing{
		UUID: old.UUID, Sequence: old.Sequence, Created: def.Created, Old: old, Bitmaps: make(map[string]backup.StandingBitmap),
	}
	var err error
	if found.Parent, err = def.parent(history); err != nil {
		return found, err
	}
	if p := found.Parent; def.forLibvirt() && follows(old, p) {
		found.KeepParent = true // the definition names the nearest that libvirt can have
	}
	if p := found.Parent; p != nil && p.Sequence >= old.Sequence {
		if !adopted(old) {
			return found, usage.Errorf("checkpoint %s cannot follow %s, which was made after it", old.Checkpoint, p.Checkpoint)
		}
		found.Sequence = p.Sequence + 1 // it was put on record without that
	}
	for i := range old.Disks {
		d := &old.Disks[i]
		if _, has := def.Bitmaps[d.Name]; d.Bitmap != "" && !has {
			return found, usage.Errorf("checkpoint %s has a bitmap in disk %s, which the definition leaves out: checkpoint delete removes it first", old.Checkpoint, d.Name)
		}
	}
	if old.Kind == chain.KindArchive {
		return found, def.sameArchive(old, found)
	}
	return found, nil
}

// sameArchive returns an error unless the definition is that of an archive, but for its
// description: the rest is history.
func (def *Definition) sameArchive(old *chain.Manifest, found backup.Standing) error {
	parent, follows := found.Parent, ""
	if parent != nil {
		follows = parent.UUID
	}
	switch {
	case def.Created.Unix() != old.Created.Unix():
		return usage.Errorf("checkpoint %s is an archive, made at %s: only its description can be another", old.Checkpoint, old.Created)
	case found.KeepParent:
	case old.Parent != nil && follows != old.Parent.UUID && !slices.ContainsFunc(old.Ancestors, func(a chain.CheckpointRef) bool { return a.UUID == follows }),
		old.Parent == nil && parent != nil:
		return usage.Errorf("checkpoint %s is an archive, and follows another: only its description can be another", old.Checkpoint)
	}
	return nil
}

// forLibvirt reports whether the definition names the bitmaps that libvirt knows.
func (def *Definition) forLibvirt() bool {
	for _, name := range def.Bitmaps {
		if name == def.Name {
			return true
		}
	}
	return false
}

// follows reports whether a checkpoint on record follows another, but not directly, or
// whether no other (nil) is said to be followed, and it does follow one that stands.
func follows(m, p *chain.Manifest) bool {
	if m.Parent == nil {
		return false
	}
	return p == nil || slices.ContainsFunc(m.Ancestors, func(a chain.CheckpointRef) bool { return a.UUID == p.UUID })
}

func hasBitmap(m *chain.Manifest, disk string) bool {
	d, ok := m.Disk(disk)
	return ok && d.Bitmap != ""
}

// doubt is why the bitmap of a checkpoint on record is not believed; nil: it stands every
// check. err is a failure to find out.
func doubt(ctx context.Context, d backup.Seen, m *chain.Manifest) (why, err error) {
	st, ok := d.Judge.States.WithUUID(m.UUID)
	if !ok {
		return fmt.Errorf("the image is that of another disk than checkpoint %s has", m.Checkpoint), nil
	}
	_, o, err := d.Judge.Since(ctx, st)
	switch {
	case archive.IsDamage(err):
		return fmt.Errorf("what checkpoint %s has on record is damaged: %w", m.Checkpoint, err), nil
	case err != nil || o == nil:
		return nil, err
	}
	return errors.New(o.Reason), nil
}
