// SPDX-License-Identifier: Apache-2.0

package report

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/dustin/go-humanize"
)

// Level is how good something is; what is larger is worse.
type Level int

// The levels.
const (
	Good Level = iota
	Warning
	Bad
)

func (l Level) String() string { return [...]string{"good", "warning", "bad"}[l] }

// MarshalText writes the level as its word.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads the word.
func (l *Level) UnmarshalText(text []byte) error {
	for *l = Good; *l <= Bad; *l++ {
		if string(text) == l.String() {
			return nil
		}
	}
	return fmt.Errorf("level %.20q", text)
}

// Verdict says whether all is well, and why not.
type Verdict struct {
	Level   Level    `json:"level"`
	Reasons []Reason `json:"reasons"` // worst first; none: all is well
}

// Reason is one thing that is not well.
type Reason struct {
	Level Level  `json:"level"`
	Code  string `json:"code"` // a word of a-z and -, for programs
	Text  string `json:"text"`
}

func (v *Verdict) add(level Level, code, format string, args ...any) {
	r := Reason{level, code, fmt.Sprintf(format, args...)}
	at := len(v.Reasons)
	for at > 0 && v.Reasons[at-1].Level < level {
		at--
	}
	v.Reasons = append(v.Reasons[:at:at], append([]Reason{r}, v.Reasons[at:]...)...)
	v.Level = max(v.Level, level)
}

const (
	late      = 3 // usual intervals without a checkpoint are worth a warning
	veryLate  = 10
	drillsAge = 90 * 24 * time.Hour
	// shortInterval: what is made by hand, one after the other, is no rhythm to be late by.
	shortInterval = time.Hour
)

// judge says whether a domain is well.
func (d *Domain) judge(o Options) {
	if len(d.Checkpoints) == 0 {
		d.Verdict.add(Bad, "empty", "there is no checkpoint that can be read")
		return
	}
	newest := d.newest()
	if newest == nil {
		d.Verdict.add(Bad, "empty", "no checkpoint holds data: they are only in the images")
		return
	}
	d.judgeAge(o)
	d.judgeDoubt()
	d.judgeLost()
	for _, disk := range newest.Disks {
		for _, f := range disk.Unusual {
			d.Verdict.add(Warning, f.Code, "%s, disk %s: %s", newest.Checkpoint, disk.Disk, f.Text)
		}
	}
	d.judgeDrills(o)
}

// judgeLost tells which checkpoints have lost data: the newest by name, and how many.
func (d *Domain) judgeLost() {
	var last *Checkpoint
	n := 0
	for _, c := range d.Checkpoints {
		if c.LostBytes > 0 {
			last = c
			n++
		}
	}
	if last == nil {
		return
	}
	more := ""
	if n > 1 {
		more = fmt.Sprintf(", and %d before it have lost some, too", n-1)
	}
	d.Verdict.add(Bad, "lost", "%s has lost %s of its data%s", last.Checkpoint, humanize.IBytes(uint64(last.LostBytes)), more)
}

// judgeDoubt tells of which checkpoints the time is not believed.
func (d *Domain) judgeDoubt() {
	for _, c := range d.Checkpoints {
		if c.Doubt != "" {
			d.Verdict.add(Warning, "time-doubt", "the time of %s is not believed: %s", c.Checkpoint, c.Doubt)
		}
	}
}

func (d *Domain) judgeAge(o Options) {
	age, usual := time.Duration(d.NewestAge)*time.Second, time.Duration(d.Interval)*time.Second
	switch {
	case d.NewestAge < 0:
		d.Verdict.add(Warning, "clock", "the newest checkpoint is of the future: a clock is wrong")
	case o.MaxAge > 0 && age > o.MaxAge:
		d.Verdict.add(Bad, "late", "the newest checkpoint is %s old, and may be %s", span(age), span(o.MaxAge))
	case o.MaxAge > 0 || usual < shortInterval:
	case age > veryLate*usual:
		d.Verdict.add(Bad, "late", "the newest checkpoint is %s old; one each %s is usual", span(age), span(usual))
	case age > late*usual:
		d.Verdict.add(Warning, "late", "the newest checkpoint is %s old; one each %s is usual", span(age), span(usual))
	}
}

func (d *Domain) judgeDrills(o Options) {
	whole := slices.DeleteFunc(slices.Clone(d.Drills), func(drill Drill) bool { return !drill.tells() })
	if len(whole) == 0 {
		d.Verdict.add(Warning, "undrilled", "no restore of it was ever tried ('imgbackup drill %s')", d.Domain)
		return
	}
	last := whole[len(whole)-1]
	for _, c := range slices.Backward(d.Checkpoints) {
		if c.Drilled == "failed" && c.Checkpoint != last.Checkpoint { // which others after it do not mend
			d.Verdict.add(Bad, "drill", "the newest drill of %s failed", c.Checkpoint)
			break
		}
	}
	of := cmp.Or(last.Checkpoint, "a checkpoint that was forgotten since")
	age := o.Now.Sub(last.Begun)
	switch {
	case last.Verdict == "failed":
		d.Verdict.add(Bad, "drill", "the newest drill, of %s, failed", of)
	case last.Verdict != "passed":
		d.Verdict.add(Warning, "drill", "the newest drill, of %s, proved nothing: a step that is required was skipped", of)
	case age > drillsAge:
		d.Verdict.add(Warning, "undrilled", "the newest drill was %s ago", span(age))
	}
}

// span is a time for people, of two units at most.
func span(d time.Duration) string {
	d = max(d, -d)
	const day = 24 * time.Hour
	switch {
	case d >= 10*day:
		return fmt.Sprintf("%d days", d/day)
	case d >= 2*day:
		return fmt.Sprintf("%d days %d h", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%d min", d/time.Minute)
}
