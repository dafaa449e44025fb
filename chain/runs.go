// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/archive"
)

// Run is a writer that is at work, or has left something: its lease and its
// intents, which bear one uuid.
type Run struct {
	UUID    string
	Process Process
	Since   time.Time // zero if nothing of it can be read
	Lease   *Lease    // nil: there is none
	Intents []*Intent
	// Damaged are the keys of what bears the uuid and can't be read, sorted.
	Damaged []string

	Fate Fate // as far as it can be known from here
	Here bool // it runs, or ran, on this machine
}

// Runs returns all runs, oldest first. Of what a newer version has written, or what
// is damaged, there is an error among the second result; the last one is the store's
// failure.
func (r *Repository) Runs(ctx context.Context) ([]*Run, []error, error) {
	self, err := r.Self()
	if err != nil {
		return nil, nil, err
	}
	leases, unusable, err := r.Leases(ctx)
	if err != nil {
		return nil, nil, err
	}
	intents, more, err := r.AllIntents(ctx)
	if err != nil {
		return nil, nil, err
	}
	unusable = append(unusable, more...)
	all := make(map[string]*Run)
	of := func(uuid string) *Run {
		if all[uuid] == nil {
			all[uuid] = &Run{UUID: uuid}
		}
		return all[uuid]
	}
	for _, l := range leases {
		run := of(l.UUID)
		run.Lease, run.Process, run.Since = l, l.Process, l.Started
	}
	for _, in := range intents {
		run := of(in.UUID)
		run.Intents = append(run.Intents, in)
		if run.Lease == nil {
			run.Process, run.Since = in.Process, in.Created
		}
	}
	for _, err := range unusable {
		var damage *archive.DamageError
		if errors.As(err, &damage) {
			run := of(ParseKey(damage.Object).Name)
			run.Damaged = append(run.Damaged, damage.Object)
		}
	}
	var runs []*Run
	for _, run := range all {
		if run.Lease != nil || len(run.Intents) > 0 {
			run.Fate, run.Here = self.Fate(run.Process), self.SameMachine(run.Process)
		}
		slices.Sort(run.Damaged)
		runs = append(runs, run)
	}
	slices.SortFunc(runs, func(a, b *Run) int {
		return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.UUID, b.UUID))
	})
	return runs, unusable, nil
}

// RemoveRun breaks a run's lease, and removes what of it is damaged: what that
// announced can't be known. Its intents must have been settled.
func (r *Repository) RemoveRun(ctx context.Context, run *Run) error {
	for _, key := range run.Damaged {
		if err := r.Store.Delete(ctx, key); err != nil {
			return err
		}
	}
	if run.Lease == nil {
		return nil
	}
	if run.Fate != FateEnded {
		if err := r.CheckManages("break the lease of a run that may be at work"); err != nil {
			return err
		}
	}
	return r.BreakLease(ctx, run.Lease)
}
