// SPDX-License-Identifier: Apache-2.0

package report

import (
	"errors"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/retention"
)

// Retention is what forget would do by some rules.
type Retention struct {
	Kept []Kept   `json:"keep"`
	Gone []string `json:"remove"` // now
	Next []Leaves `json:"next"`   // those that go first, if backups go on as is usual
	Note string   `json:"note,omitempty"`
}

// Kept is a checkpoint that stays for now, and by which rules.
type Kept struct {
	Checkpoint string   `json:"checkpoint"`
	Reasons    []string `json:"reasons"`
}

// Leaves is a checkpoint that goes, and about when.
type Leaves struct {
	Checkpoint string    `json:"checkpoint"`
	At         time.Time `json:"at"`
}

// Bounds of how far is looked ahead.
const (
	aheadBackups = 60
	aheadLeaves  = 10
)

func (d *Domain) retain(o Options) error {
	if o.Rules.None() {
		return nil
	}
	var all []retention.Checkpoint
	for _, c := range d.Checkpoints {
		if c.Kind == chain.KindArchive && c.Doubt == "" {
			all = append(all, retention.Checkpoint{Name: c.Checkpoint, Time: c.Created, Tags: c.Tags, Drilled: d.hasPassed(c)})
		}
	}
	d.Retention = &Retention{Kept: []Kept{}, Gone: []string{}, Next: []Leaves{}}
	now, err := o.Rules.Apply(all, o.Zone)
	var clock *retention.ClockError
	if errors.As(err, &clock) {
		d.Retention.Note = err.Error()
		return nil
	}
	if err != nil {
		return err
	}
	var stay []retention.Checkpoint
	for _, c := range now {
		if c.Keep() {
			stay = append(stay, c.Checkpoint)
			d.Retention.Kept = append(d.Retention.Kept, Kept{c.Name, c.Reasons})
		} else {
			d.Retention.Gone = append(d.Retention.Gone, c.Name)
		}
	}
	return d.foresee(stay, o)
}

// hasPassed reports whether the last drill of a checkpoint that came to a verdict passed,
// as forget asks.
func (d *Domain) hasPassed(c *Checkpoint) bool {
	for _, drill := range slices.Backward(d.Drills) {
		if drill.Checkpoint == c.Checkpoint && !drill.Partial && drill.Verdict != string(record.VerdictIncomplete) {
			return drill.Verdict == string(record.VerdictPassed)
		}
	}
	return false
}

// foresee makes up backups at the usual pace, and applies the rules after each.
func (d *Domain) foresee(stay []retention.Checkpoint, o Options) error {
	step := time.Duration(d.Interval) * time.Second
	if step == 0 || len(stay) == 0 {
		return nil
	}
	at := stay[len(stay)-1].Time
	for range aheadBackups {
		at = at.Add(step)
		decisions, err := o.Rules.Apply(append(stay, retention.Checkpoint{Time: at}), o.Zone)
		if err != nil {
			return err
		}
		stay = stay[:0:0]
		for _, c := range decisions {
			switch {
			case c.Keep():
				stay = append(stay, c.Checkpoint)
			case c.Name != "":
				if d.Retention.Next = append(d.Retention.Next, Leaves{c.Name, at}); len(d.Retention.Next) == aheadLeaves {
					return nil
				}
			}
		}
	}
	return nil
}
