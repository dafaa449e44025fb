// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Images can be cloned under the locks, when the new bitmap stands and was looked at: then the
// locks are given up, and the clones are read while a VM runs. From that moment on nothing writes
// to an image any more in this run, however it ends: a bitmap that has to go again, and those that
// are not needed any more, are left to the next run, which the intent tells. See "Clones" in
// docs/design.md.

// Clone says whether the images of an archive are cloned, to be read while a VM has them.
type Clone string

const (
	// CloneNever reads the images under their locks. It is what the empty Clone means.
	CloneNever Clone = "never"
	// CloneAuto clones where that can be done and there is something to be read.
	CloneAuto Clone = "auto"
	// CloneAlways fails where it can't be done.
	CloneAlways Clone = "always"
)

// ParseClone returns the Clone that s names.
func ParseClone(s string) (Clone, error) {
	switch c := Clone(s); c {
	case CloneNever, CloneAuto, CloneAlways:
		return c, nil
	}
	return "", fmt.Errorf("clone %q: want auto, always or never", s)
}

// worthClone is how much has to be read of a domain for [CloneAuto] to clone it, bytes: to read
// less takes no longer than to clone.
const worthClone = 16 << 20

// wantsClone reports whether the images may be cloned.
func (r *Request) wantsClone() bool { return r.Clone == CloneAuto || r.Clone == CloneAlways }

func (r *Request) checkClone() error {
	if r.Clone != "" {
		if _, err := ParseClone(string(r.Clone)); err != nil {
			return usage.Wrap(err)
		}
	}
	if r.NoLock && r.Clone == CloneAlways {
		return usage.Errorf("--clone and --no-lock exclude each other: without locks nobody knows when a VM may have the images")
	}
	return nil
}

// planClone decides whether the images are cloned. Nothing has been written then.
func (s *archiver) planClone(plan *Plan) error {
	s.clones, s.notCloned, s.commanded = false, "", nil
	if !s.req.wantsClone() {
		return nil
	}
	err := s.tryClone()
	switch {
	case s.req.Clone == CloneAlways:
		s.clones = err == nil
		return err
	case s.req.NoLock:
		s.notCloned = "there are no locks (--no-lock)"
	case err != nil:
		s.notCloned = err.Error()
	case plan.readBytes() < worthClone:
		s.notCloned = "there is little to read"
	default:
		s.clones = true
	}
	if !s.clones {
		s.commanded = nil // none of them is made, and so none is released
	}
	return nil
}

func (p *Plan) readBytes() (sum int64) {
	for _, d := range p.Disks {
		sum += d.ReadBytes
	}
	return sum
}

// tryClone returns the reason why the images can't be cloned, as far as that is known before.
func (s *session) tryClone() error {
	for _, d := range s.disks {
		if err := d.image.TryClone(s.commands(d)); err != nil {
			return &chain.DiskError{Disk: d.req.Disk, Err: cannotClone(err)}
		}
	}
	for _, f := range s.files {
		for _, o := range f.opened {
			if err := o.image.TryClone(copiesSmall); err != nil {
				return fmt.Errorf("%s: %w", f.req.Role, cannotClone(err))
			}
		}
	}
	return nil
}

// commands notes of the files of an image for which it is called that req.Cloner is to copy them.
func (s *session) commands(d *disk) func(*qcow2.File) bool {
	return func(f *qcow2.File) bool {
		if s.req.Cloner != nil {
			s.commanded = append(s.commanded, chain.IntentClone{Disk: d.req.Disk, Image: d.image.Layers[0].Path, Path: f.Path()})
		}
		return s.req.Cloner != nil
	}
}

func cannotClone(err error) error {
	return fmt.Errorf("it can't be cloned, as XFS (reflink=1), Btrfs and bcachefs do it: %w", err)
}

// release clones the images and gives them up, if they are to be cloned; stop ends the limit on
// the time for which they are locked. What the images hold has been looked at under the locks, and
// is compared once more before these go.
func (a *attempt) release(ctx context.Context, stop func()) error {
	if !a.clones {
		return nil
	}
	a.hooks.step(StepClone)
	all, err := a.cloneAll(ctx)
	if err != nil && a.req.Clone == CloneAuto {
		a.clones, a.notCloned = false, err.Error()
		a.hooks.note("the images could not be cloned, and stay locked while they are read: %v", err)
		return all.close()
	}
	if err == nil {
		err = a.compareIdentity(nothingCommitted)
	}
	if err != nil {
		return errors.Join(err, all.close())
	}
	for _, d := range a.disks {
		d.seen = a.look(d) // how the original was: its path may soon be another file's
	}
	// From here on a VM may have the images.
	a.released = true
	if err := all.use(); err != nil {
		return err
	}
	stop()
	a.locked = time.Since(a.lockedSince)
	a.hooks.step(StepReleased)
	return nil
}

// clones are those of all that a run reads.
type clones []*qcow2.Clones

func (a *attempt) cloneAll(ctx context.Context) (all clones, err error) {
	add := func(image *qcow2.Image, instead qcow2.Copier) error {
		k, err := image.Clone(instead)
		if err == nil {
			all = append(all, k)
		}
		return err
	}
	for _, d := range a.disks {
		if err := add(d.image, a.commandedCopy(ctx, d)); err != nil {
			return all, &chain.DiskError{Disk: d.req.Disk, Err: cannotClone(err)}
		}
	}
	for _, f := range a.files {
		for _, o := range f.opened {
			if err := add(o.image, copySmall); err != nil {
				return all, fmt.Errorf("%s: %w", f.req.Role, cannotClone(err))
			}
		}
	}
	return all, nil
}

func (c clones) close() error {
	var errs []error
	for _, k := range c {
		errs = append(errs, k.Close())
	}
	return errors.Join(errs...)
}

func (c clones) use() error {
	var errs []error
	for _, k := range c {
		errs = append(errs, k.Use())
	}
	return errors.Join(errs...)
}

// copiesSmall reports whether copySmall copies a file: firmware's variables, say, which lie on
// another file system than the disks.
func copiesSmall(f *qcow2.File) bool { return f.Opened().Size <= archive.MaxFile }

func copySmall(f *qcow2.File) (*os.File, error) {
	size := f.Opened().Size
	if !copiesSmall(f) {
		return nil, fmt.Errorf("and to copy its %d bytes takes longer than the images should be locked for", size)
	}
	return spool.Nameless("a copy of "+f.Path(), io.NewSectionReader(f, 0, size))
}

// compareClones fails when a clone is no longer what it was: nobody else should have it.
func (s *session) compareClones() error {
	for _, d := range s.disks {
		for _, layer := range d.image.Layers {
			for _, f := range layer.Files() {
				if err := f.CheckClone(); err != nil {
					return &chain.DiskError{Disk: d.req.Disk, Err: err}
				}
			}
		}
	}
	for _, f := range s.files {
		for _, o := range f.opened {
			if err := o.source().CheckClone(); err != nil {
				return fmt.Errorf("%s: %w", f.req.Role, err)
			}
		}
	}
	return nil
}

// leave leaves to the next run what an attempt that failed has done to images which a VM may have
// by now.
func (a *attempt) leave(err error) error {
	if len(a.intent.Images) == 0 {
		if len(a.intent.Clones) == 0 && len(a.commanded) > 0 {
			tidying, cancel := chain.Tidying(context.Background())
			defer cancel()
			if derr := a.repo.DeleteIntent(tidying, a.intent.Domain, a.intent.UUID); derr != nil {
				a.stays("the intent of what failed could not be removed", derr)
			}
		}
		return err
	}
	return errors.Join(err, &leftError{a.intent.Images[0].Add, a.intent.Domain})
}

// retireLater notes which bitmaps of ours no later backup needs: the next run removes them.
func (s *session) retireLater(plan *Plan, manifest *chain.Manifest) {
	for i, p := range plan.Disks {
		s.disks[i].retire = nil
		if p.AddsBitmap {
			s.disks[i].retire = s.retirable(p, manifest, names(s.disks[i].before))
		}
	}
}

// rest is the intent as it stays after the checkpoint was made, for the next run to remove old
// bitmaps; nil: there are none.
func (a *attempt) rest() *chain.Intent {
	if !a.released && len(a.intent.Clones) == 0 {
		return nil
	}
	in := *a.intent
	in.Complete, in.Images = true, nil
	for _, image := range a.intent.Images {
		if d := a.diskAt(image.Path); d != nil && image.Add == a.point.bitmap() && len(d.retire) > 0 {
			image.Retire = d.retire
			in.Images = append(in.Images, image)
		}
	}
	if in.Empty() {
		return nil
	}
	return &in
}
