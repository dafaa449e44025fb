// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/imgbackup/imgbackup/qemu"
)

// OwnedError reports that another host, or a domain of another UUID, began the
// domain's chain.
type OwnedError struct {
	Domain string
	What   string
}

func (e *OwnedError) Error() string {
	return fmt.Sprintf("domain %s belongs to %s; give --adopt to go on with it from here", e.Domain, e.What)
}

// LockTimeError reports that a backup was given up because the images would
// have stayed locked for longer than the caller allows.
type LockTimeError struct{ Max time.Duration }

func (e *LockTimeError) Error() string {
	return fmt.Sprintf("the images were locked for %s, the most that --max-lock allows; nothing was committed", e.Max)
}

// changedError reports that something wrote to an image, or put another file in its
// place, between the plan and the locks that stay until the commit. The backup begins
// again then; when it has done so too often, the image is in use, which is what it
// wraps.
type changedError struct{ inUse qemu.InUseError }

func imageChanged(path, format string, args ...any) error {
	why := "it was written to or exchanged while the backup began: " + fmt.Sprintf(format, args...)
	return &changedError{qemu.InUseError{Path: path, Why: why}}
}

// baseGone reports that a checkpoint which the backup builds on was forgotten, or
// described anew, while it began.
type baseGone struct{ err error }

func (e *baseGone) Error() string {
	return "what this backup was to build on is gone: " + e.err.Error()
}
func (e *baseGone) Unwrap() error { return e.err }

func (e *changedError) Error() string { return e.inUse.Error() }
func (e *changedError) Unwrap() error { return &e.inUse }

// leftError reports that a bitmap which a failed backup has added stays in images that a VM may
// have by now.
type leftError struct{ Bitmap, Domain string }

func (e *leftError) Error() string {
	return fmt.Sprintf("the images were cloned, and a VM may have them by now: so the bitmap %s stays in them (the next backup of %s takes it out)", e.Bitmap, e.Domain)
}

// staysError reports that a bitmap which a failed backup has added could not be taken out of
// the image again; the next run does it.
type staysError struct {
	Bitmap, Path, Domain string
	Err                  error
	cause                error // of the failure, which may be that of this, too: then it is told once
}

func (e *staysError) Error() string {
	what := fmt.Sprintf("the bitmap %s could not be taken out of %s again", e.Bitmap, e.Path)
	next := fmt.Sprintf(" (the next backup of %s does it)", e.Domain)
	var this, that syscall.Errno
	if errors.As(e.Err, &this) && errors.As(e.cause, &that) && this == that {
		return what + " for the same reason" + next
	}
	return what + next + ": " + e.Err.Error()
}
func (e *staysError) Unwrap() error { return e.Err }
