// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
)

// regrownBytes bounds how much clean data that reads as zeros is read in search
// of the last that does not.
const regrownBytes = 64 << 20

// askRegrown looks for data that a disk has got back. When a disk shrinks, QEMU
// keeps the cluster that it then ends in, whole, and drops the bits of the
// granules beyond the end. If the disk grows again (and has no backing file),
// what was written there before shows again, and its marks are gone. That takes
// a cluster larger than a granule. Behind that cluster all is gone or marked,
// so it is the last with clean bytes that are not zeros, or has none.
func (w *witness) askRegrown(ctx context.Context, archived State, clean bitmapstore.Runs) (*Objection, error) {
	active := &w.Image.Layers[0]
	if w.layer > 0 || active.Header.ClusterSize() <= w.bitmap.Granularity {
		return nil, nil // what newer layers hold counts as dirty anyway
	}
	cluster := active.Header.ClusterSize()
	last, err := lastOf(bitmapstore.Intersect(clean, w.Image.Content.Data(ctx)), regrownBytes/archive.GridSize)
	if err != nil {
		return nil, err
	}
	look := w.comparer(archived, clean)
	defer look.close()
	var stop int64
	for _, run := range slices.Backward(last) {
		if run.End <= stop {
			break
		}
		found, err := look.compare(ctx, run)
		if err == nil && stop == 0 {
			err = look.cutBehind(ctx, run, &found)
		}
		if err != nil {
			return nil, err
		}
		if !found.Same {
			return objectAll(ReasonMap, "the last data that bitmap %s calls unchanged is not that in the archive of %s (a shrunk and regrown disk does this)",
				w.st.Disk.Bitmap, w.st.Manifest.Checkpoint), nil
		}
		if !found.Zeros && stop == 0 {
			stop = max(1, run.Start/cluster*cluster) // the rest of its cluster, too
		}
	}
	return nil, nil
}
