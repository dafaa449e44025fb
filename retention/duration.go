// SPDX-License-Identifier: Apache-2.0

package retention

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a time on the calendar.
type Duration struct{ Years, Months, Days, Hours int }

// maxUnits bounds each number of a duration.
const maxUnits = 100_000

// ParseDuration parses a duration as restic has it: numbers with y, m, d and h, each at
// most once, as in 1y5m7d2h. Weeks, as in 6w, are seven days. It is not zero.
func ParseDuration(s string) (Duration, error) {
	var d Duration
	wrong := fmt.Errorf("%q is no time as 30d, 1y6m or 12h (y years, m months, w weeks, d days, h hours)", s)
	used := ""
	for rest := s; rest != ""; {
		at := strings.IndexAny(rest, "ymwdh")
		if at < 1 || strings.Contains(used, rest[at:at+1]) || strings.Trim(rest[:at], "0123456789") != "" {
			return Duration{}, wrong
		}
		n, err := strconv.Atoi(rest[:at])
		if err != nil || n > maxUnits {
			return Duration{}, fmt.Errorf("%w: at most %d of each", wrong, maxUnits)
		}
		switch rest[at] {
		case 'y':
			d.Years = n
		case 'm':
			d.Months = n
		case 'w':
			d.Days += 7 * n
		case 'd':
			d.Days += n
		case 'h':
			d.Hours = n
		}
		used, rest = used+rest[at:at+1], rest[at+1:]
	}
	if d.Zero() {
		return Duration{}, wrong
	}
	return d, nil
}

// Zero reports whether the duration is none.
func (d Duration) Zero() bool { return d == Duration{} }

// String is the duration as [ParseDuration] reads it.
func (d Duration) String() string {
	var b strings.Builder
	for _, part := range []struct {
		n    int
		unit byte
	}{{d.Years, 'y'}, {d.Months, 'm'}, {d.Days, 'd'}, {d.Hours, 'h'}} {
		if part.n != 0 {
			b.WriteString(strconv.Itoa(part.n))
			b.WriteByte(part.unit)
		}
	}
	return b.String()
}

// Before is the time that is so long before t: first the years and months, then the days,
// on t's calendar and at its time of the day, then the hours. A month before the 31st is
// the last day of a month that has none.
func (d Duration) Before(t time.Time) time.Time {
	year, month, day := t.Date()
	first := time.Date(year-d.Years, month-time.Month(d.Months), 1, 0, 0, 0, 0, time.UTC)
	if last := first.AddDate(0, 1, -1).Day(); day > last {
		day = last
	}
	hour, minute, second := t.Clock()
	back := time.Date(first.Year(), first.Month(), day-d.Days, hour, minute, second, t.Nanosecond(), t.Location())
	return back.Add(-time.Duration(d.Hours) * time.Hour)
}
