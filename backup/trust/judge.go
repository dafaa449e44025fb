// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
)

// Judge judges the bitmaps in the image of one disk.
type Judge struct {
	Image    *Image
	States   chain.States // all recorded states of the disk
	Gone     chain.States // what stays known of those that were forgotten: no base of anything
	Unknown  error        // why that is not known; nil: it is
	Archive  Archive
	Clusters Clusters // nil: where clusters lie is not asked
	Seed     uint64   // of the samples: the same ones with the same seed
}

// objection is the reason why no bitmap can be believed, whatever its name; nil: none.
func (j *Judge) objection() *Objection {
	if j.Unknown != nil && j.Image.Objection() == nil {
		return object(ReasonForgotten, "what forgotten checkpoints saw of its bitmaps can't be read: %v", j.Unknown)
	}
	return j.Image.Objection()
}

// SmallestSince is the smallest virtual size, bytes, among size and those that the disk
// is known to have had at st and since.
func (j *Judge) SmallestSince(st chain.DiskState, size int64) int64 {
	return j.Gone.SmallestSince(st, j.States.SmallestSince(st, size))
}

// Question is what is asked of a [Judge].
type Question struct {
	// Since names the checkpoint that the changes are wanted since; empty: the
	// newest that a bitmap can be believed since.
	Since string
	// WithData says that an archive is to be built on the base: only states
	// with data can be one, and the others are but witnesses.
	WithData bool
}

// Verdict looks for the newest state since which the disk's bitmaps tell every
// change. Its error is a failure to find out; every doubt is a verdict.
func (j *Judge) Verdict(ctx context.Context, q Question) (Verdict, error) {
	if o := j.objection(); o != nil {
		return o.verdict(), nil
	}
	var first *Objection
	for i, st := range j.States {
		if st.Disk.Bitmap == "" {
			continue
		}
		w := &witness{Judge: j, st: st}
		o, err := w.examine(ctx)
		if archive.IsDamage(err) {
			o, err = damaged(st, err), nil
		}
		if err != nil {
			return Verdict{}, err
		}
		if q.WithData && !st.HasData() && (o == nil || !o.All) {
			continue // a witness, and nothing to build on
		}
		if o == nil && !st.HasData() {
			// The archived data before it may testify against all bitmaps.
			if o, err = j.askOlderArchive(ctx, j.States[i+1:]); err != nil {
				return Verdict{}, err
			}
		}
		if o == nil {
			if q.Since == "" || q.Since == st.Manifest.Checkpoint {
				return w.verdict(st), nil
			}
			if !st.HasData() {
				continue // no archive leads from here to the one that was asked for
			}
			return j.judgeLine(ctx, q.Since, w)
		}
		if w.dirty != nil && st.HasData() {
			o.accused = &Accused{st, w.dirty}
		}
		// The newest bitmap that is in the image at all tells most; one that
		// is merely absent says little beside it.
		if first == nil || first.Code == ReasonMissing && o.Code != ReasonMissing {
			first = o
		}
		if o.All {
			return o.verdict(), nil
		}
	}
	if first == nil {
		first = object(ReasonMissing, "no earlier backup of this disk added a bitmap")
	}
	return first.verdict(), nil
}

// damaged is the objection to an archive of which something is damaged.
func damaged(st chain.DiskState, err error) *Objection {
	if errors.As(err, new(*NamedError)) {
		return object(ReasonArchive, "nothing can be built on the archive of checkpoint %s: its maps name what is damaged, if perhaps only for older checkpoints"+
			" (imgbackup check says which are affected): %v", st.Manifest.Checkpoint, err)
	}
	return object(ReasonArchive, "the archive of checkpoint %s is damaged: %v", st.Manifest.Checkpoint, err)
}

// askOlderArchive examines the newest of the older archived states whose bitmap
// is in the image, for an objection to every bitmap.
func (j *Judge) askOlderArchive(ctx context.Context, older chain.States) (*Objection, error) {
	for _, st := range older {
		if !st.HasData() || st.Disk.Bitmap == "" {
			continue
		}
		w := &witness{Judge: j, st: st}
		o, err := w.examine(ctx)
		switch {
		case archive.IsDamage(err):
			continue
		case err != nil:
			return nil, err
		case o == nil:
			return nil, nil
		case o.All:
			return o, nil
		}
	}
	return nil, nil
}

// judgeLine serves an increment since an older checkpoint than the one whose
// bitmap was found good: either the older one's own bitmap stands every check,
// or the archived deltas link the two without a gap, and their ranges are
// united with the bitmap's.
func (j *Judge) judgeLine(ctx context.Context, since string, newest *witness) (Verdict, error) {
	goal, ok := j.States.Named(since)
	if !ok {
		return object(ReasonNoCheckpoint, "no checkpoint %s of this disk is recorded", since).verdict(), nil
	}
	against := object(ReasonMissing, "checkpoint %s added no bitmap", since)
	if goal.Disk.Bitmap != "" {
		w := &witness{Judge: j, st: goal}
		o, err := w.examine(ctx)
		switch {
		case archive.IsDamage(err):
			// The line may lead there all the same.
		case err != nil:
			return Verdict{}, err
		case o == nil:
			return w.verdict(goal), nil
		case o.All:
			return o.verdict(), nil
		default:
			against = o
		}
	}
	if goal.Manifest.Sequence > newest.st.Manifest.Sequence || !goal.HasData() {
		return against.verdict(), nil // no line leads forward, or to what is no archive
	}
	line, o, err := j.Line(ctx, goal, newest.st)
	switch {
	case err != nil:
		return Verdict{}, err
	case o != nil:
		return o.verdict(), nil
	}
	size := j.Image.Size()
	v := newest.verdict(goal)
	v.Dirty = bitmapstore.Union(append(line, newest.changed())...).Clip(size)
	v.Dirty = bitmapstore.Union(v.Dirty, bitmapstore.Between(j.SmallestSince(goal, size), size), goal.Disk.LostRuns().Clip(size))
	v.Reason = fmt.Sprintf("the recorded changes from %s to %s and the bitmap since then agree with every witness",
		goal.Manifest.Checkpoint, newest.st.Manifest.Checkpoint)
	return v, nil
}

// Line returns what the archives record to have changed from one state to a
// later one, archive by archive, also across those that were forgotten; or why they do not
// tell.
func (j *Judge) Line(ctx context.Context, goal, from chain.DiskState) ([]bitmapstore.Runs, *Objection, error) {
	var sets []bitmapstore.Runs
	for at := from; at.Manifest.UUID != goal.Manifest.UUID; {
		var next chain.DiskState
		var ok bool
		if base := at.Disk.IncrementalFrom; base != nil {
			next, ok = j.States.WithUUID(base.UUID)
		}
		if between := mapsSince(at.Disk, goal.Disk); !ok && between != nil {
			// Who lies between is forgotten, and its deltas are at's, too.
			more, o, err := j.deltas(ctx, at, between)
			return append(sets, more...), o, err
		}
		if !ok {
			return nil, object(ReasonBrokenLine,
				"checkpoint %s has no usable bitmap in the image, and the archive of %s does not build on it",
				goal.Manifest.Checkpoint, at.Manifest.Checkpoint), nil
		}
		changed, err := j.Archive.Delta(ctx, at.Disk)
		switch {
		case err != nil:
			return nil, nil, err
		case changed == nil:
			return nil, object(ReasonBrokenLine, "the archive of %s does not tell what changed since %s",
				at.Manifest.Checkpoint, next.Manifest.Checkpoint), nil
		}
		sets = append(sets, changed)
		at = next
	}
	return sets, nil, nil
}

// mapsSince lists disks each of which begins with one of the maps that a disk has on top
// of all those of an older one, the newest first; nil: it does not build on that.
func mapsSince(disk, older *chain.Disk) []*chain.Disk {
	n := len(disk.Maps) - len(older.Maps)
	if n <= 0 || len(older.Maps) == 0 || !slices.Equal(disk.Maps[n:], older.Maps) {
		return nil
	}
	var all []*chain.Disk
	for i := range n {
		d := *disk
		d.Maps = disk.Maps[i:]
		all = append(all, &d)
	}
	return all
}

// deltas returns what the first map of each disk says to have changed.
func (j *Judge) deltas(ctx context.Context, at chain.DiskState, disks []*chain.Disk) ([]bitmapstore.Runs, *Objection, error) {
	var sets []bitmapstore.Runs
	for _, d := range disks {
		changed, err := j.Archive.Delta(ctx, d)
		switch {
		case err != nil:
			return nil, nil, err
		case changed == nil:
			return nil, object(ReasonBrokenLine, "the archive of %s does not tell what changed before it", at.Manifest.Checkpoint), nil
		}
		sets = append(sets, changed)
	}
	return sets, nil, nil
}

// Since returns what may have changed since a state whose bitmap is believed, or
// why it is not. What is damaged in the archive is an [archive.DamageError].
func (j *Judge) Since(ctx context.Context, st chain.DiskState) (bitmapstore.Runs, *Objection, error) {
	if o := j.objection(); o != nil {
		return nil, o, nil
	}
	if st.Disk.Bitmap == "" {
		return nil, object(ReasonMissing, "the checkpoint added no bitmap"), nil
	}
	w := &witness{Judge: j, st: st}
	o, err := w.examine(ctx)
	if o != nil || err != nil {
		return nil, o, err
	}
	return w.changed(), nil, nil
}

// Sound examines the bitmaps of ours in the active layer, so that their records
// can say later what changed between two checkpoints. It returns the names of
// those that stand every check, and whether each alone is all that changed
// since. With withoutData, only those of checkpoints without data are asked for:
// archives are compared by what they hold.
func (j *Judge) Sound(ctx context.Context, withoutData bool) (map[string]bool, error) {
	sound := make(map[string]bool)
	if o := j.objection(); o != nil {
		return sound, nil
	}
	for _, st := range j.States {
		if j.Image.Layers[0].Bitmap(st.Disk.Bitmap) == nil || withoutData && st.HasData() {
			continue
		}
		w := &witness{Judge: j, st: st}
		o, err := w.examine(ctx)
		switch {
		case archive.IsDamage(err):
		case err != nil:
			return nil, err
		case o == nil:
			sound[st.Disk.Bitmap] = w.tellsAlone()
		case o.All:
			return make(map[string]bool), nil
		}
	}
	return sound, nil
}
