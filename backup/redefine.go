// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup/trust"
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
func Redefine(ctx context.Context, repo *chain.Repository, req Request, def Definition, hooks Hooks) (*chain.Manifest, error) {
	req.Checkpoint, req.Description = def.Name, def.Description
	s, err := newSession(repo, req, hooks, toNothing)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := s.settle(ctx); err != nil {
		return nil, err
	}
	if err := s.loadHistory(ctx); err != nil {
		return nil, err
	}
	parent, err := s.adoptIdentity(def)
	if err != nil {
		return nil, err
	}
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	if err := s.guard(ctx); err != nil {
		return nil, err
	}
	s.rememberIdentity()
	plan := &Plan{Domain: req.Domain, Checkpoint: def.Name, parent: parent}
	for _, d := range s.disks {
		if err := s.checkDefined(d, def.Bitmaps[d.req.Disk]); err != nil {
			return nil, &chain.DiskError{Disk: d.req.Disk, Err: err}
		}
		plan.Disks = append(plan.Disks, &DiskPlan{
			Disk: d.req.Disk, Path: d.req.Path, Format: d.req.Format, VirtualSize: d.image.Size(), AddsBitmap: true,
		})
	}
	m := s.manifest(chain.KindCheckpoint, plan)
	m.Created, m.Sequence = def.Created.UTC(), s.sequenceOf(parent)
	for i, d := range s.disks {
		m.Disks = append(m.Disks, s.manifestDisk(d, plan.Disks[i]))
	}
	err = s.underLease(ctx, "redefinition", func(*chain.Lease) error {
		if m.Files, err = s.storeDefinition(ctx); err != nil {
			return err
		}
		if err := s.compareIdentity(nothingCommitted); err != nil {
			return err
		}
		return repo.Commit(ctx, m)
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// storeDefinition stores the domain's definition, if there is one.
func (s *session) storeDefinition(ctx context.Context) ([]chain.File, error) {
	w, err := archive.NewWriter(ctx, s.repo.Store, archive.WriterOptions{Level: s.req.Level, TempDir: s.req.TempDir})
	if err != nil {
		return nil, err
	}
	defer w.Abort() // does nothing after Finish
	files, err := s.storeFiles(ctx, w)
	if err == nil {
		_, _, err = w.Finish(ctx)
	}
	return files, err
}

// adoptIdentity finds the uuid that the checkpoint had, of which its bitmaps'
// names hold half, and its parent.
func (s *session) adoptIdentity(def Definition) (parent *chain.Manifest, err error) {
	wrong := func(format string, args ...any) (*chain.Manifest, error) {
		return nil, usage.Errorf(format, args...)
	}
	half := ""
	for _, d := range s.disks {
		name, ok := def.Bitmaps[d.req.Disk]
		if !ok {
			return wrong("disk %s: the definition has no bitmap for it", d.req.Disk)
		}
		rest, ok := strings.CutPrefix(name, def.Name+".")
		if !ok || len(rest) != 16 || strings.Trim(rest, "0123456789abcdef") != "" {
			return wrong("disk %s: bitmap %s is none that imgbackup made for checkpoint %s: it would be named %s.<16 hexadecimal digits>", d.req.Disk, name, def.Name, def.Name)
		}
		if half != "" && rest != half {
			return wrong("disk %s: bitmap %s belongs to another checkpoint than those of the other disks", d.req.Disk, name)
		}
		half = rest
	}
	if s.point.uuid, err = chain.UUIDWithPrefix(half); err != nil {
		return nil, err
	}
	// Those that follow it tell all of it.
	for _, m := range s.history {
		refs := m.Ancestors
		if m.Parent != nil {
			refs = append([]chain.CheckpointRef{*m.Parent}, refs...)
		}
		for _, ref := range refs {
			if chain.BitmapName(ref.Name, ref.UUID) == chain.BitmapName(def.Name, s.point.uuid) {
				s.point.uuid = ref.UUID
			}
		}
	}
	if def.Parent == "" {
		return nil, nil
	}
	if def.Parent == def.Name {
		return wrong("checkpoint %s cannot be its own parent", def.Name)
	}
	for _, m := range s.history {
		if m.Checkpoint == def.Parent {
			return m, nil
		}
	}
	return wrong("the parent %s of checkpoint %s is not in the repository", def.Parent, def.Name)
}

// sequenceOf places a checkpoint that comes back behind its parent and before
// those that follow it.
func (s *session) sequenceOf(parent *chain.Manifest) int64 {
	for _, m := range s.history {
		if m.Parent != nil && m.Parent.UUID == s.point.uuid {
			return max(1, m.Sequence-1)
		}
	}
	if parent == nil {
		return 1
	}
	return parent.Sequence + 1
}

// checkDefined looks whether an image holds the bitmap of a checkpoint, fit to
// be used.
func (s *session) checkDefined(d *disk, name string) error {
	if o := trust.Look(d.image).Objection(); o != nil {
		return errors.New(o.Reason)
	}
	active := d.image.Layers[0]
	b := active.Bitmap(name)
	switch {
	case b == nil:
		return fmt.Errorf("%s holds no bitmap %s", active.Path, name)
	case b.InUse:
		return fmt.Errorf("bitmap %s of %s was left in use", name, active.Path)
	case b.Problem != nil:
		return fmt.Errorf("bitmap %s of %s is broken: %w", name, active.Path, b.Problem)
	case !b.Enabled:
		return fmt.Errorf("bitmap %s of %s is disabled, so it does not record", name, active.Path)
	}
	if _, err := b.DirtyBytes(); err != nil {
		return fmt.Errorf("bitmap %s of %s cannot be read: %w", name, active.Path, err)
	}
	d.granularity = b.Granularity
	return nil
}
