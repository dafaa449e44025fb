// SPDX-License-Identifier: Apache-2.0

// Package retention decides which checkpoints of a domain stay, by rules as "the
// newest of each of the last seven days". It is arithmetic alone: no store, no clock,
// no zone but the one that it is given.
//
// Its invariants:
//
//   - A rule keeps, and nothing removes but that no rule keeps. Rules are asked each by
//     itself, so that one more of them, or a larger number, never keeps fewer.
//   - Of a period the newest checkpoint is kept. Only periods that have a checkpoint
//     count.
//   - What is newest is the order in which checkpoints were made, and never a time.
//     Where times contradict it, a clock was wrong, and no rule about times is applied:
//     [ClockError].
//   - Where there is a time before which nothing can be deleted anyway ([Rules.Young]), what goes
//     does not depend on anything that is younger: who can only add checkpoints pushes none out of
//     what the rules keep before that time is over.
//   - "Now" is the newest checkpoint's time: where no backups are made any more,
//     nothing grows too old.
package retention

import (
	"fmt"
	"slices"
	"time"
)

// KeepTag is the tag of checkpoints that stay whatever the rules are.
const KeepTag = "keep"

// Checkpoint is what the rules ask of a checkpoint.
type Checkpoint struct {
	Name string
	Time time.Time // when it was made
	Tags []string
	// Drilled says that a rehearsed restore of it has passed.
	Drilled bool
}

// Unlimited is a number of periods: all of them.
const Unlimited = -1

// Rules say what stays. The zero value is no rule at all.
type Rules struct {
	Last int // so many checkpoints: the newest

	// Of so many periods the newest checkpoint.
	Hourly, Daily, Weekly, Monthly, Yearly int

	// Within is how far back all checkpoints stay, and the others of how many periods the
	// newest does, counted from the domain's newest checkpoint.
	Within                                                               Duration
	WithinHourly, WithinDaily, WithinWeekly, WithinMonthly, WithinYearly Duration

	Tags []string // all that have any of these

	Drilled int // so many of those of which a drill passed: the newest

	// Young is how old checkpoints are at the least, counted back from the newest time, before the
	// rules are asked about them: younger ones stay, and the rules decide about the others as if
	// there were no younger ones. 0: rules are asked about all.
	Young time.Duration
}

// YoungReason is why a checkpoint stays that is younger than [Rules.Young].
const YoungReason = "younger than the lock"

// None reports whether there is no rule at all.
func (r Rules) None() bool { return len(r.Tags) == 0 && len(r.list(time.UTC)) == 0 }

// Timed reports whether any rule asks when checkpoints were made.
func (r Rules) Timed() bool {
	return slices.ContainsFunc(r.list(time.UTC), func(r rule) bool { return r.timed })
}

// Decision says whether a checkpoint stays.
type Decision struct {
	Checkpoint
	Reasons []string // by which rules; none: it goes
}

// Keep reports whether the checkpoint stays.
func (d Decision) Keep() bool { return len(d.Reasons) > 0 }

// ClockError says that times contradict the order in which checkpoints were made.
type ClockError struct{ Older, Newer Checkpoint }

func (e *ClockError) Error() string {
	return fmt.Sprintf("checkpoint %s was made after %s, and its time, %s, is before that one's, %s:"+
		" a clock was wrong, and rules about times would remove the wrong ones"+
		" (forget the one whose time is wrong by its name, or tag what is to stay and use --keep-last and --keep-tag)",
		e.Newer.Name, e.Older.Name, e.Newer.Time.UTC().Format(time.RFC3339), e.Older.Time.UTC().Format(time.RFC3339))
}

// clockSlack is how far clocks may be set back between two checkpoints.
const clockSlack = time.Hour

// Apply decides about all checkpoints of a domain, given in the order in which they
// were made, and answers in that order. Periods are those of zone.
func (r Rules) Apply(all []Checkpoint, zone *time.Location) ([]Decision, error) {
	rules := r.list(zone)
	if r.Timed() {
		if err := checkClock(all); err != nil {
			return nil, err
		}
	}
	decisions := make([]Decision, len(all))
	young := r.youngSince(all)
	var newest time.Time // of those that the rules are asked about
	for i, c := range slices.Backward(all) {
		d := Decision{Checkpoint: c}
		for _, tag := range r.tags() {
			if slices.Contains(c.Tags, tag) {
				d.Reasons = append(d.Reasons, "tag "+tag)
			}
		}
		decisions[i] = d
		if r.Young > 0 && c.Time.After(young) {
			decisions[i].Reasons = append(d.Reasons, YoungReason)
			continue
		}
		if newest.IsZero() {
			newest = c.Time
		}
		for n := range rules {
			if rules[n].keeps(c, newest) {
				decisions[i].Reasons = append(decisions[i].Reasons, rules[n].reason)
			}
		}
	}
	return decisions, nil
}

// youngSince is the time since which checkpoints are young. The newest time counts, not that of the
// last in the order, which who adds one can choose to be the last.
func (r Rules) youngSince(all []Checkpoint) time.Time {
	var newest time.Time
	for _, c := range all {
		if c.Time.After(newest) {
			newest = c.Time
		}
	}
	return newest.Add(-r.Young)
}

// tags are those whose checkpoints stay, each once.
func (r Rules) tags() []string {
	var tags []string
	for _, tag := range append([]string{KeepTag}, r.Tags...) {
		if !slices.Contains(tags, tag) {
			tags = append(tags, tag)
		}
	}
	return tags
}

// checkClock returns a [ClockError] if a checkpoint is older, by its time, than one
// that was made before it.
func checkClock(all []Checkpoint) error {
	for i, c := range all {
		if i > 0 && c.Time.Before(all[i-1].Time.Add(-clockSlack)) {
			return &ClockError{Older: all[i-1], Newer: c}
		}
	}
	return nil
}
