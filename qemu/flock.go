// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// ImageFlock is an exclusive flock on an image, which excludes other runs of imgbackup
// and nobody else.
type ImageFlock struct{ file *os.File }

// FlockImage takes one. A conflict is retried until wait has passed (udev takes flocks
// on block devices for moments); then it is a [*BusyError].
func FlockImage(ctx context.Context, path string, wait time.Duration) (*ImageFlock, error) {
	file, err := openToLock(path)
	if err != nil {
		return nil, err
	}
	if err := sys.Retry(ctx, wait, conflict, func() error { return flock(file) }); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &ImageFlock{file}, nil
}

// Unlocked is an ImageFlock that holds no lock, for who goes on where a file system has
// none.
func Unlocked(path string) (*ImageFlock, error) {
	file, err := openToLock(path)
	if err != nil {
		return nil, err
	}
	return &ImageFlock{file}, nil
}

func flock(f *os.File) error {
	err := sys.TryLock(f)
	switch {
	case errors.Is(err, sys.ErrLocked):
		return &BusyError{Path: f.Name(), Why: "another run of imgbackup works on it" + flockHolders(f)}
	case errors.Is(err, sys.ErrNoLocks):
		return &NoLockError{Path: f.Name(), Err: err}
	}
	return err
}

// OpenFile is a file that is open elsewhere.
type OpenFile interface {
	// ID identifies it for as long as it is open.
	ID() (sys.ID, error)
}

// Holds reports whether the flock is on that file, and not on one that had its name
// before.
func (f *ImageFlock) Holds(open OpenFile) (bool, error) {
	st, err := sys.Stat(f.file)
	if err != nil {
		return false, err
	}
	id, err := open.ID()
	return sys.IdentityOf(&st) == id, err
}

// Close releases the flock.
func (f *ImageFlock) Close() error { return errors.Join(sys.Unlock(f.file), f.file.Close()) }

// Hold is an image that is locked before it is opened, so that nothing that is read
// out of it can be older than the locks.
type Hold struct{ file *os.File }

// HoldImage takes on the image at path the locks of [LockShared]. Backing files are not
// locked: QEMU opens them for writing only together with the image above them.
func HoldImage(ctx context.Context, path string, wait time.Duration) (*Hold, error) {
	file, err := openToLock(path)
	if err != nil {
		return nil, err
	}
	if err := LockShared(ctx, []*os.File{file}, wait); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &Hold{file}, nil
}

// Close releases the locks.
func (h *Hold) Close() error {
	return errors.Join(UnlockShared([]*os.File{h.file}), h.file.Close())
}
