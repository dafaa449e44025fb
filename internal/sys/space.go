// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// plenty is more bytes than any file system has.
const plenty = 1 << 62

// FreeSpace returns the bytes that an unprivileged user may still write to the file
// system of an open file or folder, as far as the file system tells: quotas are not
// asked.
func FreeSpace(f *os.File) (int64, error) {
	var st unix.Statfs_t
	if err := Control(f, func(fd int) error { return unix.Fstatfs(fd, &st) }); err != nil {
		return 0, &fs.PathError{Op: "ask for free space", Path: f.Name(), Err: err}
	}
	return bytesOf(uint64(st.Bavail), uint64(st.Frsize)), nil // their types differ from machine to machine
}

// bytesOf is how many bytes blocks of that size are.
func bytesOf(blocks, size uint64) int64 {
	if size == 0 || size > plenty || blocks > plenty/size {
		return plenty
	}
	return int64(blocks * size)
}

// SystemKind returns the number of the kind of file system that path lies on, as statfs(2)
// tells it.
func SystemKind(path string) (uint32, error) {
	var st unix.Statfs_t
	if err := Restart(func() error { return unix.Statfs(path, &st) }); err != nil {
		return 0, &fs.PathError{Op: "ask for the file system", Path: path, Err: err}
	}
	return uint32(st.Type), nil // its type differs from machine to machine
}
