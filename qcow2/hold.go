// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"errors"
	"time"
)

// Hold is an image that is locked before it is opened, so that nothing that is
// read out of it can be older than the locks.
type Hold struct{ lockFile }

// HoldImage takes on the image at path the locks that [Chain.Lock] takes, with
// the same errors. Backing files are not locked: QEMU opens them for writing
// only together with the image above them.
func HoldImage(ctx context.Context, path string, wait time.Duration) (*Hold, error) {
	file, err := openToLock(path)
	if err != nil {
		return nil, err
	}
	h := &Hold{lockFile{path: path, file: file}}
	if err := retry(ctx, wait, func() error { return lockAll([]lockFile{h.lockFile}) }); err != nil {
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
