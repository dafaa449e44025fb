// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"fmt"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// libvirt demands that the bitmap of a checkpoint has the checkpoint's name alone, which
// is no identity: deleted and made again, by whomever, it is another. So where a
// checkpoint is to be libvirt's, too, it gets a second bitmap, of that name, for libvirt;
// ours is what we go by. Both record the same from the same moment on. That is how the
// second one is known to be ours, and is removed: as long as it shows just what the first
// one shows.

// libvirtBitmap is the name of the second bitmap; empty: none is wanted.
func (s *session) libvirtBitmap() string {
	if !s.req.LibvirtNames {
		return ""
	}
	return s.point.name
}

// checkLibvirtName returns an error if an image of the chain has a bitmap of the name that
// libvirt is to know the checkpoint by.
func (s *session) checkLibvirtName(image *qcow2.Image) error {
	name := s.libvirtBitmap()
	if name == "" {
		return nil
	}
	for _, l := range image.Layers {
		if l.Bitmap(name) != nil {
			return fmt.Errorf("%s has a bitmap %s already, which libvirt would take for this checkpoint's: give the checkpoint another name", l.Path, name)
		}
	}
	return nil
}

// added are the names of the bitmaps that each image gets, ours first.
func (s *session) added() []string {
	all := []string{s.point.bitmap()}
	if name := s.libvirtBitmap(); name != "" {
		all = append(all, name)
	}
	return all
}

// takeOut removes from an image what an intent says was added to it.
func takeOut(ctx context.Context, guard *qemu.ImageFlock, in *chain.Intent, image chain.IntentImage) (removed bool, err error) {
	if ours := chain.BitmapName(in.Checkpoint, in.CheckpointUUID); image.Add != ours {
		removed, _, err := RemoveLibvirtBitmap(ctx, guard, image.Path, image.Add, ours)
		return removed, err
	}
	return RemoveBitmap(ctx, guard, image.Path, image.Add)
}

// RemoveLibvirtBitmap removes the bitmap by which libvirt was to know a checkpoint, if it is
// the one that was made beside ours. Another one of that name, and one that can't be told
// from another, stays: held, and not removed. guard is the flock on the image.
func RemoveLibvirtBitmap(ctx context.Context, guard *qemu.ImageFlock, path, name, ours string) (removed, held bool, err error) {
	twins := false
	err = qcow2.WithTopLayer(path, func(l *qcow2.Layer) (err error) {
		a, b := l.Bitmap(name), l.Bitmap(ours)
		held = a != nil
		twins, err = recordTheSame(a, b)
		return err
	})
	if err != nil || !twins {
		return false, held, err
	}
	removed, err = RemoveBitmap(ctx, guard, path, name)
	return removed, held, err
}

// recordTheSame reports whether two bitmaps of an image can have been made together.
func recordTheSame(a, b *qcow2.Bitmap) (bool, error) {
	if a == nil || b == nil || a.InUse || b.InUse || a.Problem != nil || b.Problem != nil ||
		a.Enabled != b.Enabled || a.Granularity != b.Granularity {
		return false, nil
	}
	return bitmapstore.Equal(a.Runs(), b.Runs())
}

// removeOurs removes a checkpoint's bitmap from a disk's image, and before it the one that
// was made beside it.
func (s *session) removeOurs(ctx context.Context, d *disk, name string) error {
	twin := besides(s.withGone(), name)
	_, stays, err := removeBoth(ctx, d.guard, d.active, name, twin)
	if stays {
		s.hooks.note("disk %s: the bitmap %s is no longer the one that was made beside %s, and stays", d.req.Disk, twin, name)
	}
	return err
}

// removeBoth removes a checkpoint's bitmap from an image, and before it the one that was made
// beside it, if any was; stays: another one has its name by now.
func removeBoth(ctx context.Context, guard *qemu.ImageFlock, path, name, twin string) (removed, stays bool, err error) {
	if twin != "" {
		gone, held, err := RemoveLibvirtBitmap(ctx, guard, path, twin, name)
		if err != nil {
			return false, false, err
		}
		stays = held && !gone
	}
	removed, err = RemoveBitmap(ctx, guard, path, name)
	return removed, stays, err
}

// besides is the bitmap that was made for libvirt beside one of ours; empty: none was.
func besides(all []*chain.Manifest, name string) string {
	for _, m := range all {
		for i := range m.Disks {
			if d := &m.Disks[i]; d.Bitmap == name && d.LibvirtBitmap != "" {
				return d.LibvirtBitmap
			}
		}
	}
	return ""
}
