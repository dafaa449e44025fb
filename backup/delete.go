// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
)

// DeleteRequest says which checkpoints of a domain go.
type DeleteRequest struct {
	Domain      string
	Checkpoints []*chain.Manifest // any order
	// Paths of images, by disk, that are no longer where the checkpoints found
	// them.
	Paths map[string]string
	// MetadataOnly leaves the images alone.
	MetadataOnly bool
}

// Deleted says what became of one checkpoint.
type Deleted struct {
	Checkpoint chain.CheckpointRef
	Bitmaps    []string // images whose bitmap was removed
	Absent     []string // images that held none
	Kept       bool     // its archive stays
}

// doomedBitmap is one image that a checkpoint's bitmap is to be taken out of.
type doomedBitmap struct {
	target, path, name string
}

// DeleteCheckpoints removes checkpoints: their bitmaps from the images, and
// then their definitions. Every other bitmap records all writes since it was
// made by itself, so that none is lost. The archive of a checkpoint that has
// data stays.
//
// The images are looked at before anything is removed. A run that ends early can
// be repeated: a definition goes last.
func DeleteCheckpoints(ctx context.Context, repo *chain.Repository, req DeleteRequest, hooks Hooks) ([]Deleted, error) {
	if err := repo.CheckWritable(); err != nil {
		return nil, err
	}
	guards := make(map[string]*qcow2.ImageFlock)
	defer func() {
		for _, g := range guards {
			_ = g.Close() // opened for reading only
		}
	}()
	doomed := make([][]doomedBitmap, len(req.Checkpoints))
	for i, m := range req.Checkpoints {
		if req.MetadataOnly {
			if m.Kind != chain.KindCheckpoint {
				return nil, usage.Errorf("checkpoint %s is an archive, of which no definition can go without its data", m.Checkpoint)
			}
			continue
		}
		doomed[i] = bitmapsOf(m, req.Paths)
		if host, _ := chain.CurrentHost(); !sameHost(host, m.Host) {
			for _, b := range doomed[i] {
				if _, here := req.Paths[b.target]; !here {
					return nil, fmt.Errorf("checkpoint %s was made on host %s, and its bitmaps are there: --disk %s=PATH,format=qcow2 says where the image is here, --metadata removes the definition alone",
						m.Checkpoint, m.Host.Name, b.target)
				}
			}
		}
		for _, b := range doomed[i] {
			if err := lookAt(ctx, guards, b); err != nil {
				return nil, fmt.Errorf("checkpoint %s, disk %s: %w", m.Checkpoint, b.target, err)
			}
		}
	}
	var all []Deleted
	for i, m := range req.Checkpoints {
		done := Deleted{Checkpoint: *m.Ref(), Kept: m.Kind != chain.KindCheckpoint}
		for _, b := range doomed[i] {
			if err := ctx.Err(); err != nil {
				return all, err
			}
			removed, err := removeIfThere(ctx, guards[b.path], b.path, b.name)
			switch {
			case err != nil:
				return all, fmt.Errorf("checkpoint %s, disk %s: %w", m.Checkpoint, b.target, err)
			case removed:
				done.Bitmaps = append(done.Bitmaps, b.path)
			default:
				done.Absent = append(done.Absent, b.path)
				hooks.note("checkpoint %s, disk %s: %s holds no bitmap %s", m.Checkpoint, b.target, b.path, b.name)
			}
		}
		if !done.Kept {
			if err := repo.DeleteCheckpoint(ctx, m); err != nil {
				return all, err
			}
		}
		all = append(all, done)
	}
	return all, nil
}

// bitmapsOf lists the bitmaps of a checkpoint and where they are.
func bitmapsOf(m *chain.Manifest, paths map[string]string) []doomedBitmap {
	var all []doomedBitmap
	for i := range m.Disks {
		d := &m.Disks[i]
		if d.Bitmap == "" {
			continue
		}
		path := d.Source.Path
		if p, ok := paths[d.Name]; ok {
			path = resolved(p)
		}
		all = append(all, doomedBitmap{d.Name, path, d.Bitmap})
	}
	return all
}

// lookAt takes an image's flock, once, and sees that no VM has it.
func lookAt(ctx context.Context, guards map[string]*qcow2.ImageFlock, b doomedBitmap) error {
	if guards[b.path] != nil {
		return nil
	}
	g, err := qcow2.FlockImage(ctx, b.path, flockWait)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w; --disk %s=PATH says where it is now, --metadata removes the definition alone", err, b.target)
	}
	if err != nil {
		return err
	}
	guards[b.path] = g
	if err := qcow2.ProbeWriter(b.path); err != nil {
		return err
	}
	err = qcow2.WithTopLayer(b.path, func(*qcow2.Layer) error { return nil })
	if err != nil {
		return fmt.Errorf("%w; --metadata removes the checkpoint's definition alone", err)
	}
	return nil
}
