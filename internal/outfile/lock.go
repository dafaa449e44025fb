// SPDX-License-Identifier: Apache-2.0

package outfile

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/qemu"
)

// lockWait bounds how long a flock that someone else holds is tried for: udev
// holds one on a block device for a moment whenever it looks at it.
const lockWait = 5 * time.Second

// lockExclusive takes QEMU's image locks and flock on a file, so that neither a
// VM nor another run of this program uses it until it is closed. noLock does
// without where the file system has no locks.
func lockExclusive(ctx context.Context, kernel *System, f *os.File, noLock bool) error {
	if err := flock(ctx, f); err != nil {
		return err
	}
	err := kernel.LockImage(f)
	var none *qemu.NoLockError
	if noLock && errors.As(err, &none) {
		return nil
	}
	return err
}

// flock takes a flock on a file. Where the file system has none, that is no error: it
// is a courtesy among runs of this program.
func flock(ctx context.Context, f *os.File) error {
	err := sys.Lock(ctx, f, lockWait)
	switch {
	case errors.Is(err, sys.ErrNoLocks):
		return nil
	case errors.Is(err, sys.ErrLocked):
		return &qemu.BusyError{Path: f.Name(), Why: "another run of imgbackup, or a program that uses flock, works on it"}
	}
	return err
}

// release gives up all locks on a file and closes it. Closing alone is not
// enough where a program that is just being started still has the descriptor.
func release(f *os.File) error {
	_ = qemu.UnlockExclusive(f)
	_ = sys.Unlock(f)
	return f.Close()
}
