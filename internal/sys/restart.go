// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Restart calls again what a signal has interrupted.
func Restart(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Control calls do with f's descriptor, which is not closed meanwhile, until no
// signal interrupts it. A file that is closed is [os.ErrClosed].
func Control(f *os.File, do func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = conn.Control(func(fd uintptr) {
		result = Restart(func() error { return do(int(fd)) })
	})
	if err != nil { // there is no other reason
		return os.ErrClosed
	}
	return result
}

// Unsupported reports whether err says that a file system or a device lacks an
// operation.
func Unsupported(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY)
}
