// SPDX-License-Identifier: Apache-2.0

package jobs

import (
	"errors"
	"fmt"
	"time"

	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/habit"
)

// Level is how a domain is, as monitoring has it.
type Level int

// The levels.
const (
	Good Level = iota
	Warning
	Critical
)

func (l Level) String() string { return [...]string{"good", "warning", "critical"}[l] }

// MarshalText implements [encoding.TextMarshaler].
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Facts are what is known of a domain of a job.
type Facts struct {
	Now       time.Time
	Objective time.Duration // 0: none
	// Newest is when the newest checkpoint with data was made; zero: there is none.
	Newest time.Time
	// Unread is why the repository could not be asked; nil: it was.
	Unread error
	// Damaged is what of its checkpoints could not be read.
	Damaged []error
	// Run is the job's newest run; nil: none.
	Run *Run
	// Drill is how the newest drill ended; empty: none.
	Drill string
	// Unusual is what of the newest checkpoint is unlike the domain's habit.
	Unusual []habit.Finding
	// Stopped: its VM was shut down by a run that is no more, and not started again.
	Stopped bool
}

// Overdue reports whether the newest checkpoint is older than it may be. What was never
// backed up is, too, and where the repository can't be asked nobody knows.
func (f *Facts) Overdue() bool {
	return f.Unread == nil && f.Objective > 0 && f.Now.Sub(f.Newest) > f.Objective
}

// Finding is something that is wrong.
type Finding struct {
	Level Level  `json:"level"`
	Text  string `json:"text"`
}

// Judge says what is wrong with a domain. There is always a newest checkpoint to be had,
// or it is critical: what was never backed up is not good.
func Judge(domain string, f Facts) (level Level, all []Finding) {
	find := func(l Level, format string, args ...any) {
		level = max(level, l)
		all = append(all, Finding{l, fmt.Sprintf(format, args...)})
	}
	age := f.Now.Sub(f.Newest)
	switch {
	case f.Unread != nil:
		find(Critical, "the repository can't be read: %v", f.Unread)
	case f.Newest.IsZero():
		find(Critical, "there is no checkpoint")
	case age < -time.Hour:
		find(Warning, "the newest checkpoint is from the future: a clock is wrong")
	case f.Objective > 0 && age > 2*f.Objective:
		find(Critical, "the newest checkpoint is %s old; at most %s are wanted", rough(age), rough(f.Objective))
	case f.Objective > 0 && age > f.Objective:
		find(Warning, "the newest checkpoint is %s old; at most %s are wanted", rough(age), rough(f.Objective))
	}
	for _, err := range f.Damaged {
		find(Critical, "damage: %v", err)
	}
	for _, u := range f.Unusual {
		find(Warning, "unusual: %s", u.Text)
	}
	if f.Drill == "failed" {
		find(Critical, "the newest drill has failed")
	}
	if f.Stopped {
		find(Critical, "its VM was shut down for a backup, and not started again as far as is known (imgbackup run starts it)")
	}
	judgeRun(domain, f.Run, find)
	return level, all
}

// judgeRun looks at what of a run concerns a domain: its own steps, and those for all.
func judgeRun(domain string, run *Run, find func(l Level, format string, args ...any)) {
	if run == nil {
		return
	}
	if run.Interrupted {
		find(Warning, "the last run was cut off")
	}
	for _, d := range run.Failed() {
		switch {
		case d.Domain == domain:
			find(Warning, "the last run: %s failed (%d): %s", d.What, d.Status, d.Error)
		case d.Domain == "" && d.Status == damageFound:
			find(Critical, "the last run: %s found damage: %s", d.What, d.Error)
		case d.Domain == "":
			find(Warning, "the last run: %s failed (%d): %s", d.What, d.Status, d.Error)
		}
	}
}

// damageFound is the exit status of what has found damage.
const damageFound = 3

// Objective is how old the newest checkpoint of a job's domain may be; 0: nothing is said.
func Objective(c *config.Config, job, domain string, now time.Time) time.Duration {
	j := c.Jobs[job]
	if own := c.Domains[domain].Objective; own != 0 {
		return time.Duration(own)
	}
	if j.Objective != 0 {
		return time.Duration(j.Objective)
	}
	// The longest of the next times, as from Friday to Monday.
	var longest time.Duration
	at := now
	for range 10 {
		next, ok := j.Schedule.Next(at)
		if !ok {
			break
		}
		if at != now {
			longest = max(longest, next.Sub(at))
		}
		at = next
	}
	return 2 * longest
}

// rough is a time as a person would say it.
func rough(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%.1f days", d.Hours()/24)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%.0f hours", d.Hours())
	}
	return d.Round(time.Minute).String()
}

// LeftStopped are the domains of VMs that runs have shut down which are no more, and that
// nobody has started again yet.
func LeftStopped(c *config.Config) (map[string]bool, error) {
	r := &runner{Options: Options{Config: c}}
	before, err := r.leftStopped()
	if len(before) == 0 {
		return nil, err
	}
	works := make(map[string]bool)
	for _, s := range before {
		if _, known := works[s.Job]; known {
			continue
		}
		var werr error
		works[s.Job], werr = atWork(c.State, s.Job)
		err = errors.Join(err, werr)
	}
	// It may have been started after it was read, when its run was about to end.
	out := make(map[string]bool)
	for _, s := range before {
		if now, rerr := readStopped(r.stoppedPath(s.Domain)); rerr == nil && now.Run == s.Run && !works[s.Job] {
			out[s.Domain] = true
		}
	}
	return out, err
}
