// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The calls that look a name up in an open folder. None follows a symbolic link
// there. Their errors name the path that the folder was opened by.

// OpenAt opens name in dir.
func OpenAt(dir *os.File, name string, flags int, perm uint32) (*os.File, error) {
	path := filepath.Join(dir.Name(), name)
	opened := -1
	err := Control(dir, func(fd int) (err error) {
		opened, err = unix.Openat(fd, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, perm)
		return err
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(opened), path), nil
}

// StatAt describes name in dir; a symbolic link as the link it is.
func StatAt(dir *os.File, name string) (st unix.Stat_t, err error) {
	err = Control(dir, func(fd int) error { return unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	return st, pathError("stat", dir, name, err)
}

// UnlinkAt removes name in dir, which is no folder.
func UnlinkAt(dir *os.File, name string) error {
	err := Control(dir, func(fd int) error { return unix.Unlinkat(fd, name, 0) })
	return pathError("remove", dir, name, err)
}

// MkdirAt makes a folder in dir.
func MkdirAt(dir *os.File, name string, perm uint32) error {
	err := Control(dir, func(fd int) error { return unix.Mkdirat(fd, name, perm) })
	return pathError("mkdir", dir, name, err)
}

// RenameNew gives a folder in dir another name there. What is there under that name is not touched:
// then the error is fs.ErrExist.
func RenameNew(dir *os.File, name, to string) error {
	err := Control(dir, func(fd int) error { return unix.Renameat2(fd, name, fd, to, unix.RENAME_NOREPLACE) })
	if !Unsupported(err) {
		return pathError("rename to", dir, to, err)
	}
	// This file system can't say so. An empty folder, which is ours, is all that a folder replaces.
	if err := MkdirAt(dir, to, 0o700); err != nil {
		return err
	}
	err = Control(dir, func(fd int) error { return unix.Renameat(fd, name, fd, to) })
	if err != nil {
		_ = Control(dir, func(fd int) error { return unix.Unlinkat(fd, to, unix.AT_REMOVEDIR) })
	}
	return pathError("rename to", dir, to, err)
}

// removeAll removes name in dir and, if it is a folder, all that is in it.
func removeAll(dir *os.File, name string) error {
	err := UnlinkAt(dir, name)
	if err == nil {
		return nil
	}
	in, oerr := OpenAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if oerr != nil {
		return err // it is no folder
	}
	defer func() { _ = in.Close() }() // only read
	names, err := in.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeAll(in, n); err != nil {
			return err
		}
	}
	err = Control(dir, func(fd int) error { return unix.Unlinkat(fd, name, unix.AT_REMOVEDIR) })
	return pathError("remove", dir, name, err)
}

func pathError(op string, dir *os.File, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: filepath.Join(dir.Name(), name), Err: err}
}
