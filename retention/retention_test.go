// SPDX-License-Identifier: Apache-2.0

package retention_test

import (
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/retention"
)

// at parses times of one zone, one checkpoint each, named by it.
func at(t *testing.T, zone *time.Location, times ...string) []retention.Checkpoint {
	t.Helper()
	var all []retention.Checkpoint
	for _, text := range times {
		when, err := time.ParseInLocation("2006-01-02 15:04", text, zone)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, retention.Checkpoint{Name: text, Time: when})
	}
	return all
}

// kept lists what stays as NAME: REASON, REASON.
func kept(t *testing.T, r retention.Rules, all []retention.Checkpoint, zone *time.Location) string {
	t.Helper()
	decisions, err := r.Apply(all, zone)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, d := range decisions {
		if d.Keep() {
			lines = append(lines, d.Name+": "+strings.Join(d.Reasons, ", "))
		}
	}
	return strings.Join(lines, "\n")
}

func location(t *testing.T, name string) *time.Location {
	t.Helper()
	zone, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return zone
}

func TestRules(t *testing.T) {
	t.Parallel()
	berlin := location(t, "Europe/Berlin")
	for _, c := range []struct {
		name  string
		rules retention.Rules
		zone  *time.Location
		times []string
		want  string
	}{
		{
			name: "the newest of a day; a day without any does not count", rules: retention.Rules{Daily: 2}, zone: time.UTC,
			times: []string{"2026-05-01 03:00", "2026-05-03 03:00", "2026-05-03 21:00", "2026-05-09 01:00"},
			want:  "2026-05-03 21:00: daily\n2026-05-09 01:00: daily",
		},
		{
			name: "ISO weeks over the end of the year", rules: retention.Rules{Weekly: 2, Yearly: 2}, zone: time.UTC,
			// 2026-12-28 is a Monday; its week 53 goes on to Sunday, 2027-01-03.
			times: []string{"2026-12-27 12:00", "2026-12-31 12:00", "2027-01-03 12:00", "2027-01-04 12:00"},
			want:  "2026-12-31 12:00: yearly\n2027-01-03 12:00: weekly\n2027-01-04 12:00: weekly, yearly",
		},
		{
			name: "the day of the zone", rules: retention.Rules{Daily: 2}, zone: berlin,
			times: []string{"2026-07-01 23:30", "2026-07-02 00:30", "2026-07-02 01:30"},
			want:  "2026-07-01 23:30: daily\n2026-07-02 01:30: daily",
		},
		{
			name: "within counts from the newest, and what is exactly as old stays", rules: retention.Rules{Within: retention.Duration{Days: 1}}, zone: time.UTC,
			times: []string{"2020-01-01 11:59", "2020-01-01 12:00", "2020-01-02 12:00"},
			want:  "2020-01-01 12:00: within 1d\n2020-01-02 12:00: within 1d",
		},
		{
			name: "a month before the 31st", rules: retention.Rules{Within: retention.Duration{Months: 1}}, zone: time.UTC,
			times: []string{"2026-02-28 11:00", "2026-02-28 12:00", "2026-03-31 12:00"},
			want:  "2026-02-28 12:00: within 1m\n2026-03-31 12:00: within 1m",
		},
		{
			name: "daily within", rules: retention.Rules{WithinDaily: retention.Duration{Days: 3}, Last: 1}, zone: time.UTC,
			times: []string{"2026-03-01 12:00", "2026-03-03 10:00", "2026-03-03 11:00", "2026-03-05 12:00"},
			want:  "2026-03-03 11:00: daily within 3d\n2026-03-05 12:00: last, daily within 3d",
		},
	} {
		if got := kept(t, c.rules, at(t, c.zone, c.times...), c.zone); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

// TestHourTwice: at the end of summer time 02:30 comes twice, and both hours are kept.
func TestHourTwice(t *testing.T) {
	t.Parallel()
	first := time.Date(2026, 10, 25, 0, 30, 0, 0, time.UTC)
	all := []retention.Checkpoint{{Name: "summer", Time: first}, {Name: "winter", Time: first.Add(time.Hour)}}
	if got, want := kept(t, retention.Rules{Hourly: 5}, all, location(t, "Europe/Berlin")), "summer: hourly\nwinter: hourly"; got != want {
		t.Errorf("%s", got)
	}
}

func TestTagKeepStays(t *testing.T) {
	t.Parallel()
	all := at(t, time.UTC, "2026-01-01 00:00", "2026-01-02 00:00", "2026-01-03 00:00")
	all[0].Tags, all[1].Tags = []string{"keep"}, []string{"keeper"}
	want := "2026-01-01 00:00: tag keep\n2026-01-03 00:00: last"
	if got := kept(t, retention.Rules{Last: 1}, all, time.UTC); got != want {
		t.Errorf("%s", got)
	}
}

// TestClocks: a checkpoint whose time is wrong makes nothing go by times, and does no
// harm to rules that do not ask for any.
func TestClocks(t *testing.T) {
	t.Parallel()
	all := at(t, time.UTC, "2026-01-01 00:00", "2037-01-02 00:00", "2026-01-03 00:00")
	for _, r := range []retention.Rules{{Daily: 7}, {Within: retention.Duration{Days: 30}}, {Last: 1, WithinYearly: retention.Duration{Years: 1}}} {
		var wrong *retention.ClockError
		if _, err := r.Apply(all, time.UTC); !errors.As(err, &wrong) || wrong.Older.Name != all[1].Name || wrong.Newer.Name != all[2].Name {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if got, want := kept(t, retention.Rules{Last: 2}, all, time.UTC), "2037-01-02 00:00: last\n2026-01-03 00:00: last"; got != want {
		t.Errorf("%s", got)
	}
	// Clocks that are set right by some minutes are no reason.
	all = at(t, time.UTC, "2026-01-01 00:10", "2026-01-01 00:05")
	if got, want := kept(t, retention.Rules{Daily: 1}, all, time.UTC), "2026-01-01 00:05: daily"; got != want {
		t.Errorf("%s", got)
	}
}

func TestNone(t *testing.T) {
	t.Parallel()
	if !(retention.Rules{}).None() {
		t.Error("the zero value is a rule")
	}
	for _, r := range []retention.Rules{
		{Last: 1}, {Hourly: 1}, {Daily: -1}, {Weekly: 1}, {Monthly: 1}, {Yearly: 1}, {Tags: []string{"a"}},
		{Within: retention.Duration{Hours: 1}}, {WithinYearly: retention.Duration{Years: 1}},
	} {
		if r.None() {
			t.Errorf("%+v is no rule", r)
		}
	}
	if got, err := (retention.Rules{Last: 1}).Apply(nil, time.UTC); err != nil || len(got) != 0 {
		t.Errorf("of nothing: %v, %v", got, err)
	}
}

func TestParseDuration(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]retention.Duration{
		"1y5m7d2h": {Years: 1, Months: 5, Days: 7, Hours: 2},
		"30d":      {Days: 30}, "2h1y": {Years: 1, Hours: 2}, "6w": {Days: 42}, "1w1d": {Days: 8}, "100000h": {Hours: 100000},
	} {
		got, err := retention.ParseDuration(text)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
		if again, err := retention.ParseDuration(got.String()); err != nil || again != got {
			t.Errorf("%s, as %s: %+v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"", "0d", "d", "30", "-1d", "1.5d", "1d2d", "1s", "1M", " 1d", "1d ", "+1d", "100001d", "99999999999999999999d", "1dd"} {
		if got, err := retention.ParseDuration(text); err == nil {
			t.Errorf("%q is %+v", text, got)
		}
	}
}

func FuzzParseDuration(f *testing.F) {
	for _, seed := range []string{"1y5m7d2h", "30d", "6w", "1d2d", "0h", "100000y"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := retention.ParseDuration(text)
		if err != nil {
			return
		}
		if again, err := retention.ParseDuration(d.String()); err != nil || again != d {
			t.Errorf("%q is %+v, and that, as %s, %+v, %v", text, d, d, again, err)
		}
	})
}

// TestExample is the one in docs/retention.md.
func TestExample(t *testing.T) {
	t.Parallel()
	var all []retention.Checkpoint
	for day := time.Date(2026, 10, 1, 2, 0, 0, 0, time.UTC); day.Before(time.Date(2026, 12, 2, 0, 0, 0, 0, time.UTC)); day = day.AddDate(0, 0, 1) {
		all = append(all, retention.Checkpoint{Name: day.Format("Mon 2006-01-02 15:04"), Time: day})
		if day.Month() == 11 && day.Day() == 20 {
			all = append(all, retention.Checkpoint{Name: "Fri 2026-11-20 12:00", Time: day.Add(10 * time.Hour), Tags: []string{"before-upgrade"}})
		}
	}
	text, err := os.ReadFile("../docs/retention.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "| checkpoint of | by |\n| --- | --- |\n")
	rows, _, _ := strings.Cut(table, "\n\n")
	var want []string
	for _, row := range strings.Split(rows, "\n") {
		cells := strings.Split(row, "|")
		reasons := regexp.MustCompile(` \([^)]*\)`).ReplaceAllString(strings.TrimSpace(cells[2]), "")
		want = append(want, strings.TrimSpace(cells[1])+": "+reasons)
	}
	slices.Reverse(want) // the newest is first there
	rules := retention.Rules{Daily: 3, Weekly: 3, Monthly: 2, Tags: []string{"before-upgrade"}}
	if got := kept(t, rules, all, time.UTC); got != strings.Join(want, "\n") {
		t.Errorf("there stay\n%s\nthe page says\n%s", got, strings.Join(want, "\n"))
	}
}
