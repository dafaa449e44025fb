// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/imgbackup/imgbackup/jobs"
)

// workTable shows a person at a terminal what steps of a job are at work, a line each,
// below the lines that tell what has come of others. Its methods may be called
// concurrently.
type workTable struct {
	out   io.Writer
	width func() int
	now   func() time.Time

	mu    sync.Mutex
	rows  []*workRow
	drawn int       // lines that stand below what was told
	last  time.Time // when they were drawn
}

type workRow struct {
	what, domain string
	begun        time.Time
	done, total  int64
}

const (
	// tableInterval is how often the table is drawn at most.
	tableInterval = 200 * time.Millisecond
	// tableRows is how many steps it shows.
	tableRows = 16
)

// newWorkTable returns nil where there is no terminal to show it on.
func (a *app) newWorkTable() *workTable {
	f, ok := a.err.(*os.File)
	if a.quiet || !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return &workTable{out: f, now: time.Now, width: func() int {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			return w
		}
		return 80
	}}
}

// step takes in that a step begins or has ended; line tells of its end.
func (t *workTable) step(d jobs.Done, line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := -1
	for i, r := range t.rows {
		if r.what == d.What && r.domain == d.Domain {
			at = i
		}
	}
	switch {
	case d.Seconds < 0 && at < 0:
		t.rows = append(t.rows, &workRow{what: d.What, domain: d.Domain, begun: t.now()})
		t.draw("")
	case d.Seconds < 0: // it is tried again
	default:
		if at >= 0 {
			t.rows = append(t.rows[:at], t.rows[at+1:]...)
		}
		t.draw(line)
	}
}

// set takes in how far a step is.
func (t *workTable) set(what, domain string, done, total int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.rows {
		if r.what == what && r.domain == domain {
			r.done, r.total = done, total
		}
	}
	if t.now().Sub(t.last) >= tableInterval {
		t.draw("")
	}
}

// around writes something else than lines above the table, which is off the screen then.
func (t *workTable) around(write func() error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	rows := t.rows
	t.rows = nil
	t.draw("")
	err := write()
	t.rows = rows
	t.draw("")
	return err
}

// Write writes lines above the table, which whoever writes to the terminal can't know of.
func (t *workTable) Write(p []byte) (int, error) {
	t.say(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

// say writes a line above the table.
func (t *workTable) say(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.draw(line)
}

// end takes a step off the table.
func (t *workTable) end(what, domain string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows = slices.DeleteFunc(t.rows, func(r *workRow) bool { return r.what == what && r.domain == domain })
}

// close takes the table, if there is one, off the screen.
func (t *workTable) close() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows = nil
	t.draw("")
}

// draw writes a line, if any, in the table's place, and the table below. It needs mu.
func (t *workTable) draw(line string) {
	var b strings.Builder
	if t.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r\x1b[J", t.drawn)
	}
	if line != "" {
		b.WriteString(line + "\n")
	}
	t.drawn = 0
	for i, r := range t.rows {
		text := r.text(t.now())
		if i == tableRows {
			text = fmt.Sprintf("… and %d more", len(t.rows)-i)
		}
		if most := t.width() - 1; len([]rune(text)) > most {
			text = string([]rune(text)[:max(most, 0)])
		}
		b.WriteString(text + "\n")
		if t.drawn++; i == tableRows {
			break
		}
	}
	t.last = t.now()
	// A table that can't be drawn is no reason to stop the work.
	_, _ = io.WriteString(t.out, b.String())
}

func (r *workRow) text(now time.Time) string {
	text := fmt.Sprintf("  %-8s %-24s ", r.what, orDash(r.domain))
	if r.total > 0 {
		text += fmt.Sprintf("%3d%%  %s of %s  ", int(100*float64(r.done)/float64(r.total)), size(r.done), size(r.total))
	}
	return text + now.Sub(r.begun).Round(time.Second).String()
}
