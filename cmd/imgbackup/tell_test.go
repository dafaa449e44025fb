// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/jobs"
	"github.com/imgbackup/imgbackup/notify"
)

// What is overdue is told once, and again where somebody could not be told; and anew when it was not meanwhile.
func TestTellOverdue(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	heard, works := filepath.Join(dir, "heard"), filepath.Join(dir, "works")
	tells := config.Notice{On: []string{notify.Overdue}, Command: []string{"sh", "-c", `cat > /dev/null; echo told >> "$1"; [ -e "$2" ]`, "sh", heard, works}, Timeout: config.Duration(time.Minute)}
	c := &config.Config{State: dir, Jobs: map[string]config.Job{"nightly": {Notices: []string{"n"}}}, Notices: map[string]config.Notice{"n": tells}}
	status := func(overdue ...string) *statusJSON {
		s := &statusJSON{}
		for _, d := range []string{"mail", "web"} {
			one := domainStatus{Job: "nightly", Domain: d, Findings: []jobs.Finding{{Text: "late"}}}
			for _, o := range overdue {
				one.Overdue = one.Overdue || o == d
			}
			s.Domains = append(s.Domains, one)
		}
		return s
	}
	for i, step := range []struct {
		overdue []string
		works   bool
		told    int // in all
	}{
		{[]string{"web"}, false, 1},
		{[]string{"web"}, true, 2},
		{[]string{"web"}, true, 2},
		{[]string{"web", "mail"}, false, 3},
		{nil, true, 3},
		{[]string{"web"}, true, 4},
		{[]string{"web", "mail"}, true, 5},
		{[]string{"mail"}, true, 5},
	} {
		if err := os.WriteFile(works, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if !step.works {
			if err := os.Remove(works); err != nil {
				t.Fatal(err)
			}
		}
		teller := &teller{c: c, sender: &notify.Sender{Notices: c.Notices, Getenv: os.Getenv, Tries: 1}, host: "here"}
		if err := teller.overdue(t.Context(), status(step.overdue...)); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(heard)
		if told := strings.Count(string(text), "told"); err != nil || told != step.told || (len(teller.errs) == 0) != (step.works || told == 0) {
			t.Errorf("step %d: told %d times, want %d; %v, %v", i, told, step.told, teller.errs, err)
		}
	}
}
