// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
)

// manifest fills in all that is known before the data is read, but for the disks.
func (s *session) manifest(kind string, parent *chain.Manifest) *chain.Manifest {
	locking := chain.LockingQEMU
	if s.req.NoLock {
		locking = chain.LockingNone
	}
	tags, _ := chain.Tags(s.req.Tags) // they were looked at before
	m := &chain.Manifest{
		Kind: kind, Domain: s.req.Domain, DomainUUID: s.domainUUID(), Autostart: s.req.Autostart, Host: s.self.Host,
		Checkpoint: s.point.name, UUID: s.point.uuid, Sequence: s.sequence(),
		Created: s.point.created, Description: s.req.Description, Tags: tags, Tool: s.req.Tool,
		Locking: locking, LeftOut: s.req.LeftOut, Imported: s.imported(),
	}
	m.Follow(parent)
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
		Name: p.Disk, RenamedFrom: p.RenamedFrom, Size: p.VirtualSize,
		Source:    chain.Source{Path: active.Path, Format: string(p.Format), Device: d.id[0].Dev, Inode: d.id[0].Inode},
		Snapshots: trust.SnapshotRecords(active.Snapshots),
		Backing:   d.backing, TrustedData: s.trustedData(d),
	}
	s.noteFiles(d, &rec.Source)
	if active.Header != nil {
		rec.ClusterSize = active.Header.ClusterSize()
	}
	if p.AddsBitmap {
		rec.Bitmap = s.point.bitmap()
		rec.LibvirtBitmap = s.libvirtBitmap()
		rec.Granularity = d.granularity
	}
	return rec
}
