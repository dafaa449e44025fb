// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"errors"
	"fmt"
	"strconv"
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
	return fmt.Sprintf("%s: the file system has no locks, so that a running VM cannot be seen (--no-lock, where a command has it, goes on without): %v", e.Path, e.Err)
}

func (e *NoLockError) Unwrap() error { return e.Err }

// ExitError says that one of QEMU's programs has failed.
type ExitError struct {
	What   string // that was done
	Status int    // exit status; -1: ended by a signal
	said   string // what it has said, for a message
}

func (e *ExitError) Error() string {
	status := "exit status " + strconv.Itoa(e.Status)
	if e.Status < 0 {
		status = "ended by a signal"
	}
	return e.What + ": " + status + e.said
}

// conflict reports whether an error may go away by itself.
func conflict(err error) bool {
	var inUse *InUseError
	var busy *BusyError
	var stray *strayError
	return errors.As(err, &inUse) || errors.As(err, &busy) || errors.As(err, &stray)
}
