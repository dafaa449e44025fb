// SPDX-License-Identifier: Apache-2.0

package newhost

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/imgbackup/imgbackup/recovery"
)

// lookRecovery finds out how far a domain is that earlier runs have recovered.
func (h *Host) lookRecovery(ctx context.Context, d *Domain) {
	r, err := recovery.ReadRecord(d.Folder)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// A run that was killed at its very beginning leaves it so.
		if entries, err := os.ReadDir(d.Folder); err != nil || len(entries) > 0 {
			d.inTheWay("%s is there already, and was not recovered by this command: %s", d.Folder, remove)
		}
		return
	case err != nil:
		d.inTheWay("%s is there already: %v: %s", d.Folder, err, remove)
		return
	case r.Domain != d.Name || r.Name != d.Name || r.RepositoryID != h.repo.Config.ID:
		d.inTheWay("%s is there already, and holds the recovery of another domain, or from another repository: %s", d.Folder, remove)
		return
	case r.Connect != "" && r.Connect != h.req.Connect:
		d.inTheWay("%s is there already, and its domain is in the libvirt at %s: give --connect %s, as then", d.Folder, r.Connect, r.Connect)
		return
	case h.ofAnother(d, r.Checkpoint, r.UUID):
		return
	}
	m, err := h.repo.Manifest(ctx, d.Name, r.Checkpoint)
	here := err == nil && m.UUID == r.UUID
	switch {
	case r.Stage == recovery.Done:
		// Its checkpoint may be gone from the repository by now.
		if d.State, d.Err, d.Why, d.Manifest = Stands, nil, "", nil; here {
			d.Manifest = m
		}
	case err != nil:
		d.fail(err)
	case !here:
		d.inTheWay("%s is there already, at a checkpoint %s that the repository does not have any more: %s", d.Folder, r.Checkpoint, remove)
	default:
		d.State, d.Err, d.Why, d.Manifest, d.Begun = Waits, nil, "", m, true
	}
}
