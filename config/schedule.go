// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/adhocore/gronx"
	"go.yaml.in/yaml/v3"
)

// Schedule is when a job runs: five fields as cron has them. The zero value is never.
type Schedule struct {
	text string // as it was written
	cron string
}

var (
	weekdays = []string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}
	named    = regexp.MustCompile(`^(hourly|daily|weekly|monthly)( (Sun|Mon|Tue|Wed|Thu|Fri|Sat))?( ([01]?[0-9]|2[0-3]):([0-5][0-9]))?$`)
)

// ParseSchedule reads hourly, daily, weekly or monthly, a time as in "daily 02:30" and
// "weekly Sun 02:30", or what cron has in five fields.
func ParseSchedule(text string) (Schedule, error) {
	want := fmt.Errorf("%.60q: want hourly, daily, weekly or monthly, a time as in 'daily 02:30' or 'weekly Sun 02:30', or five fields as cron has them", text)
	if m := named.FindStringSubmatch(text); m != nil {
		hour, minute := 0, 0
		if m[4] != "" {
			hour, _ = strconv.Atoi(m[5])
			minute, _ = strconv.Atoi(m[6])
		}
		switch {
		case m[3] != "" && m[1] != "weekly", m[4] != "" && m[1] == "hourly":
			return Schedule{}, want
		case m[1] == "hourly":
			return Schedule{text, "0 * * * *"}, nil
		case m[1] == "daily":
			return Schedule{text, fmt.Sprintf("%d %d * * *", minute, hour)}, nil
		case m[1] == "monthly":
			return Schedule{text, fmt.Sprintf("%d %d 1 * *", minute, hour)}, nil
		}
		return Schedule{text, fmt.Sprintf("%d %d * * %d", minute, hour, max(slices.Index(weekdays, m[3]), 0))}, nil
	}
	if fields := strings.Fields(text); len(fields) != 5 || !plainCron.MatchString(strings.Join(fields, " ")) || !gronx.IsValid(text) {
		return Schedule{}, want
	}
	return Schedule{text, strings.Join(strings.Fields(text), " ")}, nil
}

// plainCron is what is taken of cron's fields: what every cron has, so that it can be
// said to systemd, too.
var plainCron = regexp.MustCompile(`^[0-9*/,-]+ [0-9*/,-]+ [0-9*/,-]+ [0-9A-Za-z*/,-]+ [0-9A-Za-z*/,-]+$`)

// IsZero reports whether it is never.
func (s Schedule) IsZero() bool { return s.cron == "" }

// Cron is the schedule as five fields; empty: never.
func (s Schedule) Cron() string { return s.cron }

func (s Schedule) String() string { return s.text }

// Next is the first time after t, in t's zone. A time that clocks leave out in spring is
// later by what they leave out; one that comes twice in autumn counts once. ok is false
// if there is none within years.
func (s Schedule) Next(t time.Time) (next time.Time, ok bool) {
	if s.IsZero() {
		return time.Time{}, false
	}
	// The fields are those of a clock on the wall: reckoned where no hour is left out or
	// comes twice, and then put into the zone.
	wall := func(t time.Time) time.Time {
		return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), time.UTC)
	}
	for w := wall(t); ; {
		n, err := gronx.NextTickAfter(s.cron, w, false)
		if err != nil {
			return time.Time{}, false
		}
		next := time.Date(n.Year(), n.Month(), n.Day(), n.Hour(), n.Minute(), 0, 0, t.Location())
		if first := next.Add(-time.Hour); wall(first).Equal(wall(next)) {
			next = first
		}
		if next.After(t) {
			return next, true
		}
		w = n
	}
}

// UnmarshalYAML implements [yaml.Unmarshaler].
func (s *Schedule) UnmarshalYAML(node *yaml.Node) (err error) {
	if *s, err = ParseSchedule(node.Value); err != nil {
		return lineError(node, "%v", err)
	}
	return nil
}

// MarshalYAML implements [yaml.Marshaler].
func (s Schedule) MarshalYAML() (any, error) { return s.text, nil }
