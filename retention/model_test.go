// SPDX-License-Identifier: Apache-2.0

package retention_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	_ "time/tzdata"

	"github.com/imgbackup/imgbackup/retention"
)

// The rules a second time, as their definition and without a calendar: days are
// counted, and each checkpoint is asked about by itself.

// days is how many days after 1970-01-01 a date is (by Hinnant's algorithm).
func days(year, month, day int) int {
	if month <= 2 {
		year--
	}
	era := floorDiv(year, 400)
	ofEra := year - era*400
	ofYear := (153*((month+9)%12)+2)/5 + day - 1
	return era*146097 + ofEra*365 + ofEra/4 - ofEra/100 + ofYear - 719468
}

// civil is the reverse of days.
func civil(n int) (year, month, day int) {
	for year = 1970 + floorDiv(n, 366) - 1; days(year+1, 1, 1) <= n; year++ {
	}
	for month = 1; month < 12 && days(year, month+1, 1) <= n; month++ {
	}
	return year, month, n - days(year, month, 1) + 1
}

func floorDiv(a, b int) int {
	q := a / b
	if a%b != 0 && (a < 0) != (b < 0) {
		q--
	}
	return q
}

// local is a time as seconds of a clock on the wall, and how far that is ahead.
func local(t time.Time, zone *time.Location) (wall, ahead int) {
	_, ahead = t.In(zone).Zone()
	return int(t.Unix()) + ahead, ahead
}

// periodNumber numbers the period of a rule that a time is in.
func periodNumber(rule string, t time.Time, zone *time.Location) [2]int {
	wall, ahead := local(t, zone)
	day := floorDiv(wall, 86400)
	year, month, _ := civil(day)
	switch rule {
	case "hourly":
		return [2]int{floorDiv(wall, 3600), ahead}
	case "daily":
		return [2]int{day}
	case "weekly":
		return [2]int{floorDiv(day+3, 7)} // 1970-01-01 was a Thursday
	case "monthly":
		return [2]int{12*year + month}
	}
	return [2]int{year}
}

// since is when a duration before t begins, at the earliest and at the latest: the time of
// the day may be there twice, or never.
func since(d retention.Duration, t time.Time, zone *time.Location) (earliest, latest int) {
	wall, _ := local(t, zone)
	day := floorDiv(wall, 86400)
	clock := wall - day*86400
	y, m, dd := civil(day)
	months := 12*(y-d.Years) + m - 1 - d.Months
	y, m = floorDiv(months, 12), months-12*floorDiv(months, 12)+1
	for ; dd > 28; dd-- {
		if _, _, back := civil(days(y, m, dd)); back == dd {
			break
		}
	}
	goal := (days(y, m, dd)-d.Days)*86400 + clock
	_, before := local(time.Unix(int64(goal-86400), 0), zone)
	_, after := local(time.Unix(int64(goal+86400), 0), zone)
	return goal - max(before, after) - 3600*d.Hours, goal - min(before, after) - 3600*d.Hours
}

type want int

const (
	no want = iota
	yes
	either
)

// keeps reports whether a rule keeps checkpoint i, by its definition.
func keeps(all []retention.Checkpoint, i int, rule string, count int, within retention.Duration, zone *time.Location) want {
	in := func(j int) want {
		if within.Zero() {
			return yes
		}
		earliest, latest := since(within, all[len(all)-1].Time, zone)
		switch at := int(all[j].Time.Unix()); {
		case at < earliest:
			return no
		case at < latest:
			return either
		}
		return yes
	}
	if in(i) == no {
		return no
	}
	if rule == "" { // each checkpoint by itself
		if count >= 0 && len(all)-1-i >= count {
			return no
		}
		return in(i)
	}
	mine := periodNumber(rule, all[i].Time, zone)
	newer := make(map[[2]int]bool)
	for j := i + 1; j < len(all); j++ {
		newer[periodNumber(rule, all[j].Time, zone)] = true
	}
	if newer[mine] || count >= 0 && len(newer) >= count {
		return no
	}
	return in(i)
}

var periodNames = []string{"hourly", "daily", "weekly", "monthly", "yearly"}

// expected is what each rule says of a checkpoint, by its reason.
func expected(r retention.Rules, all []retention.Checkpoint, i int, zone *time.Location) map[string]want {
	out := make(map[string]want)
	for _, tag := range append([]string{"keep"}, r.Tags...) {
		if slices.Contains(all[i].Tags, tag) {
			out["tag "+tag] = yes
		}
	}
	if r.Last != 0 {
		out["last"] = keeps(all, i, "", r.Last, retention.Duration{}, zone)
	}
	if !r.Within.Zero() {
		out["within "+r.Within.String()] = keeps(all, i, "", -1, r.Within, zone)
	}
	counts := []int{r.Hourly, r.Daily, r.Weekly, r.Monthly, r.Yearly}
	within := []retention.Duration{r.WithinHourly, r.WithinDaily, r.WithinWeekly, r.WithinMonthly, r.WithinYearly}
	for k, name := range periodNames {
		if counts[k] != 0 {
			out[name] = keeps(all, i, name, counts[k], retention.Duration{}, zone)
		}
		if !within[k].Zero() {
			out[name+" within "+within[k].String()] = keeps(all, i, name, -1, within[k], zone)
		}
	}
	return out
}

// history draws checkpoints: now and then many in an hour, now and then none for
// months; often around the hours at which clocks are set, and around New Year.
func history(rng *rand.Rand, zone *time.Location) []retention.Checkpoint {
	at := time.Date(2015+rng.IntN(15), time.Month(1+rng.IntN(12)), 1+rng.IntN(28), rng.IntN(24), rng.IntN(60), rng.IntN(60), 0, zone)
	switch rng.IntN(4) {
	case 0:
		at = time.Date(at.Year(), 12, 29+rng.IntN(3), rng.IntN(24), rng.IntN(60), 0, 0, zone)
	case 1:
		at = time.Date(at.Year(), []time.Month{3, 4, 10, 11}[rng.IntN(4)], 1+rng.IntN(31), rng.IntN(24), 0, 0, 0, zone)
	}
	steps := []time.Duration{time.Minute, 20 * time.Minute, time.Hour, 12 * time.Hour, 24 * time.Hour, 7 * 24 * time.Hour, 40 * 24 * time.Hour}
	usual := steps[rng.IntN(len(steps))]
	var all []retention.Checkpoint
	for i := range rng.IntN(40) {
		c := retention.Checkpoint{Name: fmt.Sprintf("c%d", i), Time: at}
		if rng.IntN(6) == 0 {
			c.Tags = [][]string{{"a"}, {"keep"}, {"a", "b"}, {"keeper"}}[rng.IntN(4)]
		}
		all = append(all, c)
		step := usual
		if rng.IntN(5) == 0 {
			step = steps[rng.IntN(len(steps))]
		}
		switch rng.IntN(4) {
		case 0:
			step = time.Duration(rng.Int64N(2 * int64(step)))
		case 1:
			step = 0
		}
		at = at.Add(step.Truncate(time.Second))
	}
	return all
}

func drawRules(rng *rand.Rand) retention.Rules {
	var r retention.Rules
	for _, n := range []*int{&r.Last, &r.Hourly, &r.Daily, &r.Weekly, &r.Monthly, &r.Yearly} {
		if rng.IntN(3) == 0 {
			*n = []int{retention.Unlimited, 1, 2, 3, 7, 30}[rng.IntN(6)]
		}
	}
	for _, d := range []*retention.Duration{&r.Within, &r.WithinHourly, &r.WithinDaily, &r.WithinWeekly, &r.WithinMonthly, &r.WithinYearly} {
		if rng.IntN(4) == 0 {
			*d = retention.Duration{Years: rng.IntN(2), Months: rng.IntN(14) * rng.IntN(2), Days: rng.IntN(40) * rng.IntN(2), Hours: rng.IntN(50) * rng.IntN(2)}
		}
	}
	if rng.IntN(4) == 0 {
		r.Tags = []string{"a"}
	}
	return r
}

// TestAgainstDefinition compares thousands of random histories, in zones that set their
// clocks by an hour, by half of one, at midnight, or skip a whole day.
func TestAgainstDefinition(t *testing.T) {
	t.Parallel()
	histories := 4000
	if env := os.Getenv("IMGBACKUP_SOAK"); env != "" {
		n, err := strconv.Atoi(env)
		if err != nil {
			t.Fatal(err)
		}
		histories = n
	}
	rng := rand.New(rand.NewPCG(17, 1))
	var zones []*time.Location
	for _, name := range []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kathmandu", "Pacific/Apia", "Africa/Casablanca"} {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		zones = append(zones, zone)
	}
	kept, removed := make(map[string]int), 0
	for n := range histories {
		zone := zones[n%len(zones)]
		all, rules := history(rng, zone), drawRules(rng)
		got, err := rules.Apply(all, zone)
		if err != nil {
			t.Fatalf("history %d: %v", n, err)
		}
		if len(got) != len(all) {
			t.Fatalf("history %d: %d decisions about %d checkpoints", n, len(got), len(all))
		}
		for i, d := range got {
			if d.Name != all[i].Name {
				t.Fatalf("history %d: the answers are in another order", n)
			}
			if !d.Keep() {
				removed++
			}
			expect := expected(rules, all, i, zone)
			for reason, w := range expect {
				has := slices.Contains(d.Reasons, reason)
				if has {
					kept[reason[:min(4, len(reason))]]++
				}
				if w != either && has != (w == yes) {
					t.Errorf("history %d, zone %s, rules %+v: %s at %s: rule %q keeps it: %v", n, zone, rules, d.Name, d.Time.In(zone), reason, has)
				}
			}
			for _, reason := range d.Reasons {
				if _, known := expect[reason]; !known {
					t.Errorf("history %d, rules %+v: %s is kept by %q, which is no rule", n, rules, d.Name, reason)
				}
			}
		}
	}
	t.Logf("%d histories: %d checkpoints go; rules kept (by their first letters) %v", histories, removed, kept)
	if removed == 0 || len(kept) < 7 {
		t.Errorf("%d removed, kept by %v: not every rule was met", removed, kept)
	}
}

// TestMoreKeepsMore: one more rule, or a larger number, never keeps fewer.
func TestMoreKeepsMore(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(17, 2))
	for n := range 1000 {
		all, fewer := history(rng, time.UTC), drawRules(rng)
		more := fewer
		for _, count := range []*int{&more.Last, &more.Hourly, &more.Daily, &more.Weekly, &more.Monthly, &more.Yearly} {
			if *count >= 0 && rng.IntN(2) == 0 {
				*count += rng.IntN(3)
			}
		}
		more.Tags = append(slices.Clone(fewer.Tags), "b")
		less, err := fewer.Apply(all, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		got, err := more.Apply(all, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		for i := range all {
			if less[i].Keep() && !got[i].Keep() {
				t.Errorf("history %d: %s is kept by %v, and not with more rules", n, all[i].Name, less[i].Reasons)
			}
		}
	}
}

// TestYoung: what goes is the same whatever there is that is younger, and nothing of that goes.
func TestYoung(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(17, 3))
	young, gone := 0, 0
	for n := range 1000 {
		all, rules := history(rng, time.UTC), drawRules(rng)
		for i := range all {
			all[i].Drilled = rng.IntN(2) == 0
		}
		rules.Drilled = rng.IntN(3)
		old, newest := slices.Clone(all), time.Time{}
		for _, c := range all {
			if c.Time.After(newest) {
				newest = c.Time
			}
		}
		without, err := rules.Apply(old, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		rules.Young = time.Duration(1+rng.IntN(40*24)) * time.Hour
		// A stranger adds as many as he likes, wherever in the order: the times may contradict it.
		for range rng.IntN(30) {
			c := retention.Checkpoint{Name: "forged", Time: newest.Add(time.Duration(rng.IntN(3600)) * time.Second), Drilled: rng.IntN(2) == 0}
			all = append(all, c)
		}
		got, err := rules.Apply(all, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		limit := newest
		for _, c := range all {
			if c.Time.After(limit) {
				limit = c.Time
			}
		}
		limit = limit.Add(-rules.Young)
		expect := rules
		expect.Young = 0
		old = slices.DeleteFunc(old, func(c retention.Checkpoint) bool { return c.Time.After(limit) })
		want, err := expect.Apply(old, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		for i, d := range got {
			switch {
			case d.Time.After(limit):
				young++
				if !slices.Contains(d.Reasons, retention.YoungReason) {
					t.Fatalf("history %d: %s is young, and stays by %v", n, d.Name, d.Reasons)
				}
				continue
			case !slices.Equal(d.Reasons, want[at].Reasons):
				t.Fatalf("history %d: %s stays by %v, and without younger ones by %v", n, d.Name, d.Reasons, want[at].Reasons)
			case !d.Keep():
				gone++
				if without[i].Keep() {
					t.Fatalf("history %d: %s goes, and stays where nothing is young", n, d.Name)
				}
			}
			at++
		}
	}
	if young < 1000 || gone < 1000 {
		t.Errorf("%d were young, %d went", young, gone)
	}
}
