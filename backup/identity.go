// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"fmt"

	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qemu"
)

// nothingCommitted is what it means when an image changed before the commit.
const nothingCommitted = "; nothing was committed"

// rememberIdentity notes every file of every chain as it was when it was opened,
// before anything was read out of it.
func (s *session) rememberIdentity() {
	now := s.hooks.now()
	for _, d := range s.disks {
		d.id, d.backing, d.settled = nil, nil, nil
		if files, ok := chainFiles(d.image); ok && settledSince(files, now) && cleaned(d.image) {
			d.settled = files
		}
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
		for _, o := range f.opened {
			o.id = o.source().Opened()
		}
	}
}

// compareIdentity fails when any file of any chain is no longer what it was
// when reading began. A loop mount, or a program without QEMU's locks, is seen
// only so. Of images that were cloned it is asked of the clones.
func (s *session) compareIdentity(consequence string) error {
	if s.released {
		return s.compareClones()
	}
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
					return &chain.DiskError{Disk: d.req.Disk, Err: &qemu.InUseError{Path: f.Path(), Why: "it was written to or exchanged while it was read" + consequence}}
				}
				at++
			}
		}
	}
	for _, f := range s.files {
		if err := f.compare(); err != nil {
			return fmt.Errorf("%s: %w", f.req.Role, err)
		}
	}
	return nil
}
