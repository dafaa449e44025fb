// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/outfile"
)

// The refusals that callers decide by. They are matched with errors.Is, and
// nothing has been written when they are returned.
var (
	// ErrTargetExists says that a target is there already, and Force is not set.
	ErrTargetExists = outfile.ErrExists
)

// DamageError says which part of which disk cannot be restored, because what
// the repository holds is damaged. It wraps the [archive.DamageError] that
// names the object.
type DamageError struct {
	Disk       string
	Start, End int64 // guest bytes: the range that needs what is damaged
	Err        error
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("disk %s cannot be restored (bytes %d to %d): %v", e.Disk, e.Start, e.End-1, e.Err)
}

func (e *DamageError) Unwrap() error { return e.Err }

// AboutDisk is the disk's name.
func (e *DamageError) AboutDisk() string { return e.Disk }

// damage adds disk and range, of guest bytes, to an error out of the repository, or
// the range where the disk is known.
func damage(disk string, err error, start, end int64) error {
	var known *DamageError
	if errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var of *chain.DiskError
	if errors.As(err, &of) {
		err = of.Err
	}
	if archive.IsDamage(err) {
		return &DamageError{Disk: disk, Start: start, End: end, Err: err}
	}
	return &chain.DiskError{Disk: disk, Err: err}
}

// VerifyError says that what was written does not read back as it should: the
// target's medium, or something between it and us, is at fault.
type VerifyError struct {
	Disk       string
	Path       string
	Start, End int64 // guest bytes: the range within which there is a difference
	What       string
}

func (e *VerifyError) Error() string {
	return fmt.Sprintf("%s: disk %s, written and read back, is wrong in bytes %d to %d: %s", e.Path, e.Disk, e.Start, e.End-1, e.What)
}

// AboutDisk is the disk's name.
func (e *VerifyError) AboutDisk() string { return e.Disk }
