// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// NextData returns the first range of [off, end) of a file that its file system does not
// know to be a hole, which reads as zeros; from == to: there is none. Where it cannot
// tell, that is all of it. The file's position changes.
func NextData(f *os.File, off, end int64) (from, to int64) {
	return nextData(off, end, func(off int64, whence int) (at int64, err error) {
		err = Control(f, func(fd int) error {
			at, err = unix.Seek(fd, off, whence)
			return err
		})
		return at, err
	})
}

// SeekData and SeekHole are what lseek(2) is asked for, and Interrupted what a call is answered that a
// signal has ended: for who answers such calls.
const (
	SeekData    = unix.SEEK_DATA
	SeekHole    = unix.SEEK_HOLE
	Interrupted = unix.EINTR
)

func nextData(off, end int64, seek func(off int64, whence int) (int64, error)) (from, to int64) {
	from, err := seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO), err == nil && from >= end:
		return end, end
	case err != nil || from < off:
		return off, end
	}
	to, err = seek(from, unix.SEEK_HOLE)
	if err != nil || to <= from {
		return from, end
	}
	return from, min(to, end)
}
