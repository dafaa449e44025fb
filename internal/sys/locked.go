// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// lockedTries bounds how often a new name may be taken already, or be lost to one
// who sweeps.
const lockedTries = 100

// CreateLocked makes a new, empty file in dir, open for reading and writing, under
// one of the names that name proposes. It is locked until it is closed, so that no
// [Sweep] takes it for one that a killed run has left. Where the file system has no
// locks none can be swept either.
func CreateLocked(dir *os.File, name func() string, perm uint32) (f *os.File, called string, err error) {
	return makeLocked(dir, name, func(n string) (*os.File, error) {
		return OpenAt(dir, n, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, perm)
	})
}

// MkdirLocked makes a new folder in dir, likewise.
func MkdirLocked(dir *os.File, name func() string, perm uint32) (f *os.File, called string, err error) {
	return makeLocked(dir, name, func(n string) (*os.File, error) {
		if err := MkdirAt(dir, n, perm); err != nil {
			return nil, err
		}
		f, err := OpenAt(dir, n, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &fs.PathError{Op: "mkdir", Path: n, Err: fs.ErrExist} // swept already
		}
		return f, err
	})
}

func makeLocked(dir *os.File, name func() string, create func(string) (*os.File, error)) (*os.File, string, error) {
	for range lockedTries {
		n := name()
		f, err := create(n)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, "", err
		}
		mine, err := lockNew(dir, n, f)
		if err != nil {
			_ = removeAll(dir, n) // it is empty
			_ = f.Close()
			return nil, "", err
		}
		if mine {
			return f, n, nil
		}
		_ = f.Close() // one who sweeps removes it
	}
	return nil, "", fmt.Errorf("%s: each of %d new names was taken, or removed by another process", dir.Name(), lockedTries)
}

// lockNew locks what was just made. One who sweeps may have taken it for stale
// before: then it is not ours.
func lockNew(dir *os.File, name string, f *os.File) (mine bool, err error) {
	err = TryLock(f)
	switch {
	case errors.Is(err, ErrLocked):
		return false, nil
	case errors.Is(err, ErrNoLocks):
		return true, nil
	case err != nil:
		return false, err
	}
	return Named(dir, name, f)
}

// RemoveLocked removes what [CreateLocked] or [MkdirLocked] has made, with all that
// is in a folder. The lock is held until f is closed.
func RemoveLocked(dir *os.File, name string) error { return removeAll(dir, name) }

// Sweep removes the files and folders in dir that ours accepts and that nobody has
// locked: what killed runs have left. A name that it may not touch stays. An error
// says that dir could not be listed.
func Sweep(dir *os.File, ours func(name string, folder bool) bool) error {
	list, err := OpenAt(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0) // with a position of its own
	if err != nil {
		return err
	}
	defer func() { _ = list.Close() }() // only read
	for {
		names, err := list.Readdirnames(512)
		for _, name := range names {
			sweepOne(dir, name, ours)
		}
		if len(names) == 0 {
			return endOfList(err)
		}
	}
}

func endOfList(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func sweepOne(dir *os.File, name string, ours func(name string, folder bool) bool) {
	if !ours(name, false) && !ours(name, true) {
		return // without a look at each of many
	}
	st, err := StatAt(dir, name)
	if err != nil {
		return
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFREG && kind != unix.S_IFDIR || !ours(name, kind == unix.S_IFDIR) {
		return
	}
	f, err := openLeft(dir, name, kind)
	if err != nil {
		return // gone meanwhile, or another user's
	}
	defer func() { _ = f.Close() }() // only locked
	if TryLock(f) != nil {
		return
	}
	if still, err := Named(dir, name, f); err == nil && still {
		_ = removeAll(dir, name) // what stays does no harm
	}
}

// openLeft opens what may be a leftover, for locking it. NFS has flocks only for who
// may write.
func openLeft(dir *os.File, name string, kind uint32) (*os.File, error) {
	if kind == unix.S_IFDIR {
		return OpenAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	}
	f, err := OpenAt(dir, name, unix.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		f, err = OpenAt(dir, name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	}
	return f, err
}
