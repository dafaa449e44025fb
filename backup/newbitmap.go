// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// chooseBitmap decides whether the new checkpoint's bitmap is added to the
// disk's image. Where it cannot be, an archive goes on without one: it is the
// data that is to be saved. A checkpoint without data is its bitmaps.
func (s *session) chooseBitmap(ctx context.Context, d *disk, p *DiskPlan) error {
	switch {
	case s.req.Import != nil:
		p.NoBitmapReason = "it was imported: nothing is written into what others have left, so that the domain's next backup reads everything"
		return nil
	case s.req.NoCheckpoint:
		p.NoBitmapReason = "no bitmap was wanted (--no-checkpoint)"
		return nil
	case d.req.NoCheckpoint:
		p.NoBitmapReason = "no bitmap was wanted for this disk"
		return nil
	}
	if err := s.checkLibvirtName(d.image); err != nil {
		return err
	}
	why, expected, err := refusesBitmap(ctx, d.image.Layers[0])
	switch {
	case err != nil:
		return err
	case why == nil:
		p.AddsBitmap = true
	case s.onlyBitmaps:
		return fmt.Errorf("the checkpoint cannot be made: %w (leave the disk out)", why)
	case expected:
		p.NoBitmapReason = why.Error()
	default:
		p.goWithoutBitmap(why)
	}
	return nil
}

// wantsBitmap reports whether the image of a disk gets a bitmap, unless something that takes long
// to be found out speaks against it.
func (s *session) wantsBitmap(d *disk) bool { return s.wantsBitmapIn(d, d.image) }

func (s *session) wantsBitmapIn(d *disk, image *qcow2.Image) bool {
	return s.records && !s.req.NoCheckpoint && !d.req.NoCheckpoint && image.Layers[0].CheckAddBitmap() == nil
}

// refusesBitmap returns the reason why a bitmap cannot be added to an image whose
// data can be read, or nil, and whether no other is to be expected of an image of
// its format. Its error is one that ends the backup.
func refusesBitmap(ctx context.Context, active *qcow2.Layer) (why error, expected bool, err error) {
	if by := active.ReadBy(); by != "" {
		return errors.New("the image is read by " + by), true, nil
	}
	if active.Format == qcow2.Raw {
		return errors.New("raw images hold no bitmaps"), true, nil
	}
	if err := active.CheckAddBitmap(); err != nil {
		return err, false, nil
	}
	if err := active.CheckWritable(); err != nil {
		return err, false, nil
	}
	if err := (qemu.Img{}).CheckInstalled(); err != nil {
		return fmt.Errorf("nothing is written into the image: %w", err), false, nil
	}
	// Nothing in the header need tell that reference counts are wrong: other programs and
	// failing disks leave no mark, and QEMU commits an overlay into an image with lazy
	// counts that was not closed, and then marks it closed. So they are looked at each time.
	err = CheckRefcounts(ctx, active)
	if endsBackup(ctx, err) {
		return nil, false, err
	}
	if err != nil {
		return err, false, nil
	}
	return active.CheckRoom(active.BitmapGranularity()), false, nil
}

// endsBackup reports whether an error that a qemu-img ended with says more than
// that the image gets no bitmap.
func endsBackup(ctx context.Context, err error) bool {
	var inUse *qemu.InUseError
	return err != nil && (ctx.Err() != nil || errors.As(err, &inUse))
}

// goWithoutBitmap notes why an image that could hold the new bitmap does not get
// it, and what that costs.
func (p *DiskPlan) goWithoutBitmap(why error) {
	cost := "everything"
	switch {
	case p.verdict.Trusted:
		// The bitmap that this backup rests on stays, and records on.
		cost = "what changed since " + p.Since.Name + " once more"
	case p.Requested == Full: // older bitmaps were not asked for
		cost = "more than what changes from now on"
	}
	p.AddsBitmap, p.lacking = false, true
	p.NoBitmapReason = fmt.Sprintf("%v; so the next backup has to read %s", why, cost)
}

// noteLacking tells which images ought to have got a bitmap and did not.
func (s *session) noteLacking(plan *Plan) {
	for _, p := range plan.Disks {
		if p.lacking {
			s.hooks.note("disk %s: no bitmap was added: %s", p.Disk, p.NoBitmapReason)
		}
	}
}

// addBitmaps adds the new checkpoint's bitmap to every image that can hold it.
// From then on every guest write is recorded.
func (s *session) addBitmaps(ctx context.Context, plan *Plan) error {
	name := s.point.bitmap()
	for i, p := range plan.Disks {
		if !p.AddsBitmap {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.hooks.step(StepAdd)
		err := s.addBitmap(ctx, s.disks[i], p, name)
		if err == nil && p.AddsBitmap {
			err = s.addForLibvirt(ctx, s.disks[i])
		}
		if err != nil {
			return &chain.DiskError{Disk: p.Disk, Err: err}
		}
	}
	return nil
}

// addBitmap adds a bitmap to a disk's image. Since the look at the image another
// image's bitmap may have taken the room on their file system, or who else writes
// there. A qemu-img that fails all the same is no reason to have no backup: if it
// left the image's bitmaps as they were, an archive goes on without a new one.
func (s *session) addBitmap(ctx context.Context, d *disk, p *DiskPlan, name string) error {
	err := qcow2.WithTopLayer(d.active, func(l *qcow2.Layer) error { return l.CheckRoom(d.granularity) })
	if d.asked = err == nil; d.asked {
		err = d.guard.BitmapAdd(ctx, d.active, name, d.granularity)
	}
	if err == nil || s.onlyBitmaps || ctx.Err() != nil {
		return err
	}
	if d.asked && !untouched(err) {
		if _, rerr := RemoveBitmap(ctx, d.guard, d.active, name); rerr != nil {
			return errors.Join(err, rerr)
		}
		if verr := qcow2.VerifyBitmapRemoved(d.active, d.before, name); verr != nil {
			return fmt.Errorf("%w; it did harm: %w", err, verr)
		}
	}
	p.goWithoutBitmap(err)
	return nil
}

// addForLibvirt adds the second bitmap, if one is wanted.
func (s *session) addForLibvirt(ctx context.Context, d *disk) error {
	name := s.libvirtBitmap()
	if name == "" {
		return nil
	}
	err := qcow2.WithTopLayer(d.active, func(l *qcow2.Layer) error { return l.CheckRoom(d.granularity) })
	if err != nil {
		return err
	}
	return d.guard.BitmapAdd(ctx, d.active, name, d.granularity)
}

// untouched reports whether a bitmap could not be added because qemu-img did not
// come to the image. If somebody else has it, and does more than read, then it will
// not be locked for reading, either.
func untouched(err error) bool { return errors.As(err, new(*qemu.InUseError)) }
