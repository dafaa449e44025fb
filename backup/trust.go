// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// The qcow2 format gives a bitmap no generation number, so a bitmap that looks
// perfect may have missed writes: it may have been cleared, disabled for a
// while, made anew under its old name, cut by a shrinking disk, or left behind
// in an image whose backing file was exchanged. This file asks every witness
// there is before an incremental rests on one: the image's own state, the
// bitmaps as earlier archives recorded them, and the archived data.

// verdict is what came out.
type verdict struct {
	trusted  bool
	base     *chain.Manifest
	baseDisk *chain.Disk
	dirty    bitmapstore.Runs
	alone    bool // the base's bitmap alone is dirty

	code         Reason
	reason       string
	neverBitmaps bool // the image's format never has bitmaps
	distrustAll  bool // every earlier bitmap of ours is worthless
}

// objection is a reason not to believe a bitmap.
type objection struct {
	code   Reason
	reason string
	all    bool // it speaks against every bitmap of the image
}

func object(code Reason, format string, args ...any) *objection {
	return &objection{code: code, reason: fmt.Sprintf(format, args...)}
}

// objectAll objects to every bitmap of the image.
func objectAll(code Reason, format string, args ...any) *objection {
	o := object(code, format, args...)
	o.all = true
	return o
}

// judge looks for the newest archived state since which the disk's bitmaps
// tell every change. Its error is a failure to find out; every doubt is a
// verdict.
func (s *session) judge(ctx context.Context, d *disk, states chain.States) (verdict, error) {
	if o, never := imageObjection(d.image); o != nil {
		return verdict{code: o.code, reason: o.reason, neverBitmaps: never}, nil
	}
	var first *objection
	for i, st := range states {
		if st.Disk.Bitmap == "" {
			continue
		}
		w := &witness{s: s, d: d, states: states, st: st}
		o, err := w.examine(ctx)
		if err != nil {
			var bad *archive.DamageError
			if !errors.As(err, &bad) {
				return verdict{}, err
			}
			o = object(ReasonArchive, "the archive of checkpoint %s is damaged: %v", st.Manifest.Checkpoint, err)
		}
		if s.archives() && !st.HasData() && (o == nil || !o.all) {
			continue // a witness, and nothing to build on
		}
		if o == nil && !st.HasData() {
			// The archived data before it may testify against all bitmaps.
			if o, err = s.askOlderArchive(ctx, d, states, states[i+1:]); err != nil {
				return verdict{}, err
			}
		}
		if o == nil {
			if d.req.Since == "" || d.req.Since == st.Manifest.Checkpoint {
				return w.verdict(st), nil
			}
			if !st.HasData() {
				continue // no archive leads from here to the one that was asked for
			}
			return s.judgeLine(ctx, d, states, w)
		}
		// The newest bitmap that is in the image at all tells most; one that
		// is merely absent says little beside it.
		if first == nil || first.code == ReasonMissing && o.code != ReasonMissing {
			first = o
		}
		if o.all {
			return verdict{code: o.code, reason: o.reason, distrustAll: true}, nil
		}
	}
	if first == nil {
		first = object(ReasonMissing, "no earlier backup of this disk added a bitmap")
	}
	return verdict{code: first.code, reason: first.reason}, nil
}

// askOlderArchive examines the newest archived state whose bitmap is in the
// image, for an objection to every bitmap.
func (s *session) askOlderArchive(ctx context.Context, d *disk, states, older chain.States) (*objection, error) {
	for _, st := range older {
		if !st.HasData() || st.Disk.Bitmap == "" {
			continue
		}
		w := &witness{s: s, d: d, states: states, st: st}
		o, err := w.examine(ctx)
		switch {
		case archive.IsDamage(err):
			continue
		case err != nil:
			return nil, err
		case o == nil:
			return nil, nil
		case o.all:
			return o, nil
		}
	}
	return nil, nil
}

// judgeLine serves an incremental since an older checkpoint than the one whose
// bitmap was found good: either the older one's own bitmap stands every check,
// or the archived deltas link the two without a gap, and their ranges are
// united with the bitmap's.
func (s *session) judgeLine(ctx context.Context, d *disk, states chain.States, newest *witness) (verdict, error) {
	goal, _ := states.Named(d.req.Since)
	if goal.Disk.Bitmap != "" {
		w := &witness{s: s, d: d, states: states, st: goal}
		o, err := w.examine(ctx)
		var bad *archive.DamageError
		switch {
		case err != nil && !errors.As(err, &bad):
			return verdict{}, err
		case err == nil && o == nil:
			return w.verdict(goal), nil
		case err == nil && o.all:
			return verdict{code: o.code, reason: o.reason, distrustAll: true}, nil
		}
	}
	sets := []bitmapstore.Runs{newest.dirty}
	for at := newest.st; at.Manifest.UUID != goal.Manifest.UUID; {
		from := at.Disk.IncrementalFrom
		next, ok := chain.DiskState{}, false
		if from != nil {
			next, ok = states.WithUUID(from.UUID)
		}
		if !ok {
			return verdict{code: ReasonBrokenLine, reason: fmt.Sprintf(
				"checkpoint %s has no usable bitmap in the image, and the archive of %s does not build on it", d.req.Since, at.Manifest.Checkpoint)}, nil
		}
		changed, err := s.deltaRuns(ctx, at.Disk)
		if err != nil {
			return verdict{}, err
		}
		if changed == nil {
			return verdict{code: ReasonBrokenLine, reason: fmt.Sprintf(
				"the archive of %s does not tell what changed since %s", at.Manifest.Checkpoint, next.Manifest.Checkpoint)}, nil
		}
		sets = append(sets, changed)
		at = next
	}
	v := newest.verdict(goal)
	v.dirty = bitmapstore.Union(sets...).Clip(d.image.Size())
	v.dirty = bitmapstore.Union(v.dirty, beyond(states.SmallestSince(goal, d.image.Size()), d.image.Size()))
	v.reason = fmt.Sprintf("the recorded changes from %s to %s and the bitmap since then agree with every witness", goal.Manifest.Checkpoint, newest.st.Manifest.Checkpoint)
	return v, nil
}

// deltaRuns is what a state's delta covers: by definition all that differs
// from the state it builds on. It is nil when the state was stored whole.
func (s *session) deltaRuns(ctx context.Context, cd *chain.Disk) (bitmapstore.Runs, error) {
	m, err := archive.OpenMap(ctx, s.repo.Store, cd.Maps[0], 0)
	if err != nil || m.Full() {
		return nil, err
	}
	return mapRuns(ctx, m), nil
}

func mapRuns(ctx context.Context, m *archive.Map) bitmapstore.Runs {
	return entryRuns(m.Entries(ctx, 0, m.Size()), func(archive.Entry) bool { return true })
}

// imageObjection tells why no bitmap of the image can be believed, whatever
// its name, and whether the format is one that never has any.
func imageObjection(c *qcow2.Image) (o *objection, never bool) {
	active := c.Layers[0]
	if by := active.ReadBy(); by != "" {
		return object(ReasonForeign, "the image is read by %s, which tells nothing of bitmaps that could be believed", by), true
	}
	if active.Format == qcow2.Raw {
		return object(ReasonRaw, "raw images hold no bitmaps"), true
	}
	h := active.Header
	switch {
	case h.Version < 3:
		return object(ReasonVersion2, "qcow2 images of version 2 hold no bitmaps"), true
	case h.Has(qcow2.IncompatCorrupt):
		return object(ReasonCorrupt, "QEMU marked the image corrupt"), false
	case h.Has(qcow2.IncompatDirty):
		return object(ReasonDirty, "the image was not closed cleanly (its dirty bit is set)"), false
	case h.Has(qcow2.IncompatDataFile) && h.Autoclear&qcow2.AutoclearDataRaw != 0:
		return object(ReasonDataFileRaw, "its raw data file can be written without any mark in a bitmap"), false
	case active.BitmapsErr != nil:
		return object(ReasonUnusable, "no bitmap of the image can be used: %v", active.BitmapsErr), false
	}
	return nil, false
}

// beyond is the range from from to size, empty when there is none.
func beyond(from, size int64) bitmapstore.Runs {
	if from >= size {
		return bitmapstore.Of()
	}
	return bitmapstore.Of(bitmapstore.Run{Start: from, End: size})
}
