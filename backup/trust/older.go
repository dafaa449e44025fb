// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
)

// askOlderBitmaps compares with the older bitmaps that the state recorded: since
// then both recorded the same writes.
func (w *witness) askOlderBitmaps(ctx context.Context) (*Objection, error) {
	layer := &w.Image.Layers[w.layer]
	confirmed := 0
	for i := range w.st.Disk.Witnesses {
		rec := &w.st.Disk.Witnesses[i]
		older := layer.Bitmap(rec.Name)
		switch {
		case rec.Layer != w.recordedLayer() || rec.Name == w.st.Disk.Bitmap || !rec.Enabled:
			continue
		case older == nil || older.InUse || older.Problem != nil:
			continue // it cannot testify
		}
		agree, err := w.agrees(ctx, older, rec)
		switch {
		case err != nil:
			return nil, err
		case !agree:
			return w.objectToBoth(ReasonWitness, "bitmaps %s and %s disagree about the writes since %s: one of them was cleared, disabled for a while or recreated",
				w.st.Disk.Bitmap, rec.Name, w.st.Manifest.Checkpoint), nil
		case older.Enabled && rec.Adopted == "":
			confirmed++
		}
	}
	w.proof = w.claim(confirmed)
	return nil, nil
}

// agrees reports whether an older bitmap shows what it showed at the checkpoint, by
// its record, and what the checkpoint's own has seen since.
func (w *witness) agrees(ctx context.Context, older *Bitmap, rec *chain.BitmapRecord) (bool, error) {
	then, err := w.Archive.Bitmap(ctx, rec)
	if err != nil {
		return false, err
	}
	grain := max(rec.Granularity, older.Granularity, w.bitmap.Granularity)
	// Bits of what was once cut off are gone. In the granule that the disk then
	// ended in, a coarser bitmap kept those that a finer one lost.
	size := w.SmallestSince(w.st, min(rec.Size, w.Image.Layers[w.layer].Size))
	if older.Granularity != w.bitmap.Granularity {
		size -= size % grain
	}
	expect := bitmapstore.Union(then, w.bitmap.Dirty).Clip(size).Round(grain, size)
	now := older.Dirty
	if own := w.st.OwnRecord(); own != nil {
		// What this one showed already when the other was recorded.
		before, err := w.Archive.Bitmap(ctx, own)
		if err != nil {
			return false, err
		}
		now = bitmapstore.Union(now, before)
	}
	now = now.Clip(size).Round(grain, size)
	if !older.Enabled || rec.Adopted != "" {
		// It stopped recording at some time, or may be another of the same name by
		// now, but cannot know of writes that this one missed.
		return bitmapstore.Contains(expect, now)
	}
	return bitmapstore.Equal(expect, now)
}
