// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Import says that the disks of a request are what somebody else has left, and not a VM's images:
// nothing is written into them, no bitmap in them is asked, and the checkpoint's time is theirs.
type Import struct {
	Made time.Time // when they were made
	Time string    // how that is known: chain.TimeGiven and so on
	From string    // what made them, for people
	// Before is the point that this process imported before it; nil: there is none. What lies under
	// both is not read again.
	Before *Before
}

// chooseImport stores a disk by content, on the newest state that can be read: what bitmaps say
// that others have left is about images that are not at hand.
func (s *archiver) chooseImport(ctx context.Context, d *disk, p *DiskPlan, states chain.States) error {
	const why = "it is imported"
	if len(states) == 0 {
		p.Code, p.Reason = trust.ReasonFirst, why+", and the repository holds no earlier state of this disk"
		return nil
	}
	p.Code = trust.ReasonImported
	if err := s.chooseContent(ctx, d, p, states, trust.Verdict{Code: trust.ReasonImported, Reason: why}); err != nil {
		return err
	}
	return s.chooseAbove(ctx, d, p)
}

// checkNewest returns an error if the domain has got a checkpoint since its history was read, or
// another run is about to make one: what is imported is older, and would come after it, as the
// domain's newest. Of images their locks keep such runs apart; here nothing does.
func (s *archiver) checkNewest(ctx context.Context) error {
	if s.req.Import == nil {
		return nil
	}
	leases, _, err := s.repo.Leases(ctx)
	if err != nil {
		return err
	}
	for _, l := range leases {
		a := l.Announces
		if a == nil || a.Domain != s.req.Domain || l.UUID == s.lease.UUID() || s.self.Fate(l.Process) == chain.FateEnded {
			continue
		}
		switch makes, err := s.makes(ctx, a); {
		case err != nil:
			return err
		case makes:
			return &chain.AtWorkError{Domain: a.Domain, Checkpoint: a.Checkpoint, Lease: l}
		}
	}
	now, _, err := s.repo.Manifests(ctx, s.req.Domain)
	if err != nil {
		return err
	}
	for _, m := range now {
		if !slices.ContainsFunc(s.history, func(h *chain.Manifest) bool { return h.UUID == m.UUID }) {
			return fmt.Errorf("checkpoint %s was made meanwhile, and what is imported would come after it: import it as another domain, or begin again if it is newer", m.Checkpoint)
		}
	}
	if newest := chain.Newest(now); newest != nil && s.point.created.Before(newest.Created.Truncate(time.Second)) {
		return fmt.Errorf("checkpoint %s was made meanwhile, at %s, and what is imported was before it: import it as another domain",
			newest.Checkpoint, newest.Created.UTC().Format(time.RFC3339))
	}
	return nil
}

// makes reports whether what is announced is a new checkpoint, and not the change of one that stands.
func (s *archiver) makes(ctx context.Context, a *chain.Announced) (bool, error) {
	if a.SHA256 == nil {
		return true, nil
	}
	slot, err := s.repo.Slot(ctx, a.Domain, a.Checkpoint)
	if chain.Unusable(err) {
		return false, nil // it stands, and is damaged
	}
	if err != nil {
		return false, err
	}
	is := slot.Digest() // of the void that a new one is to replace; else it was forgotten, or made, and is listed then
	return slot.Manifest == nil && is != nil && *is == *a.SHA256, nil
}

// imported is what the manifest says of an import; nil: it is none. The images are open, and
// their identity is compared before the commit.
func (s *session) imported() *chain.Imported {
	im := s.req.Import
	if im == nil {
		return nil
	}
	rec := &chain.Imported{At: time.Now().UTC().Truncate(time.Second), From: im.From, Time: im.Time}
	for _, d := range s.disks {
		rec.Files = append(rec.Files, ImportedFiles(d.req.Disk, d.image)...)
	}
	return rec
}

// ImportedFiles are the files that a disk's image is made of, which is open.
func ImportedFiles(disk string, image *qcow2.Image) []chain.ImportedFile {
	var all []chain.ImportedFile
	for _, l := range image.Layers {
		for _, f := range l.Files() {
			id := f.Opened()
			all = append(all, chain.ImportedFile{Disk: disk, Path: f.Path(), Size: id.Size, Mtime: id.MtimeNs})
		}
	}
	return all
}
