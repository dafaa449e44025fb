// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// FlockWait is how long another holder of an image's flock is waited for. udev takes
// them on block devices for moments.
const FlockWait = time.Second

// ImagePath is the path under which manifests and intents know an image.
func ImagePath(path string) string {
	abs, err := sys.Abs(path)
	if err != nil {
		return path
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real
	}
	return abs
}

// GuardImage takes an image's flock and sees that no program has it open for writing;
// noLock goes on where the file system has no locks.
func GuardImage(ctx context.Context, path string, noLock bool) (*qemu.ImageFlock, error) {
	goesWithout := func(err error) bool { return noLock && errors.As(err, new(*qemu.NoLockError)) }
	g, err := qemu.FlockImage(ctx, path, FlockWait)
	if goesWithout(err) {
		g, err = qemu.Unlocked(path)
	}
	if err != nil {
		return nil, err
	}
	if err := qemu.ProbeWriter(path); err != nil && !goesWithout(err) {
		_ = g.Close() // opened for reading only
		return nil, err
	}
	return g, nil
}

// RemoveBitmap removes a bitmap of ours from an image, if the image holds it,
// and looks whether all others are as they were. guard is the flock on it. It
// reports whether the image held the bitmap.
func RemoveBitmap(ctx context.Context, guard *qemu.ImageFlock, path, name string) (held bool, err error) {
	var before []qcow2.BitmapState
	err = lockedTopLayer(ctx, path, qemu.LockWait, func(l *qcow2.Layer) error {
		held = l.Bitmap(name) != nil
		if !held {
			return nil
		}
		var err error
		if before, err = l.BitmapStates(); err != nil {
			return err
		}
		crashed := l.Header.Has(qcow2.IncompatDirty) || slices.ContainsFunc(before, func(b qcow2.BitmapState) bool { return b.InUse })
		if crashed {
			// Whoever did not close the image may have left wrong reference counts.
			if err := CheckRefcounts(ctx, l); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
		return l.CheckRoom(0)
	})
	if err != nil || !held {
		return held, err
	}
	if err := guard.BitmapRemove(ctx, path, name); err != nil {
		return held, err
	}
	return held, qcow2.VerifyBitmapRemoved(path, before, name)
}

// lockedTopLayer lets look see an image that no program has open for writing: one that a QEMU is
// just opening or closing may seem to have no bitmaps. Where there are no locks it goes without.
func lockedTopLayer(ctx context.Context, path string, wait time.Duration, look func(*qcow2.Layer) error) error {
	hold, err := qemu.HoldImage(ctx, path, wait)
	if errors.As(err, new(*qemu.NoLockError)) {
		return qcow2.WithTopLayer(path, look)
	}
	if err != nil {
		return err
	}
	return errors.Join(qcow2.WithTopLayer(path, look), hold.Close())
}

// CheckRefcounts returns the reason why a QEMU that stores bitmaps in the image might do it over
// guest data, or nil: it has wrong reference counts. They are counted here; what is odd about them
// is for qemu-img to judge. An image that another program has open is a [*qemu.InUseError].
func CheckRefcounts(ctx context.Context, l *qcow2.Layer) error {
	counted, err := l.CheckRefcounts(ctx)
	if err != nil || counted.Odd == "" {
		return err
	}
	check, err := qemu.Img{Wait: qemu.LockWait}.CheckRefcounts(ctx, l.Path)
	if err != nil {
		return fmt.Errorf("nothing is written into the image: %w", err)
	}
	if err := check.Err(); err != nil {
		return fmt.Errorf("nothing is written into the image: %w; qemu-img check -r all may repair it (keep a copy)", err)
	}
	return nil
}
