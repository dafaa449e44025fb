// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
)

// Seen is a disk whose image is open, under QEMU's locks, beside what the repository
// recorded of it.
type Seen struct {
	Disk  string
	Judge *trust.Judge
}

// Look opens the images of a request and lets see have them. Nothing is written. What was
// seen of images that changed meanwhile is worth nothing, which is an error then. Errors
// of one disk are a [*chain.DiskError].
func Look(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks, see func(ctx context.Context, disks []Seen) error) error {
	s, err := newSession(repo, req, hooks, toNothing)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.loadHistory(ctx); err != nil {
		return err
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	if err := s.confirmHistory(ctx); err != nil {
		return err
	}
	s.rememberIdentity()
	s.recognize()
	return errors.Join(see(ctx, s.seen()), s.compareIdentity(""))
}

func (s *session) seen() []Seen {
	var all []Seen
	for _, d := range s.disks {
		all = append(all, Seen{d.req.Disk, s.judge(d)})
	}
	return all
}

// ChangedSince returns what may have changed in the disk since a checkpoint, or since the
// newest if none is named, by bitmaps that are believed. If none is, it is a
// [*NotTrustedError].
func (d Seen) ChangedSince(ctx context.Context, checkpoint string) (trust.Verdict, error) {
	refused := func(code trust.Reason, reason string) (trust.Verdict, error) {
		return trust.Verdict{}, &NotTrustedError{Disk: d.Disk, Code: code, Reason: reason}
	}
	if checkpoint != "" {
		if _, ok := d.Judge.States.Named(checkpoint); !ok {
			return trust.Verdict{}, unknownCheckpoint(d.Disk, checkpoint, d.Judge.States)
		}
	}
	v, err := d.Judge.Verdict(ctx, trust.Question{Since: checkpoint})
	if err == nil && !v.Trusted {
		return refused(v.Code, v.Reason)
	}
	return v, err
}

// unknownCheckpoint is the error for a checkpoint that a disk has not.
func unknownCheckpoint(disk, checkpoint string, states chain.States) error {
	e := &NotTrustedError{
		Disk: disk, Code: trust.ReasonNoCheckpoint, Asked: checkpoint,
		Reason: fmt.Sprintf("the repository holds no checkpoint %s of this disk", checkpoint),
	}
	for _, st := range states {
		e.Known = append(e.Known, st.Manifest.Checkpoint)
	}
	return e
}
