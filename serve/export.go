// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"fmt"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/view"
)

// Export is a disk as package nbd offers it: under its name, with the contexts
// base:allocation (what the repository holds as zeros is a hole) and, for each older
// state of it, qemu:dirty-bitmap:NAME: what may read otherwise than there. cow may be
// nil: then it is read-only. What was written into the scratch file counts as changed.
func Export(ctx context.Context, c *view.Checkpoint, d *view.Disk, cow *Cow, older []chain.DiskState) (nbd.Export, error) {
	e := nbd.Export{
		Name: d.Name, Size: d.Size(), Device: d, Lend: d.Lend, BlockSize: blockSize,
		Description: fmt.Sprintf("disk %s of %s at checkpoint %s", d.Name, c.Manifest.Domain, c.Manifest.Checkpoint),
	}
	zeros := d.Zeros
	if cow != nil {
		e.Device, e.Lend, zeros = cow, nil, cow.zeros
	}
	e.Contexts = []nbd.Context{nbd.Allocation(zeros)}
	for _, st := range older {
		was, err := c.Older(ctx, st)
		if err != nil {
			return nbd.Export{}, err
		}
		changes := func(ctx context.Context, start, end int64) bitmapstore.Runs {
			return d.ChangedSince(ctx, was, start, end)
		}
		if cow != nil {
			archived := changes
			changes = func(ctx context.Context, start, end int64) bitmapstore.Runs {
				return bitmapstore.Union(archived(ctx, start, end), cow.written(start, end))
			}
		}
		e.Contexts = append(e.Contexts, nbd.DirtyBitmap(st.Manifest.Checkpoint, changes))
	}
	return e, nil
}
