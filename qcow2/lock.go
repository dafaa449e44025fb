// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"os"
	"sync"
	"time"
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
	return e.Path + ": the file system has no open file description locks, so a running VM cannot be seen (--no-lock goes on without): " + e.Err.Error()
}

func (e *NoLockError) Unwrap() error { return e.Err }

// imageLocks holds QEMU's image locks on the files of one chain, and the flock of its active layer. A Chain has one as
// its field "locks"; Close releases it first. The zero value holds nothing.
type imageLocks struct {
	mu     sync.Mutex
	locked []*os.File
	flock  *os.File
}

// LockOptions tells [Chain.Lock] how long to wait.
type LockOptions struct {
	Wait time.Duration // how long conflicts are retried; 0: not at all
}

func (l *imageLocks) lock(ctx context.Context, active []*os.File, backing []*os.File, o LockOptions) error {
	return nil
}

func (l *imageLocks) unlock() error { return nil }
