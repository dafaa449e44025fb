// SPDX-License-Identifier: Apache-2.0

package jobs

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/habit"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	fine := func() Facts { return Facts{Now: now, Newest: now.Add(-20 * time.Hour), Objective: 24 * time.Hour} }
	run := func(steps ...Done) *Run { return &Run{Steps: steps, Ended: &now} }
	for what, c := range map[string]struct {
		change func(f *Facts)
		level  Level
		text   string
	}{
		"fine":             {func(*Facts) {}, Good, ""},
		"at the objective": {func(f *Facts) { f.Newest = now.Add(-24 * time.Hour) }, Good, ""},
		"older":            {func(f *Facts) { f.Newest = now.Add(-25 * time.Hour) }, Warning, "25 hours old; at most 24 hours"},
		"twice as old":     {func(f *Facts) { f.Newest = now.Add(-49 * time.Hour) }, Critical, "2.0 days old"},
		"no objective":     {func(f *Facts) { f.Objective, f.Newest = 0, now.Add(-9999*time.Hour) }, Good, ""},
		"never":            {func(f *Facts) { f.Newest = time.Time{} }, Critical, "there is no checkpoint"},
		"from the future":  {func(f *Facts) { f.Newest = now.Add(2 * time.Hour) }, Warning, "a clock is wrong"},
		"unread":           {func(f *Facts) { f.Unread = errors.New("away") }, Critical, "can't be read: away"},
		"damage":           {func(f *Facts) { f.Damaged = []error{errors.New("rot")} }, Critical, "rot"},
		"failed drill":     {func(f *Facts) { f.Drill = "failed" }, Critical, "drill"},
		"shut down":        {func(f *Facts) { f.Stopped = true }, Critical, "not started again"},
		"unusual":          {func(f *Facts) { f.Unusual = []habit.Finding{{Text: "vda: all new"}} }, Warning, "unusual: vda: all new"},
		"cut off":          {func(f *Facts) { f.Run = &Run{Interrupted: true} }, Warning, "cut off"},
		"its backup failed": {func(f *Facts) { f.Run = run(Done{What: StepBackup, Domain: "web", Status: 3, Error: "x"}) },
			Warning, "backup failed (3): x"},
		"another's failed":  {func(f *Facts) { f.Run = run(Done{What: StepBackup, Domain: "mail", Status: 3}) }, Good, ""},
		"left out":          {func(f *Facts) { f.Run = run(Done{What: StepBackup, Domain: "web", Status: 5, Skipped: "in use"}) }, Good, ""},
		"the copy failed":   {func(f *Facts) { f.Run = run(Done{What: StepCopy, Status: 1, Error: "x"}) }, Warning, "copy failed (1): x"},
		"a check's finding": {func(f *Facts) { f.Run = run(Done{What: StepCheck, Status: 3, Error: "x"}) }, Critical, "check found damage: x"},
	} {
		f := fine()
		c.change(&f)
		level, found := Judge("web", f)
		text := ""
		for _, x := range found {
			text += x.Text + "\n"
		}
		if level != c.level || !strings.Contains(text, c.text) || c.text == "" && text != "" {
			t.Errorf("%s: %s, %q; want %s, %q", what, level, text, c.level, c.text)
		}
	}
}

func TestObjective(t *testing.T) {
	t.Parallel()
	const text = `
repositories: {r: {place: /r}}
domains: {own: {objective: 3h}}
jobs:
  daily: {repository: r, domains: [a], schedule: daily}
  workdays: {repository: r, domains: [a], schedule: 0 1 * * 1-5}
  said: {repository: r, domains: [a], schedule: daily, objective: 5h}
  never: {repository: r, domains: [a]}
`
	c, _, err := config.Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC) // a Wednesday
	for _, w := range []struct {
		job, domain string
		want        time.Duration
	}{
		{"daily", "a", 48 * time.Hour}, {"daily", "own", 3 * time.Hour}, {"said", "a", 5 * time.Hour}, {"never", "a", 0},
		{"workdays", "a", 2 * 72 * time.Hour}, // over the weekend
	} {
		if got := Objective(c, w.job, w.domain, now); got != w.want {
			t.Errorf("%s, %s: %s, want %s", w.job, w.domain, got, w.want)
		}
	}
}
