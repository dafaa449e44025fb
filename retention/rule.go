// SPDX-License-Identifier: Apache-2.0

package retention

import (
	"fmt"
	"time"
)

// rule is one rule while it is applied, to the newest checkpoint first.
type rule struct {
	reason string
	timed  bool                     // it asks for times
	only   func(c Checkpoint) bool  // nil: of all checkpoints
	period func(t time.Time) string // nil: each checkpoint is a period of its own
	left   int                      // so many periods may still be kept; Unlimited: all
	within Duration                 // zero: no bound
	zone   *time.Location
	seen   map[string]bool
}

// keeps reports whether the rule keeps a checkpoint. It is asked once for each.
func (r *rule) keeps(c Checkpoint, newest time.Time) bool {
	if r.only != nil && !r.only(c) {
		return false
	}
	if !r.within.Zero() && c.Time.Before(r.within.Before(newest.In(r.zone))) {
		return false
	}
	if r.period != nil {
		p := r.period(c.Time.In(r.zone))
		if r.seen[p] {
			return false
		}
		r.seen[p] = true
	}
	if r.left == 0 {
		return false
	}
	if r.left > 0 {
		r.left--
	}
	return true
}

// periods are those that rules can be about.
func periods() []struct {
	name string
	of   func(time.Time) string
} {
	return []struct {
		name string
		of   func(time.Time) string
	}{
		// An hour that comes twice, when clocks are set back, is two.
		{"hourly", func(t time.Time) string { return t.Format("2006-01-02 15 -0700") }},
		{"daily", func(t time.Time) string { return t.Format("2006-01-02") }},
		{"weekly", func(t time.Time) string {
			year, week := t.ISOWeek()
			return fmt.Sprintf("%d-%d", year, week)
		}},
		{"monthly", func(t time.Time) string { return t.Format("2006-01") }},
		{"yearly", func(t time.Time) string { return t.Format("2006") }},
	}
}

// list is the rules that there are, apart from tags.
func (r Rules) list(zone *time.Location) []rule {
	var all []rule
	add := func(one rule) {
		one.zone, one.seen = zone, make(map[string]bool)
		all = append(all, one)
	}
	if r.Last != 0 {
		add(rule{reason: "last", left: r.Last})
	}
	if r.Drilled != 0 {
		add(rule{reason: "drilled", left: r.Drilled, only: func(c Checkpoint) bool { return c.Drilled }})
	}
	counts := []int{r.Hourly, r.Daily, r.Weekly, r.Monthly, r.Yearly}
	for i, p := range periods() {
		if counts[i] != 0 {
			add(rule{reason: p.name, timed: true, period: p.of, left: counts[i]})
		}
	}
	if !r.Within.Zero() {
		add(rule{reason: "within " + r.Within.String(), timed: true, left: Unlimited, within: r.Within})
	}
	within := []Duration{r.WithinHourly, r.WithinDaily, r.WithinWeekly, r.WithinMonthly, r.WithinYearly}
	for i, p := range periods() {
		if d := within[i]; !d.Zero() {
			add(rule{reason: p.name + " within " + d.String(), timed: true, period: p.of, left: Unlimited, within: d})
		}
	}
	return all
}
