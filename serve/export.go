// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"fmt"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/nbd"
)

// Export is a disk as package nbd offers it: under its target's name, with the
// contexts base:allocation and, for each older checkpoint, qemu:dirty-bitmap:NAME:
// what may read otherwise than there. cow may be nil: then it is read-only. What
// was written into the scratch file counts as changed.
func (c *Checkpoint) Export(ctx context.Context, d *Disk, cow *Cow, older []*chain.Manifest) (nbd.Export, error) {
	e := nbd.Export{
		Name: d.Target, Size: d.size, Device: d, BlockSize: blockSize,
		Description: fmt.Sprintf("disk %s of %s at checkpoint %s", d.Target, c.Manifest.Domain, c.Manifest.Checkpoint),
		Contexts:    []nbd.Context{{Name: nbd.BaseAllocation, Extents: d.Allocation}},
	}
	if cow != nil {
		e.Device = cow
		e.Contexts[0].Extents = cow.Allocation
	}
	for _, m := range older {
		changes, err := c.Changes(ctx, m, d)
		if err != nil {
			return nbd.Export{}, err
		}
		if cow != nil {
			archived := changes
			changes = func(ctx context.Context, start, end int64) bitmapstore.Runs {
				return bitmapstore.Union(archived(ctx, start, end), cow.written(start, end))
			}
		}
		e.Contexts = append(e.Contexts, nbd.DirtyBitmap(m.Checkpoint, changes))
	}
	return e, nil
}
