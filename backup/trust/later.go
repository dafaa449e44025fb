// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
)

// askLaterRecords compares with what later archives saw of this bitmap. A
// bitmap only grows; if bits are gone, either an older copy of the image was
// put back, which is fine, or the bitmap was cleared or recreated, which is
// not. The bytes tell: in an older copy the ranges in question read as they
// did when the state was archived.
func (w *witness) askLaterRecords(ctx context.Context) (*Objection, error) {
	older := false
	for later, rec := range w.laterRecords {
		gone, err := w.gone(ctx, rec)
		if err != nil {
			return nil, err
		}
		bytes, err := gone.Bytes()
		if err != nil {
			return nil, err
		}
		if bytes == 0 {
			continue
		}
		same, err := w.readsAsArchived(ctx, gone)
		if err != nil {
			return nil, err
		}
		if !same {
			return object(ReasonContradicted, "the archive of %s saw writes in bitmap %s that it no longer shows: it was cleared or recreated",
				later.Manifest.Checkpoint, w.st.Disk.Bitmap), nil
		}
		if !older {
			if !w.flat { // which a restore has made so on purpose
				w.older = later.Manifest.Checkpoint
			}
			w.proof += fmt.Sprintf("; the image is an older copy than %s, its bytes prove it", later.Manifest.Checkpoint)
		}
		older = true
	}
	return nil, nil
}

// askWhatIsLost asks whether its own checkpoint, or a later one, had records that a repair had
// to take out: nobody knows what they would have said.
func (w *witness) askWhatIsLost(context.Context) (*Objection, error) {
	for _, st := range slices.Concat(w.States, w.Gone) {
		isLater := st.Manifest.Sequence >= w.st.Manifest.Sequence || w.st.Disk.Adopted != nil
		if isLater && st.Disk.RecordsLost {
			return object(ReasonRecordsLost, "what checkpoint %s recorded of bitmaps was damaged and is lost, so that nothing testifies for %s",
				st.Manifest.Checkpoint, w.st.Disk.Bitmap), nil
		}
	}
	return nil, nil
}

// laterRecords yields the records of the bitmap that states after its own made, the
// newest first; those that have been forgotten come last.
func (w *witness) laterRecords(yield func(chain.DiskState, *chain.BitmapRecord) bool) {
	depth := len(w.st.Disk.Backing) - w.recordedLayer()
	for _, later := range slices.Concat(w.States, w.Gone) {
		if later.Manifest.Sequence <= w.st.Manifest.Sequence && w.st.Disk.Adopted == nil {
			continue
		}
		for i := range later.Disk.Witnesses {
			rec := &later.Disk.Witnesses[i]
			switch {
			case rec.Name != w.st.Disk.Bitmap || rec.Adopted != w.st.AdoptedAs() || !rec.Enabled:
			case !w.flat && len(later.Disk.Backing)-rec.Layer != depth:
				// A bitmap of this name in another layer.
			case !yield(later, rec):
				return
			}
		}
	}
}

// gone is what the bitmap showed when it was recorded, and neither it nor anything
// else calls dirty now.
func (w *witness) gone(ctx context.Context, rec *chain.BitmapRecord) (bitmapstore.Runs, error) {
	then, err := w.Archive.Bitmap(ctx, rec)
	if err != nil {
		return nil, err
	}
	both := min(w.Image.Layers[w.layer].Size, rec.Size)
	grain := max(rec.Granularity, w.bitmap.Granularity)
	now := w.bitmap.Dirty.Clip(both).Round(grain, both)
	return bitmapstore.Subtract(bitmapstore.Subtract(then.Clip(both).Round(grain, both), now), w.dirty), nil
}

// readsAsArchived reports whether the given ranges read as they were archived.
func (w *witness) readsAsArchived(ctx context.Context, runs bitmapstore.Runs) (bool, error) {
	if !w.st.HasData() {
		return false, nil
	}
	archived, err := w.Archive.State(ctx, w.st.Disk)
	if err != nil {
		return false, err
	}
	size := w.Image.Size()
	look := w.comparer(archived, bitmapstore.Subtract(bitmapstore.Between(0, size), w.dirty))
	defer look.close()
	for run, err := range runs.Clip(size) {
		if err != nil {
			return false, err
		}
		found, err := look.compare(ctx, run)
		if err != nil || !found.Same {
			return false, err
		}
		w.readAnew(found.Untold)
	}
	return true, nil
}
