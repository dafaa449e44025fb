// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"errors"
	"time"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// Hold is an image that is locked before it is opened, so that nothing that is
// read out of it can be older than the locks.
type Hold struct{ lockFile }

// HoldImage takes on the image at path the locks that [Image.Lock] takes, with
// the same errors. Backing files are not locked: QEMU opens them for writing
// only together with the image above them.
func HoldImage(ctx context.Context, path string, wait time.Duration) (*Hold, error) {
	file, err := openToLock(path)
	if err != nil {
		return nil, err
	}
	h := &Hold{lockFile{path: path, file: file}}
	if err := sys.Retry(ctx, wait, conflict, func() error { return lockAll([]lockFile{h.lockFile}) }); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return h, nil
}

// Close releases the locks.
func (h *Hold) Close() error { return errors.Join(unlockAll([]lockFile{h.lockFile}), h.file.Close()) }

// WithTopLayer opens a qcow2 image without its backing files, and without
// claiming a block device, for do to look at its header and bitmaps. Guest
// data cannot be read.
func WithTopLayer(path string, do func(*Layer) error) error { return withTopLayer(path, do) }

// Device tells whether the layer lies on a block device.
func (l *Layer) Device() bool { return l.file.device }

// BitmapAdd is [BitmapAdd] on the image that the flock is on, at path. The
// qemu-img holds the flock, too: should we be killed meanwhile, nobody can take
// it before qemu-img has ended, and take the bitmap for one that was not added.
func (f *ImageFlock) BitmapAdd(ctx context.Context, path, name string, granularity int64) error {
	q := defaultQemuImg()
	q.flock = f
	return q.bitmapAdd(ctx, path, name, granularity)
}

// BitmapRemove is [BitmapRemove], under the same rule as [ImageFlock.BitmapAdd].
func (f *ImageFlock) BitmapRemove(ctx context.Context, path, name string) error {
	q := defaultQemuImg()
	q.flock = f
	return q.bitmapRemove(ctx, path, name)
}
