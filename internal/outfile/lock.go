// SPDX-License-Identifier: Apache-2.0

package outfile

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/qcow2"
)

// qemuLockBytes are the bytes of an image that QEMU's file-posix driver locks:
// 100+i says "I use permission i", 200+i "I let nobody else use it", with i = 0
// consistent read, 1 write, 3 resize. Who holds all of them has the image to
// itself, and no QEMU can open it.
var qemuLockBytes = [...]int64{100, 101, 103, 200, 201, 203}

// lockWait bounds how long a flock that someone else holds is tried for: udev
// holds one on a block device for a moment whenever it looks at it.
const lockWait = 5 * time.Second

// lockExclusive takes QEMU's image locks and flock on a file, so that neither a
// VM nor another run of this program uses it until it is closed. noLock does
// without where the file system has no locks.
func lockExclusive(ctx context.Context, f *os.File, noLock bool) error {
	if err := flock(ctx, f); err != nil {
		return err
	}
	fd := f.Fd()
	for _, b := range qemuLockBytes {
		err := unix.FcntlFlock(fd, unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: b, Len: 1})
		switch {
		case err == nil:
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
			return &qcow2.InUseError{Path: f.Name(), Why: "another program has locked the image"}
		case noLock && sys.NoLocks(err):
			return nil
		default:
			return &qcow2.NoLockError{Path: f.Name(), Err: err}
		}
	}
	// Asking after locking, as QEMU does, leaves no moment for both to succeed.
	for _, b := range qemuLockBytes {
		probe := unix.Flock_t{Type: unix.F_WRLCK, Start: b, Len: 1}
		if err := unix.FcntlFlock(fd, unix.F_OFD_GETLK, &probe); err != nil {
			return &qcow2.NoLockError{Path: f.Name(), Err: err}
		}
		if probe.Type != unix.F_UNLCK {
			why := "a program such as qemu-nbd or a VM reads it"
			if b == 101 || b == 103 {
				why = "a VM or another QEMU program has it open for writing"
			}
			return &qcow2.InUseError{Path: f.Name(), Why: why}
		}
	}
	return nil
}

// flock takes a flock on a file. Where the file system has none, that is no error: it
// is a courtesy among runs of this program.
func flock(ctx context.Context, f *os.File) error {
	err := sys.Lock(ctx, f, lockWait)
	switch {
	case errors.Is(err, sys.ErrNoLocks):
		return nil
	case errors.Is(err, sys.ErrLocked):
		return &qcow2.BusyError{Path: f.Name(), Why: "another run of imgbackup, or a program that uses flock, works on it"}
	}
	return err
}

// release gives up all locks on a file and closes it. Closing alone is not
// enough where a program that is just being started still has the descriptor.
func release(f *os.File) error {
	for _, b := range qemuLockBytes {
		_ = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Start: b, Len: 1})
	}
	_ = sys.Unlock(f)
	return f.Close()
}
