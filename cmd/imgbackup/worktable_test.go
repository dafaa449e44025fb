// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/jobs"
)

// screen is what a terminal shows of lines that the table moves up over and erases.
func screen(t *testing.T, text string) string {
	t.Helper()
	lines := []string{""}
	for text != "" {
		if up, rest, ok := strings.Cut(text, "A\r\x1b[J"); ok && strings.HasPrefix(text, "\x1b[") {
			var n int
			if _, err := fmt.Sscanf(up, "\x1b[%d", &n); err != nil || n >= len(lines) {
				t.Fatalf("%q of %d lines: %v", up, len(lines), err)
			}
			lines, text = append(lines[:len(lines)-1-n], ""), rest
			continue
		}
		line, rest, _ := strings.Cut(text, "\n")
		lines[len(lines)-1] = line
		lines, text = append(lines, ""), rest
	}
	return strings.Join(lines, "\n")
}

func TestWorkTable(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	w := &workTable{out: &out, width: func() int { return 80 }, now: func() time.Time { return now }}
	begin := func(what, domain string) { w.step(jobs.Done{What: what, Domain: domain, Seconds: -1}, "") }
	see := func(want string) {
		t.Helper()
		if got := screen(t, out.String()); got != want {
			t.Errorf("on the screen:\n%s\nwant:\n%s", got, want)
		}
	}
	begin("backup", "web")
	begin("backup", "mail")
	now = now.Add(time.Minute)
	w.set("backup", "mail", 1<<20, 4<<20)
	web := fmt.Sprintf("  %-8s %-24s 1m0s\n", "backup", "web")
	mail := fmt.Sprintf("  %-8s %-24s  25%%  1.0 MiB of 4.0 MiB  1m0s\n", "backup", "mail")
	see(web + mail)
	w.set("backup", "web", 1, 2) // so soon nothing is drawn
	w.set("backup", "web", 0, 0)
	w.say("note: slow")
	see("note: slow\n" + web + mail)
	w.step(jobs.Done{What: "backup", Domain: "mail"}, "backup mail: done")
	see("note: slow\nbackup mail: done\n" + web)
	for i := range 20 {
		begin("backup", fmt.Sprint("vm", i))
	}
	if got := screen(t, out.String()); strings.Count(got, "\n") != 2+tableRows+1 || !strings.Contains(got, "… and 5 more\n") {
		t.Errorf("many:\n%s", got)
	}
	w.close()
	see("note: slow\nbackup mail: done\n")
}
