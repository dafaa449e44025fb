// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ID tells files apart whatever their path, as long as they are there: a block
// device by its number, any other file by device and inode.
type ID struct {
	Device bool   // of a block device
	Dev    uint64 // its own number; of any other file that of its file system
	Inode  uint64 // 0 of a block device
}

// Identity is that of what fi describes.
func Identity(fi fs.FileInfo) (id ID, ok bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return ID{}, false
	}
	return identity(st.Mode, uint64(st.Dev), st.Ino, uint64(st.Rdev)), true
}

// IdentityOf is that of what st describes.
func IdentityOf(st *unix.Stat_t) ID {
	return identity(st.Mode, uint64(st.Dev), st.Ino, uint64(st.Rdev))
}

func identity(mode uint32, dev, inode, rdev uint64) ID {
	if mode&unix.S_IFMT == unix.S_IFBLK {
		return ID{Device: true, Dev: rdev}
	}
	return ID{Dev: dev, Inode: inode}
}

// Stat describes an open file.
func Stat(f *os.File) (st unix.Stat_t, err error) {
	err = Control(f, func(fd int) error { return unix.Fstat(fd, &st) })
	if err != nil {
		err = &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return st, err
}

// Named reports whether name in dir is the open file f itself. A name that is not
// there is not.
func Named(dir *os.File, name string, f *os.File) (bool, error) {
	own, err := Stat(f)
	if err != nil {
		return false, err
	}
	there, err := StatAt(dir, name)
	switch {
	case os.IsNotExist(err):
		return false, nil
	case err != nil:
		return false, err
	}
	return there.Dev == own.Dev && there.Ino == own.Ino, nil
}
