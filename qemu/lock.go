// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// QEMU's image locks are shared open file description locks on single bytes of an
// image file (block/file-posix.c): byte 100+i says "I use permission i", byte 200+i
// "I do not let others use permission i".
const (
	lockRead          = 100 // reads
	lockWrite         = 101 // writes
	lockResize        = 103 // resizes
	lockUnsharedRead  = 200 // nobody else may read
	lockUnsharedWrite = 201 // nobody else may write
	lockUnsharedSize  = 203 // nobody else may resize
)

// mode is what is locked, and what nobody else may have locked then, what says most
// of the other first.
type mode struct {
	own, others []int64

	// fcntl is fcntl(2), which tests put their own in place of.
	fcntl func(f *os.File, cmd int, lock *unix.Flock_t) error
}

var (
	// shared is a reader's who lets others read only.
	shared = mode{
		own:    []int64{lockRead, lockUnsharedWrite, lockUnsharedSize},
		others: []int64{lockWrite, lockResize, lockUnsharedRead},
		fcntl:  fcntl,
	}
	// exclusive is a writer's who lets nobody else in.
	exclusive = mode{
		own:    []int64{lockRead, lockWrite, lockResize, lockUnsharedRead, lockUnsharedWrite, lockUnsharedSize},
		others: []int64{lockWrite, lockResize, lockUnsharedRead, lockRead, lockUnsharedWrite, lockUnsharedSize},
		fcntl:  fcntl,
	}
)

// LockShared takes the image locks that QEMU's readers take on open files, so that no
// QEMU can open one of them for writing, and proves that none has. Other readers, ours
// and QEMU's, are not disturbed. A conflict is retried until wait has passed; then it
// is an [*InUseError]. A file system without locks is a [*NoLockError]. On an error
// nothing is locked; else the locks stay until [UnlockShared], or until all are closed.
//
// Writers that do not take QEMU's locks are not seen: a loop mount, an image node with
// locking=off, an incoming migration.
func LockShared(ctx context.Context, files []*os.File, wait time.Duration) error {
	return sys.Retry(ctx, wait, conflict, func() error { return shared.lock(files) })
}

// UnlockShared releases the locks of [LockShared]. Closing the files would do so, too,
// but not where a child process that is just being started still has them.
func UnlockShared(files []*os.File) error { return shared.unlock(files) }

// LockExclusive takes the image locks of a writer that lets nobody else in, with the
// errors of [LockShared], and does not wait.
func LockExclusive(f *os.File) error { return exclusive.lock([]*os.File{f}) }

// UnlockExclusive releases the locks of [LockExclusive].
func UnlockExclusive(f *os.File) error { return exclusive.unlock([]*os.File{f}) }

// ProbeWriter looks whether a QEMU has the image open for writing: an [*InUseError].
// Backing files are not looked at. It takes no lock, so that the answer may be old at
// once.
func ProbeWriter(path string) error {
	f, err := openToLock(path)
	if err != nil {
		return err
	}
	defer closeRead(f)
	return shared.probe(f)
}

// openToLock opens a file for locking only. It does not wait for the writer of a pipe.
func openToLock(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
}

// closeRead closes a descriptor that was only read from: nothing can be lost.
func closeRead(f *os.File) { _ = f.Close() }

// lock locks first and looks then, as QEMU does: of two that come at once at least one
// sees the other. It holds all locks or none.
func (m mode) lock(files []*os.File) error {
	err := func() error {
		for _, f := range files {
			for _, b := range m.own {
				if err := m.set(f, unix.F_RDLCK, b); err != nil {
					return err
				}
			}
		}
		for _, f := range files {
			if err := m.probe(f); err != nil {
				return err
			}
		}
		return nil
	}()
	if err != nil {
		return errors.Join(err, m.unlock(files))
	}
	return nil
}

// unlock gives all locks up, and returns the first error. Where there are no locks
// none is held.
func (m mode) unlock(files []*os.File) (first error) {
	for _, f := range files {
		for _, b := range m.own {
			err := m.set(f, unix.F_UNLCK, b)
			var none *NoLockError
			if first == nil && !errors.Is(err, os.ErrClosed) && !errors.As(err, &none) {
				first = err
			}
		}
	}
	return first
}

// probe tests whether somebody else holds what excludes us.
func (m mode) probe(f *os.File) error {
	for _, b := range m.others {
		lock := unix.Flock_t{Type: unix.F_WRLCK, Start: b, Len: 1}
		if err := m.fcntl(f, unix.F_OFD_GETLK, &lock); err != nil {
			return lockError(f, b, err)
		}
		if lock.Type != unix.F_UNLCK {
			return inUse(f, b)
		}
	}
	return nil
}

// set places or removes a lock on byte b.
func (m mode) set(f *os.File, kind int16, b int64) error {
	if err := m.fcntl(f, unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: b, Len: 1}); err != nil {
		return lockError(f, b, err)
	}
	return nil
}

func fcntl(f *os.File, cmd int, lock *unix.Flock_t) error {
	return sys.Control(f, func(fd int) error { return unix.FcntlFlock(uintptr(fd), cmd, lock) })
}

// lockError is what a failed lock on byte b means.
func lockError(f *os.File, b int64, err error) error {
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return &InUseError{Path: f.Name(), Why: "another program has locked it" + lockHolders(f, b)}
	case sys.NoLocks(err):
		return &NoLockError{Path: f.Name(), Err: err}
	}
	return fmt.Errorf("%s: lock byte %d: %w", f.Name(), b, err)
}

// inUse is the error for a lock that another has on byte b.
func inUse(f *os.File, b int64) error {
	why := "another program reads it"
	switch b {
	case lockWrite, lockResize:
		why = "another program has it open for writing"
	case lockUnsharedRead:
		why = "another program has it open and lets nobody else read it"
	}
	return &InUseError{Path: f.Name(), Why: why + lockHolders(f, b)}
}
