// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
)

// witness examines one bitmap: the one that the recorded state st added.
type witness struct {
	*Judge
	st chain.DiskState

	layer  int     // where in the chain the bitmap is
	flat   bool    // the layer was restored from the checkpoint, flat
	bitmap *Bitmap // as it is now
	dirty  bitmapstore.Runs
	untold []bitmapstore.Run // called clean, and to be read: see comparer
	proof  string            // what confirmed the bitmap, for people
	older  string            // see [Verdict]
}

// verdict trusts the bitmap.
func (w *witness) verdict(base chain.DiskState) Verdict {
	return Verdict{
		Trusted: true, Base: base, Dirty: w.changed(), Alone: w.tellsAlone(),
		Code: ReasonTrusted, Reason: w.proof, OlderThan: w.older,
	}
}

// tellsAlone reports whether all that may have changed is in the bitmap itself.
func (w *witness) tellsAlone() bool {
	size := w.Image.Size()
	return w.layer == 0 && w.SmallestSince(w.st, size) == size && len(w.untold) == 0
}

// examine returns nil when the bitmap tells every change since its state was
// archived, as far as anything can contradict it, and fills in w.dirty.
func (w *witness) examine(ctx context.Context) (*Objection, error) {
	for _, step := range []func(context.Context) (*Objection, error){
		w.locate,
		w.askBitmap,
		w.askWhatIsLost,
		w.askOwnRecord,
		w.askOlderBitmaps,
		w.collectDirty,
		w.askLaterRecords,
		w.askArchivedData,
	} {
		if o, err := step(ctx); o != nil || err != nil {
			return o, err
		}
	}
	return nil, nil
}
