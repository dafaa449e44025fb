// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// QEMU's image locks are shared open file description locks on single bytes of an image file (block/file-posix.c): byte
// 100+i says "I use permission i", byte 200+i "I do not let others use permission i".
const (
	lockRead          = 100 // reads
	lockWrite         = 101 // writes
	lockResize        = 103 // resizes
	lockUnsharedRead  = 200 // nobody else may read
	lockUnsharedWrite = 201 // nobody else may write
	lockUnsharedSize  = 203 // nobody else may resize
)

// readerLocks are what a reader holds who lets others read only; writerLocks what excludes such a reader.
var (
	readerLocks = [...]int64{lockRead, lockUnsharedWrite, lockUnsharedSize}
	writerLocks = [...]int64{lockWrite, lockResize, lockUnsharedRead}
)

// InUseError says that another program has an image open in a way that excludes us.
type InUseError struct {
	Path string
	Why  string // one sentence, with the holder where it could be found
}

func (e *InUseError) Error() string { return e.Path + " is in use: " + e.Why }

// BusyError says that another run of imgbackup works on the image.
type BusyError struct {
	Path string
	Why  string
}

func (e *BusyError) Error() string { return e.Path + " is busy: " + e.Why }

// NoLockError says that the file system under an image has no locks.
type NoLockError struct {
	Path string
	Err  error
}

func (e *NoLockError) Error() string {
	return fmt.Sprintf("%s: the file system has no locks, so that a running VM cannot be seen; --no-lock goes on without: %v", e.Path, e.Err)
}

func (e *NoLockError) Unwrap() error { return e.Err }

// imageLocks holds QEMU's image locks on the files of one chain, and the flock of its active layer. A Chain has one as
// its field "locks"; Close releases it first. The zero value holds nothing.
type imageLocks struct {
	mu      sync.Mutex
	locked  []lockFile
	flocked *os.File
}

// lockFile is an open file to lock.
type lockFile struct {
	path string
	file *os.File
}

// Lock takes the image locks that QEMU's readers take, on every file of the chain, so that no QEMU can open one of them
// for writing, and proves that none has. A conflict is retried until wait has passed; then it is an [*InUseError]. A file
// system without locks is a [*NoLockError]. The locks are kept until [Image.Unlock] or Close; other readers of the files,
// ours and QEMU's, are not disturbed. A chain that is locked stays so.
//
// Writers that do not take QEMU's locks are not seen: a loop mount, an image node with locking=off, an incoming migration.
func (c *Image) Lock(ctx context.Context, wait time.Duration) error {
	return c.locks.lock(ctx, c.lockFiles(), wait)
}

// Unlock releases the locks of [Image.Lock].
func (c *Image) Unlock() error { return c.locks.unlockImage() }

// ProbeWriter tells whether a QEMU has any file of the chain open for writing: an [*InUseError]. It takes no lock, so that
// the answer may be old at once.
func (c *Image) ProbeWriter() error {
	for _, f := range c.lockFiles() {
		if err := f.probe(); err != nil {
			return err
		}
	}
	return nil
}

// ProbeWriter tells whether a QEMU has the image open for writing: an [*InUseError]. Backing files are not looked at. It
// takes no lock, so that the answer may be old at once.
func ProbeWriter(path string) error {
	f, err := openToLock(path)
	if err != nil {
		return err
	}
	defer closeRead(f)
	return lockFile{path: path, file: f}.probe()
}

// openToLock opens a file for locking only. It does not wait for the writer of a pipe.
func openToLock(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
}

// lockFiles are the files of the chain, the active layer's first.
func (c *Image) lockFiles() []lockFile {
	var files []lockFile
	for _, l := range c.Layers {
		for _, f := range l.Files() {
			files = append(files, lockFile{path: f.path, file: f.f})
		}
	}
	return files
}

func (l *imageLocks) lock(ctx context.Context, files []lockFile, wait time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.locked != nil {
		return nil
	}
	return sys.Retry(ctx, wait, conflict, func() error {
		err := lockAll(files)
		if err == nil {
			l.locked = files
		}
		return err
	})
}

// unlock releases everything. Closing the files would do so, too, but not where a child process that is just being started
// still has them.
func (l *imageLocks) unlock() error { return errors.Join(l.unlockImage(), l.unlockFlock()) }

func (l *imageLocks) unlockImage() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	files := l.locked
	l.locked = nil
	return unlockAll(files)
}

func (l *imageLocks) unlockFlock() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.flocked
	l.flocked = nil
	if f == nil {
		return nil
	}
	return sys.Unlock(f)
}

// lockAll locks first and looks then, as QEMU does: of two that come at once at least one sees the other. It holds all
// locks or none.
func lockAll(files []lockFile) error {
	for i, f := range files {
		for _, b := range readerLocks {
			if err := f.set(unix.F_RDLCK, b); err != nil {
				return errors.Join(err, unlockAll(files[:i+1]))
			}
		}
	}
	for _, f := range files {
		if err := f.probe(); err != nil {
			return errors.Join(err, unlockAll(files))
		}
	}
	return nil
}

func unlockAll(files []lockFile) error {
	var errs []error
	for _, f := range files {
		for _, b := range readerLocks {
			if err := f.set(unix.F_UNLCK, b); err != nil && !errors.Is(err, os.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// probe tests whether somebody holds what excludes a reader.
func (f lockFile) probe() error {
	for _, b := range writerLocks {
		lock := unix.Flock_t{Type: unix.F_WRLCK, Start: b, Len: 1}
		if err := f.fcntl(unix.F_OFD_GETLK, &lock); err != nil {
			return f.lockError(b, err)
		}
		if lock.Type != unix.F_UNLCK {
			return f.inUse(b)
		}
	}
	return nil
}

// set places or removes a lock on byte b.
func (f lockFile) set(kind int16, b int64) error {
	if err := f.fcntl(unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: b, Len: 1}); err != nil {
		return f.lockError(b, err)
	}
	return nil
}

func (f lockFile) fcntl(cmd int, lock *unix.Flock_t) error {
	return sys.Control(f.file, func(fd int) error { return unix.FcntlFlock(uintptr(fd), cmd, lock) })
}

// lockError says what a failed lock on byte b means.
func (f lockFile) lockError(b int64, err error) error {
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return f.inUse(b)
	case sys.NoLocks(err):
		return &NoLockError{Path: f.path, Err: err}
	}
	return fmt.Errorf("%s: lock byte %d: %w", f.path, b, err)
}

// inUse is the error for a conflict on byte b.
func (f lockFile) inUse(b int64) error {
	why := "another program has it open for writing"
	switch b {
	case lockUnsharedRead:
		why = "another program has it open and lets nobody else read it"
	case lockRead, lockUnsharedWrite, lockUnsharedSize:
		why = "another program has locked it"
	}
	return &InUseError{Path: f.path, Why: why + lockHolders(f.file, b)}
}

// Flock takes an exclusive flock on the active layer's file, which excludes other runs of imgbackup and nobody else. A
// conflict is retried until wait has passed (udev takes flocks on block devices for moments); then it is a [*BusyError].
// It is kept until Close.
func (c *Image) Flock(ctx context.Context, wait time.Duration) error {
	l := &c.locks
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.flocked != nil {
		return nil
	}
	active := c.Layers[0].file
	f := lockFile{path: active.path, file: active.f}
	if err := sys.Retry(ctx, wait, conflict, f.flock); err != nil {
		return err
	}
	l.flocked = active.f
	return nil
}

// ImageFlock is an exclusive flock on an image that outlives the chains that are opened and closed meanwhile.
type ImageFlock struct{ lockFile }

// FlockImage is [Image.Flock] for an image that is not open in a chain.
func FlockImage(ctx context.Context, path string, wait time.Duration) (*ImageFlock, error) {
	file, err := openToLock(path)
	if err != nil {
		return nil, err
	}
	f := lockFile{path: path, file: file}
	if err := sys.Retry(ctx, wait, conflict, f.flock); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &ImageFlock{f}, nil
}

// Holds tells whether the flock is on the file that the layer has open, and not on one that had its name before.
func (f *ImageFlock) Holds(l *Layer) (bool, error) {
	mine, err := f.file.Stat()
	if err != nil {
		return false, err
	}
	open, err := l.file.f.Stat()
	if err != nil {
		return false, err
	}
	return os.SameFile(mine, open), nil
}

// Close releases the flock.
func (f *ImageFlock) Close() error { return errors.Join(sys.Unlock(f.file), f.file.Close()) }

func (f lockFile) flock() error {
	err := sys.TryLock(f.file)
	switch {
	case errors.Is(err, sys.ErrLocked):
		return &BusyError{Path: f.path, Why: "another run of imgbackup works on it" + flockHolders(f.file)}
	case errors.Is(err, sys.ErrNoLocks):
		return &NoLockError{Path: f.path, Err: err}
	}
	return err
}
