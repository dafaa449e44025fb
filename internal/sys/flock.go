// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The answers to who asks for a flock, for errors.Is.
var (
	// ErrLocked says that another holds it.
	ErrLocked = errors.New("another holds the lock")
	// ErrNoLocks says that the file system has no such locks.
	ErrNoLocks = errors.New("the file system has no such locks")
)

// TryLock takes an exclusive flock on a file or folder without waiting.
func TryLock(f *os.File) error { return tryLock(f, unix.Flock) }

func tryLock(f *os.File, flock func(fd, how int) error) error {
	err := Control(f, func(fd int) error { return flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EWOULDBLOCK):
		err = ErrLocked
	case NoLocks(err), errors.Is(err, unix.EBADF): // NFS wants a descriptor to write to
		err = fmt.Errorf("%w: %w", ErrNoLocks, err)
	}
	return &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
}

// NoLocks reports whether err is the answer of a file system without locks, to a
// call that locks.
func NoLocks(err error) bool { return errors.Is(err, unix.ENOLCK) || Unsupported(err) }

// Lock is [TryLock], tried again until wait has passed or ctx ends.
func Lock(ctx context.Context, f *os.File, wait time.Duration) error {
	held := func(err error) bool { return errors.Is(err, ErrLocked) }
	return Retry(ctx, wait, held, func() error { return TryLock(f) })
}

// Unlock gives a flock up. Closing the file would do so, too, but not where a
// program that is just being started still has the descriptor.
func Unlock(f *os.File) error {
	err := Control(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_UN) })
	if err == nil || errors.Is(err, os.ErrClosed) || NoLocks(err) {
		return nil
	}
	return &fs.PathError{Op: "unlock", Path: f.Name(), Err: err}
}
