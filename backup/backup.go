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

// DiskRequest names one disk of the domain and how it is to be backed up.
type DiskRequest struct {
	Disk   string       // name in the domain, as "vda"
	Path   string       // of the active image
	Format qcow2.Format // never probed
	// KeyFile holds the passphrase of an encrypted image, see [foreign.Options].
	KeyFile string
	Mode    Mode   // empty: the request's
	Since   string // checkpoint to be incremental from; empty: the request's

	NoCheckpoint bool          // add no bitmap to this disk
	AllowDirs    []string      // folders, besides the request's, for its backing and data files
	Defined      *DefinedChain // what the domain's definition says lies below the image; nil: nothing
}

// DefinedChain is a backing chain as a domain's definition states it, topmost
// first. QEMU is started with that one, whatever the images say: where they
// disagree, what we would archive is not what the guest sees.
type DefinedChain struct {
	Images []DefinedImage
	Ends   bool // there is nothing below the last one
}

// DefinedImage is one backing file of it.
type DefinedImage struct {
	Path   string
	Format string // empty: not stated
}

// Request is what one backup is to do.
type Request struct {
	Domain      string
	DomainUUID  string // from the domain's definition; empty if unknown
	Disks       []DiskRequest
	Files       []FileRequest   // archived beside the disks; at most one of each role
	LeftOut     []chain.LeftOut // of the domain's disks; recorded in the manifest
	Mode        Mode
	Since       string // for disks that name none; empty: the newest that can be trusted
	Checkpoint  string // empty: a new name from the time
	Description string

	NoCheckpoint bool     // add no bitmap: the images are not written to
	NoLock       bool     // do not take QEMU's image locks; recorded in the manifest
	Adopt        bool     // go on with a domain that another host began
	AllowDirs    []string // folders, besides each image's own, for backing and data files
	Tool         string   // name and version of the program, for the manifest
	TempDir      string   // for maps that are too large for memory; empty: the system's

	Level     archive.Level
	NoVerify  bool          // do not decode each frame again before it counts
	RateLimit int64         // bytes of guest data read per second; 0: no limit
	MaxLock   time.Duration // the longest time the images may stay locked; 0: no limit
	LockWait  time.Duration // how long to wait for another holder of an image's locks
}

// Hooks tell the caller how a backup goes on. Each may be nil. Progress may be
// called from several goroutines at once.
type Hooks struct {
	Note     func(msg string)        // something a person should know
	Planned  func(p *Plan)           // the plan that is carried out
	Progress func(done, total int64) // guest bytes dealt with
	// Disk is called when the reading of a disk begins, and for each part of it
	// that was read: so many of so many guest bytes.
	Disk func(target string, done, total int64)
	Step func(name string) // a step of the writing order is about to begin
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
}

func (e *NotTrustedError) Error() string {
	text := "an incremental backup cannot be trusted: " + e.Reason
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text
}

// Result is what a finished backup has stored.
type Result struct {
	Manifest *chain.Manifest // nil if no checkpoint was made
	Plan     *Plan
	Stats    archive.Stats
	Elapsed  time.Duration
	Notes    []string
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
