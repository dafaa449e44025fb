// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"fmt"

	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qemu"
)

// manifest fills in all that is known before the data is read.
func (s *session) manifest(plan *Plan) *chain.Manifest {
	locking := chain.LockingQEMU
	if s.req.NoLock {
		locking = chain.LockingNone
	}
	m := &chain.Manifest{
		Kind: s.kind, Domain: s.req.Domain, DomainUUID: s.domainUUID(), Host: s.self.Host,
		Checkpoint: s.checkpoint, UUID: s.uuid, Sequence: chain.NextSequence(s.history),
		Created: s.started, Description: s.req.Description, Tool: s.req.Tool,
		Locking: locking, LeftOut: s.req.LeftOut,
	}
	m.Follow(plan.parent)
	if s.kind == chain.KindArchive {
		m.Requested = string(s.req.Mode)
	}
	for i, p := range plan.Disks {
		if s.kind == chain.KindArchive || p.AddsBitmap {
			m.Disks = append(m.Disks, s.manifestDisk(s.disks[i], p))
		}
	}
	return m
}

// domainUUID is the domain's own, or the one that it had when last backed up.
func (s *session) domainUUID() string {
	if s.req.DomainUUID != "" {
		return s.req.DomainUUID
	}
	if last := chain.Newest(s.history); last != nil {
		return last.DomainUUID
	}
	return ""
}

func (s *session) manifestDisk(d *disk, p *DiskPlan) chain.Disk {
	active := d.image.Layers[0]
	rec := chain.Disk{
		Name: p.Disk, Size: p.VirtualSize,
		Source:    chain.Source{Path: active.Path, Format: string(p.Format), Device: d.id[0].Dev, Inode: d.id[0].Inode},
		Snapshots: trust.SnapshotRecords(active.Snapshots),
		Backing:   d.backing,
	}
	if s.kind == chain.KindArchive {
		rec.Requested, rec.Mode, rec.Detection = string(p.Requested), string(p.Mode), string(p.Detection)
		rec.ReasonCode, rec.Reason = string(p.Code), p.Reason
		rec.IncrementalFrom, rec.NoBitmapReason, rec.DirtyBytes = p.Since, p.NoBitmapReason, p.DirtyBytes
	}
	if active.Header != nil {
		rec.ClusterSize = active.Header.ClusterSize()
	}
	if p.AddsBitmap {
		rec.Bitmap = chain.BitmapName(s.checkpoint, s.uuid)
		rec.Granularity = d.granularity
	}
	return rec
}

// rememberIdentity notes every file of every chain as it was when it was opened,
// before anything was read out of it.
func (s *session) rememberIdentity() {
	for _, d := range s.disks {
		d.id, d.backing = nil, nil
		for i, layer := range d.image.Layers {
			for _, f := range layer.Files() {
				d.id = append(d.id, f.Opened())
			}
			if i > 0 {
				d.backing = append(d.backing, trust.LayerRecord(layer))
			}
		}
	}
	for _, f := range s.files {
		if f.image != nil {
			f.id = f.source().Opened()
		}
	}
}

// compareIdentity fails when any file of any chain is no longer what it was
// when reading began. A loop mount, or a program without QEMU's locks, is seen
// only so.
func (s *session) compareIdentity() error {
	for _, d := range s.disks {
		at := 0
		for _, layer := range d.image.Layers {
			for _, f := range layer.Files() {
				open, err := f.Stat()
				if err != nil {
					return &chain.DiskError{Disk: d.req.Disk, Err: err}
				}
				path, err := f.PathStat()
				if err != nil {
					return &chain.DiskError{Disk: d.req.Disk, Err: err}
				}
				if open != d.id[at] || path != d.id[at] {
					return &chain.DiskError{Disk: d.req.Disk, Err: &qemu.InUseError{Path: f.Path(), Why: s.changedWhile()}}
				}
				at++
			}
		}
	}
	for _, f := range s.files {
		if err := f.compareFile(); err != nil {
			return fmt.Errorf("%s: %w", f.req.Role, err)
		}
	}
	return nil
}

// changedWhile says what became of an image while we had it.
func (s *session) changedWhile() string {
	const what = "it was written to or exchanged while it was read"
	switch {
	case s.afterCommit == nil:
		return what + "; nothing was committed"
	case s.makesCheckpoint:
		return what + "; if the checkpoint was made before, it stays"
	}
	return what
}
