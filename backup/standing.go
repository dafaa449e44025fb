// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"cmp"
	"context"
	"fmt"
	"slices"
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

	// Old is the checkpoint as it is on record, whose next revision this is, with its
	// uuid and sequence; nil: it is none. Its disks stay what they are, but for those in
	// Bitmaps.
	Old        *chain.Manifest
	KeepParent bool // it follows what it followed, whatever Parent is
	// Unchanged says that nothing is to be done with it.
	Unchanged bool
	// InPlaceOf is another checkpoint of that name, which goes; nil: none.
	InPlaceOf *chain.Manifest
}

// StandingBitmap is a bitmap of a [Standing] as it is in the image.
type StandingBitmap struct {
	Name        string
	Libvirt     string // the one beside it, for libvirt; empty: none
	Layer       int    // the lowest that has it; 0 is the image itself
	Granularity int64
}

// RecordStanding puts a checkpoint on record, or again, that the request names. find says
// what is known of it, given the domain's manifests, oldest first, and its disks; or
// refuses it. One that is on record already is described anew, if find says so. No image
// is written to.
func RecordStanding(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks, find func(ctx context.Context, history []*chain.Manifest, disks []Seen) (Standing, error)) (*chain.Manifest, error) {
	s, err := newSession(repo, req, hooks, toNothing)
	if err != nil {
		return nil, err
	}
	defer s.close()
	s.replaces = true
	if err := s.hold(ctx); err != nil {
		return nil, err
	}
	found, err := find(ctx, s.history, s.seen())
	if err != nil {
		return nil, err
	}
	if found.Unchanged {
		return found.Old, nil
	}
	m := s.standing(found)
	if found.Old != nil && len(found.Bitmaps) == 0 && s.saysNothingNew(m, found.Old) {
		return found.Old, nil
	}
	err = s.underLease(ctx, "redefinition", false, func(ctx context.Context) error {
		if err := s.storeStanding(ctx, m, found); err != nil {
			return err
		}
		if err := s.compareIdentity(nothingCommitted); err != nil {
			return err
		}
		return s.putStanding(ctx, m, found)
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// onRecord is the domain's checkpoint of a name; nil: there is none that can be read.
func (s *session) onRecord(name string) *chain.Manifest {
	at := slices.IndexFunc(s.history, func(m *chain.Manifest) bool { return m.Checkpoint == name })
	if at < 0 {
		return nil
	}
	return s.history[at]
}

// putStanding makes the checkpoint, or the next revision of the one on record, or puts it
// in the place of another.
func (s *session) putStanding(ctx context.Context, m *chain.Manifest, found Standing) error {
	if found.Old != nil {
		return s.lease.Revise(ctx, m)
	}
	if found.InPlaceOf != nil {
		if err := chain.Delete(ctx, s.lease, found.InPlaceOf); err != nil {
			return err
		}
	}
	return s.lease.Commit(ctx, m)
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
	if found.Old != nil {
		m = s.described(found)
	}
	now := time.Now().UTC().Truncate(time.Second)
	for _, d := range s.disks {
		b, anew := found.Bitmaps[d.req.Disk]
		if !anew {
			continue // as it is on record
		}
		d.granularity = b.Granularity
		rec := s.manifestDisk(d, &DiskPlan{
			Disk: d.req.Disk, Format: d.req.Format, VirtualSize: d.image.Size(), NewBitmap: NewBitmap{AddsBitmap: true},
		})
		rec.Bitmap, rec.LibvirtBitmap = b.Name, b.Libvirt
		if found.Adopted {
			rec.Adopted = &now
		}
		if was, ok := m.Disk(rec.Name); ok {
			*was = rec
		} else {
			m.Disks = append(m.Disks, rec)
		}
	}
	return m
}

// described is the manifest on record with what was found to be otherwise, but for the
// disks.
func (s *session) described(found Standing) *chain.Manifest {
	m := *found.Old
	m.Disks = slices.Clone(m.Disks)
	m.Description, m.Sequence = s.req.Description, found.Sequence
	if m.Kind == chain.KindArchive {
		return &m // the rest is history
	}
	m.Created = found.Created.UTC()
	m.DomainUUID = cmp.Or(s.req.DomainUUID, m.DomainUUID)
	if !found.KeepParent && (m.Parent == nil || found.Parent == nil || m.Parent.UUID != found.Parent.UUID) {
		m.Follow(found.Parent)
	}
	return &m
}

// saysNothingNew reports whether a description is the one on record.
func (s *session) saysNothingNew(m, old *chain.Manifest) bool {
	for _, f := range s.files {
		if m.Kind == chain.KindArchive {
			break // its files are what they were
		}
		was, ok := old.File(f.req.Role)
		if !ok || was.SHA256 != archive.Sum(f.req.Data) || was.Path != f.req.Path {
			return false
		}
	}
	return m.Description == old.Description && m.Created.Equal(old.Created) && m.DomainUUID == old.DomainUUID && sameRef(m.Parent, old.Parent)
}

func sameRef(a, b *chain.CheckpointRef) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// storeStanding stores what there is to be known of a checkpoint whose bitmaps are in the
// images: what they and the others of ours show, where the disks hold data, and the
// domain's definition, if there is one.
func (s *session) storeStanding(ctx context.Context, m *chain.Manifest, found Standing) error {
	o, err := s.req.writer(s.repo)
	if err != nil {
		return err
	}
	w, err := archive.NewWriter(ctx, s.lease.Store(), o)
	if err != nil {
		return err
	}
	defer w.Abort() // does nothing after Finish
	for _, d := range s.disks {
		b, anew := found.Bitmaps[d.req.Disk]
		if !anew {
			continue
		}
		rec, _ := m.Disk(d.req.Disk)
		if err := s.recordStanding(ctx, d, w, m, rec, b.Layer); err != nil {
			return &chain.DiskError{Disk: d.req.Disk, Err: err}
		}
	}
	files, err := s.storeFiles(ctx, w)
	if err != nil {
		return err
	}
	if len(files) > 0 && m.Kind == chain.KindCheckpoint {
		m.Files = files
	}
	_, _, err = w.Finish(ctx)
	return err
}

// testifies reports whether a state's bitmap is recorded beside that of m: not what is on
// record of m itself, which this replaces; and of those that were adopted, of which there
// may be many, only its parent's, which has its own parent's beside it.
func testifies(st chain.DiskState, m *chain.Manifest) bool {
	if st.Manifest.Checkpoint == m.Checkpoint {
		return false
	}
	return st.Disk.Adopted == nil || m.Parent != nil && st.Manifest.UUID == m.Parent.UUID
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
	d.states = slices.DeleteFunc(slices.Clone(d.states), func(st chain.DiskState) bool { return !testifies(st, m) })
	if err := s.recordBitmaps(ctx, d, &DiskPlan{}, w, rec); err != nil {
		return err
	}
	if err := s.linkAdopted(ctx, d, m, rec); err != nil {
		return err
	}
	rec.Held, err = recordHeld(ctx, d, w, rec)
	return err
}
