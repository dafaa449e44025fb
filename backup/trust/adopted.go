// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"fmt"
	"time"

	"github.com/imgbackup/imgbackup/bitmapstore"
)

// A bitmap can have been in the image when its checkpoint was put on record: another
// program made it, as libvirt does while the VM runs, or its first definition was lost.
// What happened before nobody here has seen. From then on it is examined as any other,
// against what it and the others showed at that time.

// recordedLayer is where the bitmap was when its checkpoint was put on record: 0 is the
// image that was active, and all but that have an identity on record, which is compared.
func (w *witness) recordedLayer() int {
	if own := w.st.OwnRecord(); own != nil && !w.flat {
		return own.Layer
	}
	return 0
}

// askOwnRecord compares with what the bitmap showed when it was put on record: it only
// grows. If bits are gone it was cleared, or another bitmap has its name by now.
func (w *witness) askOwnRecord(ctx context.Context) (*Objection, error) {
	own := w.st.OwnRecord()
	if own == nil {
		return nil, nil
	}
	then, err := w.Archive.Bitmap(ctx, own)
	if err != nil {
		return nil, err
	}
	size := w.SmallestSince(w.st, min(own.Size, w.Image.Layers[w.layer].Size))
	grew, err := bitmapstore.Contains(w.bitmap.Dirty.Clip(size), then.Clip(size))
	if err != nil || grew {
		return nil, err
	}
	return object(ReasonContradicted, "bitmap %s no longer shows writes that it showed when checkpoint %s was put on record: it was cleared, or recreated under its name",
		w.st.Disk.Bitmap, w.st.Manifest.Checkpoint), nil
}

// objectToBoth objects to every bitmap of the image, since one of two lies; but to no
// more than the one that was adopted, if it is one: another may have its name by now.
func (w *witness) objectToBoth(code Reason, format string, args ...any) *Objection {
	o := object(code, format, args...)
	o.All = w.st.Disk.Adopted == nil
	return o
}

// claim is what speaks for the bitmap, which some others on record agree with, for people.
func (w *witness) claim(agree int) string {
	with := ""
	if agree > 0 {
		with = fmt.Sprintf(" and agrees with %d older", agree)
	}
	if at := w.st.Disk.Adopted; at != nil {
		return fmt.Sprintf("bitmap %s, which another program made, is sound%s, and has lost nothing since it was adopted on %s; what it saw before rests on that program alone",
			w.st.Disk.Bitmap, with, at.Format(time.RFC3339))
	}
	return fmt.Sprintf("bitmap %s is sound%s", w.st.Disk.Bitmap, with)
}
