// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// Definition is what is known of a checkpoint whose definition was lost.
type Definition struct {
	Name        string
	Description string
	Created     time.Time
	Parent      string // name; empty: none
	// Bitmaps are the names in the images, by disk.
	Bitmaps map[string]string
}

// Redefine puts a checkpoint's definition back that was removed while its
// bitmaps stayed in the images of the request. Each must be there, sound, in
// the active layer, and be named after the checkpoint. What the first
// definition recorded beside is lost, so less can contradict these bitmaps
// later.
//
// A checkpoint of that name and with these bitmaps that is on record is described
// anew, if its bitmaps are believed: with another description, time or parent, and
// with disks that it lacked. What it has on record stays.
func Redefine(ctx context.Context, repo *chain.Repository, req backup.Request, def Definition, hooks backup.Hooks) (*chain.Manifest, error) {
	half, err := def.halfUUID(req.Disks)
	if err != nil {
		return nil, err
	}
	req.Checkpoint, req.Description = def.Name, def.Description
	return backup.RecordStanding(ctx, repo, req, hooks, func(ctx context.Context, history []*chain.Manifest, disks []backup.Seen) (backup.Standing, error) {
		if half == "" { // libvirt's names alone do not tell
			if half, err = def.halfBeside(disks); err != nil {
				return backup.Standing{}, err
			}
		}
		if old := named(def.Name, history); old != nil {
			return def.again(ctx, old, half, history, disks)
		}
		return def.find(half, history, disks)
	})
}

// halfUUID returns the half of the checkpoint's uuid that is in the names of its bitmaps;
// nothing, if all have the name by which libvirt knows the checkpoint.
func (def *Definition) halfUUID(disks []backup.DiskRequest) (string, error) {
	half := ""
	for _, d := range disks {
		name, ok := def.Bitmaps[d.Disk]
		if !ok {
			return "", wrong(d.Disk, "the definition has no bitmap for it")
		}
		if name == def.Name {
			continue
		}
		rest, ok := strings.CutPrefix(name, def.Name+".")
		if !ok || !isHalf(rest) {
			return "", wrong(d.Disk, "bitmap %s is none that imgbackup made for checkpoint %s: it would be named %s.<16 hexadecimal digits> (--adopt takes another program's)", name, def.Name, def.Name)
		}
		if half != "" && rest != half {
			return "", wrong(d.Disk, "bitmap %s belongs to another checkpoint than those of the other disks", name)
		}
		half = rest
	}
	return half, nil
}

func isHalf(s string) bool { return len(s) == 16 && strings.Trim(s, "0123456789abcdef") == "" }

// ours is the name of the checkpoint's own bitmap in a disk, and libvirt that of the one
// beside it, if the definition names that.
func (def *Definition) ours(disk, half string) (ours, libvirt string) {
	if def.Bitmaps[disk] == def.Name {
		libvirt = def.Name
	}
	return def.Name + "." + half, libvirt
}

func wrong(disk, format string, args ...any) error {
	return usage.Wrap(&chain.DiskError{Disk: disk, Err: fmt.Errorf(format, args...)})
}

// find completes the definition by what the repository and the images say.
func (def *Definition) find(half string, history []*chain.Manifest, disks []backup.Seen) (backup.Standing, error) {
	found := backup.Standing{Created: def.Created, Bitmaps: make(map[string]backup.StandingBitmap)}
	var err error
	if found.UUID, err = def.uuid(half, history); err != nil {
		return found, err
	}
	if found.Parent, err = def.parent(history); err != nil {
		return found, err
	}
	found.Sequence = sequenceOf(found.UUID, found.Parent, history)
	for _, d := range disks {
		var b backup.StandingBitmap
		b.Name, b.Libvirt = def.ours(d.Disk, half)
		if b.Granularity, err = granularity(d, b.Name, 0); err != nil {
			return found, &chain.DiskError{Disk: d.Disk, Err: err}
		}
		found.Bitmaps[d.Disk] = b
	}
	return found, nil
}

// uuid is the one that the checkpoint had. Those that follow it tell all of it.
func (def *Definition) uuid(half string, history []*chain.Manifest) (string, error) {
	for _, m := range history {
		refs := m.Ancestors
		if m.Parent != nil {
			refs = append([]chain.CheckpointRef{*m.Parent}, refs...)
		}
		for _, ref := range refs {
			if chain.BitmapName(ref.Name, ref.UUID) == def.Name+"."+half {
				return ref.UUID, nil
			}
		}
	}
	return chain.UUIDWithPrefix(half)
}

func (def *Definition) parent(history []*chain.Manifest) (*chain.Manifest, error) {
	switch def.Parent {
	case "":
		return nil, nil
	case def.Name:
		return nil, usage.Errorf("checkpoint %s cannot be its own parent", def.Name)
	}
	if m := named(def.Parent, history); m != nil {
		return m, nil
	}
	return nil, usage.Errorf("the parent %s of checkpoint %s is not in the repository", def.Parent, def.Name)
}

// sequenceOf places a checkpoint that comes back behind its parent and before
// those that follow it.
func sequenceOf(uuid string, parent *chain.Manifest, history []*chain.Manifest) int64 {
	for _, m := range history {
		if m.Parent != nil && m.Parent.UUID == uuid {
			return max(1, m.Sequence-1)
		}
	}
	if parent == nil {
		return 1
	}
	return parent.Sequence + 1
}

// granularity is that of the checkpoint's bitmap in a layer of a disk's image, bytes,
// which must be fit to be used.
func granularity(d backup.Seen, name string, layer int) (int64, error) {
	if o := d.Judge.Image.Objection(); o != nil {
		return 0, errors.New(o.Reason)
	}
	at := &d.Judge.Image.Layers[layer]
	path := at.Record.Path
	b := at.Bitmap(name)
	switch {
	case at.BitmapsErr != nil:
		return 0, fmt.Errorf("no bitmap of %s can be used: %w", path, at.BitmapsErr)
	case b == nil:
		return 0, fmt.Errorf("%s holds no bitmap %s", path, name)
	case b.InUse:
		return 0, fmt.Errorf("bitmap %s of %s was left in use", name, path)
	case b.Problem != nil:
		return 0, fmt.Errorf("bitmap %s of %s is broken: %w", name, path, b.Problem)
	case !b.Enabled:
		return 0, fmt.Errorf("bitmap %s of %s is disabled, so it does not record", name, path)
	}
	if _, err := b.Dirty.Bytes(); err != nil {
		return 0, fmt.Errorf("bitmap %s of %s cannot be read: %w", name, path, err)
	}
	return b.Granularity, nil
}
