// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill/record"
)

func (d *Drill) newRecord(t *Target) *record.Record {
	m := t.Manifest
	begun := now()
	return &record.Record{
		Head: chain.Head{Format: record.Format, Version: record.Version},
		Run:  d.o.Run, RepositoryID: d.repo.Config.ID,
		Domain: m.Domain, DomainUUID: m.DomainUUID, Checkpoint: m.Checkpoint, CheckpointUUID: m.UUID,
		Revision: m.Revision, Created: m.Created, Disks: []record.Disk{},
		Host: record.Host{Name: d.self.Host.Name, ID: d.self.Host.ID}, Tool: d.o.Tool, AskedBy: d.o.AskedBy, ChosenBy: t.ChosenBy,
		Begun: begun, Required: []string{}, Steps: []record.Step{},
	}
}

// judge says which steps were required, and what the verdict is. A step that failed is
// never overlooked, be it required or not.
func (u *under) judge() {
	r := u.r
	r.Required = slices.Clone(u.t.Require)
	if len(u.t.Require) == 0 {
		r.Required = []string{}
		for _, s := range u.t.Steps {
			if s.Name() != record.StepBoot && !u.skipped[s.Name()] {
				r.Required = append(r.Required, s.Name())
			}
		}
	}
	r.Verdict = record.VerdictPassed
	for _, name := range r.Required {
		if s, ok := r.Step(name); !ok || s.Status != record.Passed {
			r.Verdict = record.VerdictIncomplete
		}
	}
	passed := false
	for _, s := range r.Steps {
		passed = passed || s.Status == record.Passed
	}
	if !passed { // all was left out, or there was nothing to try: that proves nothing
		r.Verdict = record.VerdictIncomplete
	}
	for _, s := range r.Steps {
		if s.Status == record.Failed {
			r.Verdict = record.VerdictFailed
		}
	}
}

// rpo is what would have been lost at a time, by the archives of a domain, oldest first.
func rpo(history []*chain.Manifest, at time.Time) (r record.RPO) {
	var last *chain.Manifest
	for _, m := range history {
		if m.Kind != chain.KindArchive {
			continue
		}
		r.Checkpoints++
		if last != nil {
			if gap := int64(m.Created.Sub(last.Created) / time.Second); gap > r.LongestGap {
				r.LongestGap, r.GapAfter = gap, last.Checkpoint
			}
		}
		last = m
	}
	if last != nil {
		r.Age = max(0, int64(at.Sub(last.Created)/time.Second))
	}
	return r
}

// noSpace reports whether an error says that there is no room.
func noSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}
