// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// keptForgotten is how many forgotten checkpoints are kept of which no more than the
// bitmaps' names is of use: beyond it the oldest are dropped, and a bitmap of theirs in
// some very old copy of an image is nobody's known.
const keptForgotten = 4096

// rememberTries bounds how often what another writes meanwhile is read again.
const rememberTries = 20

// Remember notes what is to stay known of checkpoints that are about to be forgotten,
// all of one domain; stay are those of its checkpoints that are not. It must have
// returned nil before the first manifest is removed. It may be repeated.
func (r *Repository) Remember(ctx context.Context, domain string, gone, stay []*Manifest) error {
	if err := r.CheckWritable(); err != nil {
		return err
	}
	for range rememberTries {
		f, old, err := r.readForgotten(ctx, domain)
		if err != nil {
			return err
		}
		f.add(gone, stay)
		again, err := r.putForgotten(ctx, f, old)
		if !again || err != nil {
			return err
		}
	}
	return fmt.Errorf("what stays known of forgotten checkpoints of domain %s was changed %d times by others meanwhile", domain, rememberTries)
}

// putForgotten stores a list in place of the old bytes; again: others stand there by now.
func (r *Repository) putForgotten(ctx context.Context, f *Forgotten, old []byte) (again bool, err error) {
	if err := f.Validate(); err != nil {
		return false, err
	}
	stored, err := f.mapTexts(escapeText)
	if err != nil {
		return false, err
	}
	key := forgottenKey(f.Domain)
	data, err := r.seal(key, stored)
	if err != nil || r.sameContent(key, data, old) {
		return false, err
	}
	err = r.unlessRotating(ctx, "forget", func(ctx context.Context) error {
		if old == nil {
			return r.create(ctx, key, data, nil)
		}
		return r.swap(ctx, key, old, data, nil)
	})
	if errors.As(err, new(*standsError)) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("note what stays known of forgotten checkpoints of domain %s: %w", f.Domain, err)
	}
	return false, nil
}

func byAge(a, b ForgottenCheckpoint) int {
	return cmp.Or(cmp.Compare(a.Sequence, b.Sequence), cmp.Compare(a.UUID, b.UUID))
}

// TakeIn adds to what a domain's forgotten checkpoints left what those of the same domain in
// another repository left, as far as it is of use to the checkpoints that stay here. It is
// for who holds a lease. Before anything is stored bring is called, unless nothing is new: it
// has to see to it that all is there that the list names, and reports whether to go on. The
// number of checkpoints is returned that were not known here.
func (r *Repository) TakeIn(
	ctx context.Context, theirs *Forgotten, stay []*Manifest, bring func(ctx context.Context, next *Forgotten) (bool, error),
) (int, error) {
	useful := *theirs
	useful.Checkpoints = slices.Clone(theirs.Checkpoints)
	useful.tidy(stay)
	for range rememberTries {
		f, old, err := r.readForgotten(ctx, theirs.Domain)
		if err != nil {
			return 0, err
		}
		before := slices.Clone(f.Checkpoints)
		f.take(&useful, stay)
		if reflect.DeepEqual(before, f.Checkpoints) {
			return 0, nil
		}
		added := len(f.Checkpoints) - len(before)
		if goOn, err := bring(ctx, f); err != nil || !goOn {
			return added, err
		}
		again, err := r.putForgotten(ctx, f, old)
		if !again || err != nil {
			return added, err
		}
	}
	return 0, fmt.Errorf("what stays known of forgotten checkpoints of domain %s was changed %d times by others meanwhile", theirs.Domain, rememberTries)
}

// take adds what another list knows, and drops nothing; more names than are kept it does not
// add.
func (f *Forgotten) take(theirs *Forgotten, stay []*Manifest) {
	for i := range theirs.Checkpoints {
		p := &theirs.Checkpoints[i]
		at := slices.IndexFunc(f.Checkpoints, func(own ForgottenCheckpoint) bool { return own.UUID == p.UUID })
		switch {
		case at < 0 && (len(f.Checkpoints) < keptForgotten || !p.onlyNames(stay)):
			f.Checkpoints = append(f.Checkpoints, *p)
		case at >= 0:
			own := &f.Checkpoints[at]
			own.Disks = slices.Clone(own.Disks)
			for j := range own.Disks {
				own.Disks[j].take(p.Disks)
			}
		}
	}
	slices.SortFunc(f.Checkpoints, byAge)
}

// take adds what another list says that the same checkpoint saw of the disk.
func (d *ForgottenDisk) take(theirs []ForgottenDisk) {
	for i := range theirs {
		if theirs[i].Name != d.Name {
			continue
		}
		d.RecordsLost = d.RecordsLost || theirs[i].RecordsLost
		for _, w := range theirs[i].Witnesses {
			if !slices.Contains(d.Witnesses, w) {
				d.Witnesses = append(slices.Clone(d.Witnesses), w)
			}
		}
	}
}

// add takes in checkpoints that are about to be forgotten, and drops what is of no use
// to those that stay.
func (f *Forgotten) add(gone, stay []*Manifest) {
	for _, m := range gone {
		p := forgottenOf(m)
		at := slices.IndexFunc(f.Checkpoints, func(own ForgottenCheckpoint) bool { return own.UUID == m.UUID })
		if at < 0 {
			f.Checkpoints = append(f.Checkpoints, p)
			continue
		}
		// Another repository has told of it, as far as that was of use there; or a forget that
		// was cut off has, and a repair has changed it since.
		own := &f.Checkpoints[at]
		for j := range own.Disks {
			own.Disks[j].take(p.Disks)
		}
	}
	f.tidy(stay)
}

// tidy sorts the checkpoints, and drops what is of no use to those that stay.
func (f *Forgotten) tidy(stay []*Manifest) {
	slices.SortFunc(f.Checkpoints, byAge)
	for i := range f.Checkpoints {
		f.reduce(i, stay)
	}
	f.Checkpoints = slices.DeleteFunc(f.Checkpoints, func(p ForgottenCheckpoint) bool { return p.nothing(stay) })
	tooMany := len(f.Checkpoints) - keptForgotten
	f.Checkpoints = slices.DeleteFunc(f.Checkpoints, func(p ForgottenCheckpoint) bool {
		drop := tooMany > 0 && p.onlyNames(stay)
		if drop {
			tooMany--
		}
		return drop
	})
}

// forgottenOf is all that may stay known of a checkpoint.
func forgottenOf(m *Manifest) ForgottenCheckpoint {
	p := ForgottenCheckpoint{Checkpoint: m.Checkpoint, UUID: m.UUID, Sequence: m.Sequence, Kind: m.Kind}
	for i := range m.Disks {
		d := &m.Disks[i]
		p.Disks = append(p.Disks, ForgottenDisk{
			Name: d.Name, RenamedFrom: d.RenamedFrom, Bitmap: d.OurBitmap(), LibvirtBitmap: d.LibvirtBitmap, Size: d.Size, Below: len(d.Backing), Witnesses: d.Witnesses,
			RecordsLost: d.RecordsLost,
		})
	}
	return p
}

// reduce leaves of what the i-th checkpoint saw of bitmaps only that of checkpoints
// that stay, and of these no more than is not told by a later one: one that found the
// bitmap sound had asked all that was known then.
func (f *Forgotten) reduce(i int, stay []*Manifest) {
	p := &f.Checkpoints[i]
	for j := range p.Disks {
		d := &p.Disks[j]
		d.Witnesses = slices.DeleteFunc(slices.Clone(d.Witnesses), func(b BitmapRecord) bool {
			return !bitmapStays(stay, b.Name) || f.toldLater(p.Sequence, b, stay)
		})
		if len(d.Witnesses) == 0 {
			d.Witnesses = nil
		}
	}
}

// bitmapStays reports whether a checkpoint that stays added the bitmap.
func bitmapStays(stay []*Manifest, bitmap string) bool {
	return slices.ContainsFunc(stay, func(m *Manifest) bool {
		return slices.ContainsFunc(m.Disks, func(d Disk) bool { return d.Bitmap == bitmap })
	})
}

// toldLater reports whether a checkpoint after that of a sequence recorded the same
// bitmap and found it sound.
func (f *Forgotten) toldLater(sequence int64, b BitmapRecord, stay []*Manifest) bool {
	sound := func(witnesses []BitmapRecord) bool {
		return slices.ContainsFunc(witnesses, func(w BitmapRecord) bool {
			return w.Name == b.Name && w.Sound && w.Layer == b.Layer && w.LayerPath == b.LayerPath
		})
	}
	for _, m := range stay {
		for i := range m.Disks {
			if m.Sequence > sequence && sound(m.Disks[i].Witnesses) {
				return true
			}
		}
	}
	for _, p := range f.Checkpoints {
		for i := range p.Disks {
			if p.Sequence > sequence && sound(p.Disks[i].Witnesses) {
				return true
			}
		}
	}
	return false
}

// nothing reports whether nothing of the checkpoint is of use.
func (p *ForgottenCheckpoint) nothing(stay []*Manifest) bool {
	named := slices.ContainsFunc(p.Disks, func(d ForgottenDisk) bool { return d.Bitmap != "" })
	return !named && p.onlyNames(stay)
}

// onlyNames reports whether nothing but the names of its bitmaps is of use: neither
// what it saw of other bitmaps, or that this was lost, nor that a disk of an older checkpoint
// that stays was smaller at it, or had another name before.
func (p *ForgottenCheckpoint) onlyNames(stay []*Manifest) bool {
	for _, d := range p.Disks {
		if len(d.Witnesses) > 0 || d.RenamedFrom != "" {
			return false
		}
		for _, m := range stay {
			older, ok := m.Disk(d.Name)
			if ok && (m.Sequence < p.Sequence && older.Size > d.Size || m.Sequence <= p.Sequence && d.RecordsLost) {
				return false
			}
		}
	}
	return true
}

// Delete removes a checkpoint without data from a repository, as Forget does, under a lease; its bitmaps
// are gone from the images already, or are meant to stay there: nobody is to take them out
// because of this.
func Delete(ctx context.Context, h *Hold, m *Manifest) error {
	r := h.repo
	if m.Kind != KindCheckpoint {
		return fmt.Errorf("checkpoint %s of domain %s holds an archive", m.Checkpoint, m.Domain)
	}
	all, _, err := r.Manifests(ctx, m.Domain)
	if err != nil {
		return err
	}
	stay := slices.DeleteFunc(all, func(o *Manifest) bool { return o.UUID == m.UUID })
	nameless := *m
	nameless.Disks = slices.Clone(m.Disks)
	for i := range nameless.Disks {
		nameless.Disks[i].Bitmap, nameless.Disks[i].LibvirtBitmap = "", ""
	}
	if err := r.Remember(ctx, m.Domain, []*Manifest{&nameless}, stay); err != nil {
		return err
	}
	return h.Forget(ctx, m)
}

// Forget forgets checkpoints of one domain, several at once; all are the domain's
// manifests, gone among them. What others may still have to know of them is noted before.
// tell is called after each. Of an error, those that were told of are forgotten, and the
// others stand, or may be gone when it is an outage. Errors are those of
// [Hold.Forget].
func Forget(ctx context.Context, r *Repository, all, gone []*Manifest, tell func(*Manifest)) error {
	if len(gone) == 0 {
		return nil
	}
	isGone := func(m *Manifest) bool {
		return slices.ContainsFunc(gone, func(g *Manifest) bool { return g.UUID == m.UUID })
	}
	stay := slices.DeleteFunc(slices.Clone(all), isGone)
	if err := r.Remember(ctx, gone[0].Domain, gone, stay); err != nil {
		return err
	}
	var mu sync.Mutex // while tell is called, and one is taken
	next := func() (m *Manifest) {
		mu.Lock()
		defer mu.Unlock()
		if len(gone) > 0 {
			m, gone = gone[0], gone[1:]
		}
		return m
	}
	g, ctx := errgroup.WithContext(ctx)
	for range max(1, min(forgetters, len(gone)/forgetters)) { // each announces one at a time
		g.Go(func() error {
			for {
				more, err := r.forgetSome(ctx, next, func(m *Manifest) {
					mu.Lock()
					defer mu.Unlock()
					tell(m)
				})
				if !more || err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// forgetSome forgets what next returns under one lease, until that is nil; more: or until the
// lease has to stay for one of them, so that others need another.
func (r *Repository) forgetSome(ctx context.Context, next func() *Manifest, tell func(*Manifest)) (more bool, err error) {
	err = r.Under(ctx, "forget", func(h *Hold) error {
		for m := next(); m != nil && !more; {
			if err := h.forgetAny(h.Context(), m); err != nil {
				return err
			}
			tell(m)
			if more = h.unknown; !more {
				m = next()
			}
		}
		return nil
	})
	return more, err
}

// forgetters is how many checkpoints of many are forgotten at once, each under a lease of
// its own.
const forgetters = 8

// forgetAny forgets a checkpoint whatever its revision is, unless it has other tags by
// now: by these it was decided that it goes.
func (h *Hold) forgetAny(ctx context.Context, m *Manifest) error {
	for try := 1; ; try++ {
		err := h.Forget(ctx, m)
		var revised *RevisedError
		if !errors.As(err, &revised) || try == retags || !slices.Equal(m.Tags, revised.Manifest.Tags) {
			return err
		}
		m = revised.Manifest // repacked
	}
}
