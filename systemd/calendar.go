// SPDX-License-Identifier: Apache-2.0

package systemd

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/adhocore/gronx"
)

var weekdays = []string{"Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"}

// calendar says what cron's five fields say as systemd's OnCalendar= does: one line, or, where
// days of the month and of the week are both restricted, of which cron wants either, two.
func calendar(cron string) ([]string, error) {
	f := strings.Fields(cron)
	if len(f) != 5 {
		return nil, fmt.Errorf("%q has not five fields", cron)
	}
	start := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC) // a Monday
	minutes := values("%s * * * *", f[0], 60, func(i int) (time.Time, string) { return start.Add(time.Duration(i) * time.Minute), strconv.Itoa(i) })
	hours := values("* %s * * *", f[1], 24, func(i int) (time.Time, string) { return start.Add(time.Duration(i) * time.Hour), strconv.Itoa(i) })
	days := values("* * %s * *", f[2], 31, func(i int) (time.Time, string) { return start.AddDate(0, 0, i), strconv.Itoa(i + 1) })
	months := values("* * * %s *", f[3], 12, func(i int) (time.Time, string) { return start.AddDate(0, i, 0), strconv.Itoa(i + 1) })
	week := values("* * * * %s", f[4], 7, func(i int) (time.Time, string) { return start.AddDate(0, 0, i), weekdays[i] })
	for _, list := range []string{minutes, hours, days, months, week} {
		if list == "" {
			return nil, fmt.Errorf("%q: there is no such time", cron)
		}
	}
	line := func(week, days string) string {
		text := fmt.Sprintf("*-%s-%s %s:%s:00", months, days, hours, minutes)
		if week != "*" {
			text = week + " " + text
		}
		return text
	}
	if days != "*" && week != "*" {
		return []string{line("*", days), line(week, "*")}, nil
	}
	return []string{line(week, days)}, nil
}

// values are those of n that a field means, as the library that reads schedules finds: a
// list, or * for all of them.
func values(pattern, field string, n int, at func(i int) (time.Time, string)) string {
	var all []string
	for i := range n {
		when, name := at(i)
		if due, err := gronx.New().IsDue(fmt.Sprintf(pattern, field), when); err == nil && due {
			all = append(all, name)
		}
	}
	if len(all) == n {
		return "*"
	}
	return strings.Join(all, ",")
}
