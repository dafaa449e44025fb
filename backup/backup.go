// SPDX-License-Identifier: Apache-2.0

// Package backup is the engine that takes a shut-down domain's disks into a
// repository: it plans, adds the new checkpoint's bitmaps, locks, reads,
// archives, commits and retires old bitmaps, in that order.
//
// Its invariants:
//
//   - Every guest write from the moment the new bitmap stands is recorded by
//     it; data is read only after that, under QEMU's image locks. A crash can
//     therefore lead to too much being backed up later, never to too little.
//   - All disks of a domain commit in one manifest, or none does.
//   - A bitmap is a witness, not proof. An incremental backup rests on one
//     only after the checks of package trust have failed to contradict it.
//   - Only bitmaps that a manifest or an intent of the repository names are
//     ever removed from an image.
package backup

import (
	"context"
	"fmt"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Mode says how a disk is to be backed up.
type Mode string

const (
	// Auto takes an incremental where it can be trusted, and else reads
	// everything.
	Auto Mode = "auto"
	// Full stores a disk without regard to earlier checkpoints.
	Full Mode = "full"
	// Incremental fails with [NotTrustedError] where an incremental cannot be
	// trusted.
	Incremental Mode = "incremental"
)

// ParseMode returns the mode that s names.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case Auto, Full, Incremental:
		return m, nil
	}
	return "", fmt.Errorf("mode %q: want auto, full or incremental", s)
}

// Hooks tell the caller how a backup goes on. Each may be nil. Progress may be
// called from several goroutines at once.
type Hooks struct {
	Note     func(msg string)        // something a person should know
	Progress func(done, total int64) // guest bytes dealt with
	// Disk is called when the reading of a disk begins, and for each part of it
	// that was read: so many of so many guest bytes.
	Disk func(target string, done, total int64)
	Step func(name string) // a step of the writing order is about to begin
	// Opened is called each time that the images are open, in the request's order, and locked; they are
	// the run's. Nothing has been written then, and its error ends the run.
	Opened func(images []*qcow2.Image) error
	Now    func() time.Time // the clock that tells how old files are; nil: the system's
}

func (h Hooks) now() time.Time {
	if h.Now != nil {
		return h.Now()
	}
	return time.Now()
}

func (h Hooks) note(format string, args ...any) {
	if h.Note != nil {
		h.Note(fmt.Sprintf(format, args...))
	}
}

func (h Hooks) step(name string) {
	if h.Step != nil {
		h.Step(name)
	}
}

// NotTrustedError reports that an incremental was demanded of a disk for which
// it cannot be trusted. Nothing has been written.
type NotTrustedError struct {
	Disk   string
	Code   trust.Reason
	Reason string
	Hint   string // what to do; may be empty

	Asked string   // the checkpoint, where there is none of that name; else empty
	Known []string // then: those that the disk has
}

func (e *NotTrustedError) Error() string {
	text := "an incremental backup cannot be trusted: " + e.Reason
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text
}

// AboutDisk is the disk's name.
func (e *NotTrustedError) AboutDisk() string { return e.Disk }

// Result is what a finished backup has stored.
type Result struct {
	Manifest *chain.Manifest // nil if no checkpoint was made
	Audits   []Audit         // of each disk, if they were asked for
	Seen     *chain.Seen     // not nil: none was made since nothing has changed
	Plan     *Plan
	Stats    archive.Stats
	Elapsed  time.Duration
	// Locked is for how long a VM could not have the images: from the first lock on one of them
	// until they were cloned, or the checkpoint stood.
	Locked    time.Duration
	Cloned    bool   // the images were read from clones
	NotCloned string // why they were not, though that was asked for
	Notes     []string
	Before    *Before // of an import, for that of the next point
}

// DryRun returns the plan that [Run] would carry out, and writes nothing.
func DryRun(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks) (*Plan, error) {
	return dryRun(ctx, repo, req, hooks, toArchive)
}

func dryRun(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks, to func(*session)) (*Plan, error) {
	s, err := newSession(repo, req, hooks, to)
	if err != nil {
		return nil, err
	}
	defer s.close()
	return s.decide(ctx)
}
