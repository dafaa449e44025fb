// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// CloneFile returns a file that has all that src has now, and shares its space with it until
// either is written to: a clone, as FICLONE of XFS, Btrfs, bcachefs and others makes it. It is open
// for reading, nobody else's (mode 0600), and without a name, so that it goes when it is closed,
// however we end. It is made in the first of dirs in which it can be: those have to be on the file
// system of src.
//
// What the kernel answered where that can't be done is in the error; see [CannotClone].
func CloneFile(src *os.File, dirs ...string) (*os.File, error) {
	return inOneOf(dirs, src, func(to *os.File) error {
		return control(src, to, func(from, to int) error { return unix.IoctlFileClone(to, from) })
	})
}

// TryClone returns the error that [CloneFile] is likely to return, or nil. It clones a block.
func TryClone(src *os.File, dirs ...string) error {
	st, err := Stat(src)
	if err != nil {
		return err
	}
	length := uint64(st.Blksize)
	if st.Size < int64(st.Blksize) { // 32 bits on some machines
		length = 0 // up to the end, be it in the middle of a block
	}
	f, err := inOneOf(dirs, src, func(to *os.File) error {
		return control(src, to, func(from, to int) error {
			return unix.IoctlFileCloneRange(to, &unix.FileCloneRange{Src_fd: int64(from), Src_length: length})
		})
	})
	if err != nil {
		return err
	}
	return f.Close()
}

// CannotClone reports whether an error says that a file can't be cloned where it is, and not
// that something went wrong.
func CannotClone(err error) bool {
	for _, no := range []error{unix.EXDEV, unix.EINVAL, unix.ETXTBSY, unix.EBADF, unix.EISDIR, unix.EACCES, unix.EPERM, unix.EROFS} {
		if errors.Is(err, no) {
			return true
		}
	}
	return Unsupported(err)
}

// inOneOf makes a file without a name in the first of dirs in which clone succeeds.
func inOneOf(dirs []string, src *os.File, clone func(to *os.File) error) (*os.File, error) {
	err := error(unix.EXDEV)
	for _, dir := range dirs {
		var to *os.File
		if to, err = createNameless(dir); err == nil {
			if err = clone(likeForClones(src, to)); err == nil {
				return to, nil
			}
			_ = to.Close() // nothing in it is wanted
		}
		if !CannotClone(err) {
			break
		}
	}
	return nil, &fs.PathError{Op: "clone", Path: src.Name(), Err: root(err)}
}

// likeForClones makes to, which is empty, a file into which src can be cloned: Btrfs clones what
// has no checksums (chattr +C, as libvirt sets it on folders of images) only into what has none.
// Where that can't be done, the clone tells.
func likeForClones(src, to *os.File) *os.File {
	_ = control(src, to, func(from, to int) error {
		flags, err := unix.IoctlGetUint32(from, unix.FS_IOC_GETFLAGS)
		if err != nil || flags&noCopyOnWrite == 0 {
			return err
		}
		own, err := unix.IoctlGetUint32(to, unix.FS_IOC_GETFLAGS)
		if err != nil {
			return err
		}
		return unix.IoctlSetPointerInt(to, unix.FS_IOC_SETFLAGS, int(own|noCopyOnWrite))
	})
	return to
}

// noCopyOnWrite is the kernel's FS_NOCOW_FL.
const noCopyOnWrite = 0x00800000

// createNameless makes an empty file in a folder that has no name, or loses it at once.
func createNameless(path string) (*os.File, error) {
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }() // only read
	f, err := OpenAt(dir, ".", unix.O_RDWR|unix.O_TMPFILE|unix.O_EXCL, 0o600)
	if !Unsupported(err) && !errors.Is(err, unix.EISDIR) { // what kernels and file systems answer that have none
		return f, err
	}
	_ = Sweep(dir, func(name string, folder bool) bool { return !folder && strings.HasPrefix(name, clonePrefix) })
	f, name, err := CreateLocked(dir, cloneName, 0o600)
	if err != nil {
		return nil, err
	}
	if err := UnlinkAt(dir, name); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// A clone is called .imgbackup-clone-<16 hex digits> for a moment, where files can't be made
// without a name.
const clonePrefix = ".imgbackup-clone-"

func cloneName() string {
	var r [8]byte
	_, _ = rand.Read(r[:]) // never fails
	return clonePrefix + hex.EncodeToString(r[:])
}

// control calls f with the descriptors of two files.
func control(a, b *os.File, f func(a, b int) error) error {
	return Control(a, func(a int) error {
		return Control(b, func(b int) error { return Restart(func() error { return f(a, b) }) })
	})
}

// root is the kernel's answer, without the paths of files that nobody sees.
func root(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return fmt.Errorf("%w", errno)
	}
	return err
}
