// SPDX-License-Identifier: Apache-2.0

package outfile

import (
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/qemu"
)

// System is what this package asks of the kernel where the answer depends on
// the machine: tests without block devices or full disks put in their own.
type System struct {
	// Pwrite writes all of p to a file at an offset.
	Pwrite func(f *os.File, p []byte, off int64) (int, error)
	// IsDevice reports whether a file is a block device.
	IsDevice func(fs.FileInfo) bool
	// OpenDevice opens a block device for itself alone.
	OpenDevice func(path string) (*os.File, error)
	// ZeroOut makes a range of a block device read as zeros. Offset and length
	// are multiples of zeroAlign.
	ZeroOut func(f *os.File, off, length int64) error
	// LockImage takes QEMU's image locks on an open file, for itself alone.
	LockImage func(f *os.File) error
	// Rename is renameat2(2) within one folder.
	Rename func(dir *os.File, from, to string, flags uint) error
	// FreeSpace returns the bytes that an unprivileged user may still write to
	// the file system of an open folder.
	FreeSpace func(dir *os.File) (int64, error)
	// Folders makes folders durable. Its Note may be set before the first use.
	Folders *sys.FolderSyncer
}

// zeroAlign is what every device's logical blocks divide, bytes.
const zeroAlign = 4096

// Linux is the machine's own.
func Linux() *System {
	return &System{
		Pwrite:   (*os.File).WriteAt,
		IsDevice: isBlockDevice,
		OpenDevice: func(path string) (*os.File, error) {
			return os.OpenFile(path, os.O_RDWR|unix.O_EXCL|unix.O_NOFOLLOW, 0)
		},
		ZeroOut:   zeroOut,
		LockImage: qemu.LockExclusive,
		Rename: func(dir *os.File, from, to string, flags uint) error {
			return sys.Control(dir, func(fd int) error { return unix.Renameat2(fd, from, fd, to, flags) })
		},
		FreeSpace: sys.FreeSpace,
		Folders:   new(sys.FolderSyncer),
	}
}

func isBlockDevice(fi fs.FileInfo) bool {
	return fi.Mode()&fs.ModeDevice != 0 && fi.Mode()&fs.ModeCharDevice == 0
}

// deviceSize returns the capacity of a block device in bytes.
func deviceSize(f *os.File) (int64, error) {
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("ask for the size of the device: %w", err)
	}
	return n, nil
}

// zeroOut gives the range back to a thin device if that leaves zeros for
// certain, and else lets the kernel write zeros as fast as the device can.
func zeroOut(f *os.File, off, length int64) error {
	err := fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
	if sys.Unsupported(err) {
		err = fallocate(f, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, length)
	}
	return err
}

func fallocate(f *os.File, mode uint32, off, length int64) error {
	return sys.Control(f, func(fd int) error { return unix.Fallocate(fd, mode, off, length) })
}
