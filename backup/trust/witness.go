// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// witness examines one bitmap: the one that the recorded state st added.
type witness struct {
	*Judge
	st chain.DiskState

	layer  int     // where in the chain the bitmap is
	flat   bool    // the layer was restored from the checkpoint, flat
	bitmap *Bitmap // as it is now
	dirty  bitmapstore.Runs
	proof  string // what confirmed the bitmap, for people
}

// verdict trusts the bitmap.
func (w *witness) verdict(base chain.DiskState) Verdict {
	return Verdict{
		Trusted: true, Base: base, Dirty: w.dirty, Alone: w.tellsAlone(),
		Code: ReasonTrusted, Reason: w.proof,
	}
}

// tellsAlone reports whether all that may have changed is in the bitmap itself.
func (w *witness) tellsAlone() bool {
	size := w.Image.Size()
	return w.layer == 0 && w.States.SmallestSince(w.st, size) == size
}

// examine returns nil when the bitmap tells every change since its state was
// archived, as far as anything can contradict it, and fills in w.dirty.
func (w *witness) examine(ctx context.Context) (*Objection, error) {
	for _, step := range []func(context.Context) (*Objection, error){
		w.locate,
		w.askBitmap,
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

// locate finds the layer that was active at the checkpoint and compares what
// lies below it with what was recorded.
func (w *witness) locate(context.Context) (*Objection, error) {
	layers := w.Image.Layers
	backing := w.st.Disk.Backing
	name := w.st.Disk.Bitmap
	w.layer = len(layers) - 1 - len(backing)
	// A disk that was restored with its bitmap is flat and has no snapshots,
	// whatever it was when it was archived; overlays may stand on it by now. Its
	// header says so, which tells it from one whose backing file was cut off.
	bottom := len(layers) - 1
	if h := layers[bottom].Header; h != nil && h.Origin() == name {
		w.layer, w.flat = bottom, true
	}
	if w.layer >= 0 && layers[w.layer].BitmapsErr != nil {
		return object(ReasonUnusable, "no bitmap of %s can be used: %v", layers[w.layer].Record.Path, layers[w.layer].BitmapsErr), nil
	}
	if w.layer < 0 || layers[w.layer].Bitmap(name) == nil {
		for i := range layers {
			if layers[i].Bitmap(name) != nil {
				return object(ReasonBacking, "the backing chain has another depth than at checkpoint %s", w.st.Manifest.Checkpoint), nil
			}
		}
		return object(ReasonMissing, "the image holds no bitmap %s", name), nil
	}
	w.bitmap = layers[w.layer].Bitmap(name)
	if o := w.compareIdentity(); o != nil {
		return o, nil
	}
	if w.flat {
		return nil, nil
	}
	for i, rec := range backing {
		if o := compareBacking(&layers[w.layer+1+i], rec); o != nil {
			return o, nil
		}
	}
	return nil, nil
}

// compareIdentity objects when the image was another disk's at the checkpoint.
// All disks of a checkpoint carry bitmaps of one name.
func (w *witness) compareIdentity() *Objection {
	was := w.Image.Layers[w.layer].diskOf(w.st.Manifest.Disks, w.st.Manifest.Created)
	if was != nil && was.Name != w.st.Disk.Name {
		return objectAll(ReasonOtherDisk, "at checkpoint %s this image was disk %s", w.st.Manifest.Checkpoint, was.Name)
	}
	return nil
}

// compareBacking objects unless a backing file is the one that was recorded.
func compareBacking(l *Layer, rec chain.Layer) *Objection {
	now := l.Record
	// Devices are renumbered and files are moved with their folder; the rest
	// tells whether the content can have changed.
	switch {
	case now.Path != rec.Path || now.Format != rec.Format:
		return object(ReasonBacking, "the backing file was %s (%s) and is %s (%s)", rec.Path, rec.Format, now.Path, now.Format)
	case now.FileSize != rec.FileSize, now.Mtime != rec.Mtime, now.Ctime != rec.Ctime, now.HeaderDigest != rec.HeaderDigest,
		l.DataFile:
		return object(ReasonBacking, "the backing file %s was written to or exchanged since", rec.Path)
	case l.Device:
		return object(ReasonBacking, "the backing file %s is a block device, which cannot be shown to be unchanged", rec.Path)
	}
	return nil
}

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
	case !slices.Equal(layer.Snapshots, w.snapshots()):
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

// askOlderBitmaps compares with the older bitmaps that the state recorded: since
// then both recorded the same writes.
func (w *witness) askOlderBitmaps(ctx context.Context) (*Objection, error) {
	layer := &w.Image.Layers[w.layer]
	confirmed := 0
	for i := range w.st.Disk.Witnesses {
		rec := &w.st.Disk.Witnesses[i]
		if rec.Layer != 0 || rec.Name == w.st.Disk.Bitmap || !rec.Enabled {
			continue
		}
		older := layer.Bitmap(rec.Name)
		if older == nil || older.InUse || older.Problem != nil {
			continue // it cannot testify
		}
		then, err := w.Archive.Bitmap(ctx, rec)
		if err != nil {
			return nil, err
		}
		grain := max(rec.Granularity, older.Granularity, w.bitmap.Granularity)
		// Bits of what was once cut off are gone. In the granule that the disk
		// then ended in, a coarser bitmap kept those that a finer one lost.
		size := w.States.SmallestSince(w.st, min(rec.Size, layer.Size))
		if older.Granularity != w.bitmap.Granularity {
			size -= size % grain
		}
		expect := bitmapstore.Union(then, w.bitmap.Dirty).Clip(size).Round(grain, size)
		now := older.Dirty.Clip(size).Round(grain, size)
		agree, err := bitmapstore.Equal(expect, now)
		if !older.Enabled {
			// It stopped recording at some time, but cannot know of writes
			// that this one missed.
			agree, err = bitmapstore.Contains(expect, now)
		}
		if err != nil {
			return nil, err
		}
		if !agree {
			return objectAll(ReasonWitness, "bitmaps %s and %s disagree about the writes since %s: one of them was cleared, disabled for a while or made anew",
				w.st.Disk.Bitmap, rec.Name, w.st.Manifest.Checkpoint), nil
		}
		if older.Enabled {
			confirmed++
		}
	}
	w.proof = fmt.Sprintf("bitmap %s is sound", w.st.Disk.Bitmap)
	if confirmed > 0 {
		w.proof = fmt.Sprintf("bitmap %s is sound and agrees with %d older", w.st.Disk.Bitmap, confirmed)
	}
	return nil, nil
}

// collectDirty unites all that may have changed since the state.
func (w *witness) collectDirty(ctx context.Context) (*Objection, error) {
	size := w.Image.Size()
	sets := []bitmapstore.Runs{
		w.bitmap.Dirty,
		bitmapstore.Between(w.States.SmallestSince(w.st, size), size),
	}
	// A bitmap in a newer layer may have been made after the layer's first
	// write: only what the layer holds counts.
	for i := 0; i < w.layer; i++ {
		sets = append(sets, w.Image.Content.Allocated(ctx, i))
	}
	w.dirty = bitmapstore.Union(sets...).Clip(size)
	return nil, nil
}

// askLaterRecords compares with what later archives saw of this bitmap. A
// bitmap only grows; if bits are gone, either an older copy of the image was
// put back, which is fine, or the bitmap was cleared or made anew, which is
// not. The bytes tell: in an older copy the ranges in question read as they
// did when the state was archived.
func (w *witness) askLaterRecords(ctx context.Context) (*Objection, error) {
	size := w.Image.Layers[w.layer].Size
	older := false
	for _, later := range w.States {
		if later.Manifest.Sequence <= w.st.Manifest.Sequence {
			break
		}
		for i := range later.Disk.Witnesses {
			rec := &later.Disk.Witnesses[i]
			if rec.Name != w.st.Disk.Bitmap || !rec.Enabled {
				continue
			}
			if !w.flat && len(later.Disk.Backing)-rec.Layer != len(w.st.Disk.Backing) {
				continue // a bitmap of this name in another layer
			}
			then, err := w.Archive.Bitmap(ctx, rec)
			if err != nil {
				return nil, err
			}
			both := min(size, rec.Size)
			grain := max(rec.Granularity, w.bitmap.Granularity)
			gone := bitmapstore.Subtract(then.Clip(both).Round(grain, both), w.bitmap.Dirty.Clip(both).Round(grain, both))
			gone = bitmapstore.Subtract(gone, w.dirty)
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
				return object(ReasonContradicted, "the archive of %s saw writes in bitmap %s that it no longer shows: it was cleared or made anew",
					later.Manifest.Checkpoint, w.st.Disk.Bitmap), nil
			}
			if !older {
				w.proof += fmt.Sprintf("; the image is an older copy than %s, its bytes prove it", later.Manifest.Checkpoint)
			}
			older = true
		}
	}
	return nil, nil
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
	for run, err := range runs.Clip(w.Image.Size()) {
		if err != nil {
			return false, err
		}
		same, _, err := archived.Compare(ctx, w.Image.Content, run)
		if err != nil || !same {
			return false, err
		}
	}
	return true, nil
}
