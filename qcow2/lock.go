// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/imgbackup/imgbackup/qemu"
)

// imageLocks holds QEMU's image locks on the files of an image. An Image has one as its
// field "locks"; Close releases it first. The zero value holds nothing.
type imageLocks struct {
	mu     sync.Mutex
	locked []*os.File
}

// Lock takes QEMU's image locks, as [qemu.LockShared] does, on every file of the image.
// They are kept until [Image.Unlock] or Close. An image that is locked stays so.
func (c *Image) Lock(ctx context.Context, wait time.Duration) error {
	l := &c.locks
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.locked != nil {
		return nil
	}
	var files []*os.File // the active layer's first
	for _, layer := range c.Layers {
		for _, f := range layer.Files() {
			files = append(files, f.f)
		}
	}
	if err := qemu.LockShared(ctx, files, wait); err != nil {
		return err
	}
	l.locked = files
	return nil
}

// Unlock releases the locks of [Image.Lock].
func (c *Image) Unlock() error {
	l := &c.locks
	l.mu.Lock()
	defer l.mu.Unlock()
	files := l.locked
	l.locked = nil
	return qemu.UnlockShared(files)
}
