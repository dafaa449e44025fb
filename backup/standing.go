// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
)

// Standing is a checkpoint without data whose bitmaps are in the images already.
type Standing struct {
	UUID        string
	Parent      *chain.Manifest // nil: none
	Sequence    int64
	Created     time.Time
	Granularity map[string]int64 // of the bitmaps, by disk, bytes
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
	for _, d := range s.disks {
		d.granularity = found.Granularity[d.req.Disk]
		m.Disks = append(m.Disks, s.manifestDisk(d, &DiskPlan{
			Disk: d.req.Disk, Format: d.req.Format, VirtualSize: d.image.Size(), NewBitmap: NewBitmap{AddsBitmap: true},
		}))
	}
	return m
}

// storeDefinition stores the domain's definition, if there is one.
func (s *session) storeDefinition(ctx context.Context) ([]chain.File, error) {
	w, err := archive.NewWriter(ctx, s.repo.Store, s.req.writer())
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
