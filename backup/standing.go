// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"fmt"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
)

// Standing is a checkpoint without data whose bitmaps are in the images already.
type Standing struct {
	UUID     string
	Parent   *chain.Manifest // nil: none
	Sequence int64
	Created  time.Time
	Bitmaps  map[string]StandingBitmap // by disk
	Adopted  bool                      // the bitmaps are another program's
}

// StandingBitmap is a bitmap of a [Standing] as it is in the image.
type StandingBitmap struct {
	Name        string
	Layer       int // the lowest that has it; 0 is the image itself
	Granularity int64
}

// RecordStanding puts a checkpoint on record again that the request names. find says what
// is known of it, given the domain's manifests, oldest first, and its disks; or refuses
// it. No image is written to.
func RecordStanding(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks, find func(history []*chain.Manifest, disks []Seen) (Standing, error)) (*chain.Manifest, error) {
	s, err := newSession(repo, req, hooks, toNothing)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := s.hold(ctx); err != nil {
		return nil, err
	}
	found, err := find(s.history, s.seen())
	if err != nil {
		return nil, err
	}
	m := s.standing(found)
	err = s.underLease(ctx, "redefinition", func(*chain.Lease) error {
		if err := s.storeStanding(ctx, m, found); err != nil {
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

// hold opens the images, which no other run of this program gets at until the end.
func (s *session) hold(ctx context.Context) error {
	for _, step := range []func(context.Context) error{s.settle, s.loadHistory, s.open, s.guard} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	s.rememberIdentity()
	s.recognize()
	return nil
}

// standing describes a checkpoint that was found.
func (s *session) standing(found Standing) *chain.Manifest {
	s.point.uuid, s.point.created = found.UUID, found.Created.UTC()
	m := s.manifest(chain.KindCheckpoint, found.Parent)
	m.Sequence = found.Sequence
	now := time.Now().UTC().Truncate(time.Second)
	for _, d := range s.disks {
		b := found.Bitmaps[d.req.Disk]
		d.granularity = b.Granularity
		rec := s.manifestDisk(d, &DiskPlan{
			Disk: d.req.Disk, Format: d.req.Format, VirtualSize: d.image.Size(), NewBitmap: NewBitmap{AddsBitmap: true},
		})
		rec.Bitmap = b.Name
		if found.Adopted {
			rec.Adopted = &now
		}
		m.Disks = append(m.Disks, rec)
	}
	return m
}

// storeStanding stores what there is to be known of a checkpoint whose bitmaps are in the
// images: what they and the others of ours show, where the disks hold data, and the
// domain's definition, if there is one.
func (s *session) storeStanding(ctx context.Context, m *chain.Manifest, found Standing) error {
	w, err := archive.NewWriter(ctx, s.repo.Store, s.req.writer())
	if err != nil {
		return err
	}
	defer w.Abort() // does nothing after Finish
	for i, d := range s.disks {
		if err := s.recordStanding(ctx, d, w, m, &m.Disks[i], found.Bitmaps[d.req.Disk].Layer); err != nil {
			return &chain.DiskError{Disk: d.req.Disk, Err: err}
		}
	}
	if m.Files, err = s.storeFiles(ctx, w); err != nil {
		return err
	}
	_, _, err = w.Finish(ctx)
	return err
}

// recordStanding records the bitmap itself, which must not lose what it shows, and what
// else can testify later.
func (s *session) recordStanding(ctx context.Context, d *disk, w *archive.Writer, m *chain.Manifest, rec *chain.Disk, at int) error {
	layer := d.image.Layers[at]
	own, err := s.recordBitmap(ctx, w, layer, at, layer.Bitmap(rec.Bitmap))
	if err != nil {
		return err
	}
	if own == nil {
		return fmt.Errorf("bitmap %s of %s cannot be read", rec.Bitmap, layer.Path)
	}
	own.Adopted = (chain.DiskState{Manifest: m, Disk: rec}).AdoptedAs()
	rec.Witnesses = append(rec.Witnesses, *own)
	if err := s.recordBitmaps(ctx, d, &DiskPlan{}, w, rec); err != nil {
		return err
	}
	rec.Held, err = recordHeld(ctx, d, w, rec)
	return err
}
