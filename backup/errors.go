// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"fmt"
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
