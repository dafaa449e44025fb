// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"slices"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// askBitmap looks at the bitmap itself and what it was made with.
func (w *witness) askBitmap(context.Context) (*Objection, error) {
	b, name := w.bitmap, w.st.Disk.Bitmap
	layer := &w.Image.Layers[w.layer]
	switch {
	case layer.Header.Incompatible&(qcow2.IncompatDirty|qcow2.IncompatCorrupt) != 0:
		return object(ReasonDirty, "%s was not closed cleanly", layer.Record.Path), nil
	case b.InUse:
		return object(ReasonInUse, "bitmap %s was left in use: the VM or a tool did not close the image cleanly", name), nil
	case b.Problem != nil:
		return object(ReasonBroken, "bitmap %s is broken: %v", name, b.Problem), nil
	case !b.Enabled:
		return object(ReasonDisabled, "bitmap %s is disabled, so it does not record", name), nil
	case b.Granularity != w.st.Disk.Granularity:
		return object(ReasonGranularity, "bitmap %s has a granularity of %d bytes and was made with %d", name, b.Granularity, w.st.Disk.Granularity), nil
	case !slices.Equal(layer.Snapshots, w.snapshots()) && w.recordedLayer() == 0:
		return object(ReasonSnapshots, "the image's internal snapshots are not those of checkpoint %s", w.st.Manifest.Checkpoint), nil
	}
	if _, err := b.Dirty.Bytes(); err != nil {
		return object(ReasonBroken, "bitmap %s cannot be read: %v", name, err), nil
	}
	return nil, nil
}

// snapshots are the internal snapshots that the layer must have.
func (w *witness) snapshots() []chain.Snapshot {
	if w.flat {
		return nil
	}
	return w.st.Disk.Snapshots
}

// collectDirty unites all that may have changed since the state, or that it has lost.
func (w *witness) collectDirty(ctx context.Context) (*Objection, error) {
	size := w.Image.Size()
	sets := []bitmapstore.Runs{
		w.bitmap.Dirty,
		bitmapstore.Between(w.SmallestSince(w.st, size), size),
		w.st.Disk.LostRuns(), // nothing can be compared with it, and it has to be read again
	}
	// A bitmap in a newer layer may have been made after the layer's first
	// write: only what the layer holds counts.
	for i := 0; i < w.layer; i++ {
		sets = append(sets, w.Image.Content.Allocated(ctx, i))
	}
	w.dirty = bitmapstore.Union(sets...).Clip(size)
	return nil, nil
}
