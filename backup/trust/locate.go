// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"

	"github.com/imgbackup/imgbackup/chain"
)

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
	if w.layer >= 0 && !w.flat {
		w.layer += w.recordedLayer()
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
	if o := w.askDataFile(); o != nil {
		return o, nil
	}
	if w.flat {
		return nil, nil
	}
	for i, rec := range backing {
		if o := compareBacking(&layers[len(layers)-len(backing)+i], rec); o != nil {
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
		return w.objectToBoth(ReasonOtherDisk, "at checkpoint %s this image was disk %s", w.st.Manifest.Checkpoint, was.Name)
	}
	return nil
}

// compareBacking objects unless a backing file is the one that was recorded.
func compareBacking(l *Layer, rec chain.Layer) *Objection {
	now := l.Record
	// Devices are renumbered and files are moved with their folder; the rest
	// reports whether the content can have changed.
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
