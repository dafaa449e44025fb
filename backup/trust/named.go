// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/chain"
)

// SinceBitmap looks at what a bitmap of a name tells, be there a checkpoint on record or
// not. One of a checkpoint is examined as that. Of any other nothing is known but what it
// shows: it has to be what libvirt demands of one, and the program that made it is relied on.
// Verdict.Base is the checkpoint's state, or has none.
func (j *Judge) SinceBitmap(ctx context.Context, name string) (Verdict, error) {
	if o := j.Image.Objection(); o != nil {
		return o.verdict(), nil
	}
	of := func(st chain.DiskState) bool { return st.Disk.Bitmap == name }
	if at := slices.IndexFunc(j.States, of); at >= 0 {
		w := &witness{Judge: j, st: j.States[at]}
		return w.judge(ctx, w.examine, w.st)
	}
	holders, err := j.Image.Holders(name)
	if err != nil {
		return object(ReasonMissing, "%v", err).verdict(), nil
	}
	if len(holders) == 0 {
		return object(ReasonMissing, "the image holds no bitmap %s", name).verdict(), nil
	}
	w := &witness{Judge: j, layer: holders[len(holders)-1]}
	w.bitmap = j.Image.Layers[w.layer].Bitmap(name)
	w.st = j.unrecorded(w.layer, w.bitmap)
	return w.judge(ctx, w.examineUnrecorded, chain.DiskState{})
}

// unrecorded is a state with all that is known of a bitmap that is not on record: what it
// is now.
func (j *Judge) unrecorded(layer int, b *Bitmap) chain.DiskState {
	var now time.Time
	return chain.DiskState{Manifest: &chain.Manifest{}, Disk: &chain.Disk{
		Bitmap: b.Name, Granularity: b.Granularity, Size: j.Image.Layers[layer].Size,
		Snapshots: j.Image.Layers[layer].Snapshots, Adopted: &now,
	}}
}

// examineUnrecorded asks what can be asked of a bitmap that is not on record.
func (w *witness) examineUnrecorded(ctx context.Context) (*Objection, error) {
	if o := w.askHolders(); o != nil {
		return o, nil
	}
	for _, step := range []func(context.Context) (*Objection, error){w.askBitmap, w.collectDirty} {
		if o, err := step(ctx); o != nil || err != nil {
			return o, err
		}
	}
	w.proof = fmt.Sprintf("bitmap %s is sound; it belongs to no checkpoint on record, so that nothing vouches for it but the program that made it", w.bitmap.Name)
	return nil, nil
}

// askHolders objects unless the bitmap is fit in every layer that holds it, as libvirt
// demands it.
func (w *witness) askHolders() *Objection {
	for i := range w.Image.Layers[:w.layer] {
		l := &w.Image.Layers[i]
		b := l.Bitmap(w.bitmap.Name)
		switch {
		case l.BitmapsErr != nil:
			return object(ReasonUnusable, "no bitmap of %s can be used: %v", l.Record.Path, l.BitmapsErr)
		case b != nil && (b.InUse || b.Problem != nil || !b.Enabled):
			return object(ReasonBroken, "bitmap %s of %s is in use, broken or disabled", b.Name, l.Record.Path)
		}
	}
	return nil
}

// judge is the verdict that an examination comes to.
func (w *witness) judge(ctx context.Context, examine func(context.Context) (*Objection, error), base chain.DiskState) (Verdict, error) {
	o, err := examine(ctx)
	switch {
	case err != nil:
		return Verdict{}, err
	case o != nil:
		return o.verdict(), nil
	}
	return w.verdict(base), nil
}

// Holders are the layers that hold a bitmap, the uppermost first. libvirt has it in one
// layer, or in several without a gap; else it is an error.
func (i *Image) Holders(bitmap string) ([]int, error) {
	var found []int
	for at := range i.Layers {
		if i.Layers[at].Bitmap(bitmap) == nil {
			continue
		}
		if n := len(found); n > 0 && found[n-1] != at-1 {
			return nil, fmt.Errorf("%s and %s hold a bitmap %s, and the image between them none: it has a gap",
				i.Layers[found[n-1]].Record.Path, i.Layers[at].Record.Path, bitmap)
		}
		found = append(found, at)
	}
	return found, nil
}
