// SPDX-License-Identifier: Apache-2.0

package jobs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/config"
)

// ran puts a run on record that began then, and ended.
func ran(t *testing.T, h *History, job string, begun time.Time) *Run {
	t.Helper()
	r := newRun(job, "here", begun)
	r.Ended, r.Log = &begun, h.path(r, ".log")
	if err := errors.Join(h.begin(r), os.WriteFile(r.Log, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestHistory(t *testing.T) {
	t.Parallel()
	h := NewHistory(t.TempDir())
	if runs, damaged, err := h.Runs("j", -1); len(runs)+len(damaged) > 0 || err != nil {
		t.Fatalf("none yet: %v, %v, %v", runs, damaged, err)
	}
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var ids []string
	for i := range 3 {
		ids = append(ids, ran(t, h, "j", now.Add(time.Duration(i)*time.Millisecond)).ID)
	}
	cut := newRun("j", "here", now.Add(time.Hour))
	if err := h.begin(cut); err != nil {
		t.Fatal(err)
	}
	other, err := json.Marshal(newRun("../k", "here", now.Add(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"20260301T130000.001Z-x.json": `{"format": "imgb`, "20260301T130000.002Z-y.json": `{"format": "else"}`,
		"20260301T130000.000Z-z.json": string(other), // open: it would be written to another folder
	} {
		if err := os.WriteFile(filepath.Join(h.dir, "j", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	runs, damaged, err := h.Runs("j", 3)
	if err != nil || len(damaged) != 3 || len(runs) != 3 || runs[0].ID != cut.ID || runs[1].ID != ids[2] || runs[2].ID != ids[1] {
		t.Errorf("the newest three: %v, %v, %v", runs, damaged, err)
	}
	settled, err := h.settle("j")
	if err != nil || len(settled) != 1 || settled[0].ID != cut.ID {
		t.Errorf("settled: %v, %v", settled, err)
	}
	if again, err := h.settle("j"); err != nil || len(again) > 0 {
		t.Errorf("settled again: %v, %v", again, err)
	}
	if _, err := os.Stat(filepath.Join(h.dir, "k")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that a record names: %v", err)
	}
	if runs, _, _ = h.Runs("j", 1); !runs[0].Interrupted || runs[0].Ended != nil {
		t.Errorf("cut off: %+v", runs[0])
	}
}

// Old runs go, with their logs; some stay however old they are by a clock that may be wrong.
func TestHistoryTidies(t *testing.T) {
	t.Parallel()
	h := NewHistory(t.TempDir())
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for i := range 15 {
		ran(t, h, "j", now.Add(time.Duration(i)*time.Hour))
	}
	for _, c := range []struct {
		before time.Time
		want   int // files
	}{{now, 30}, {now.Add(90 * time.Minute), 26}, {now.AddDate(9, 0, 0), 2 * always}} {
		if err := h.tidy("j", c.before); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(filepath.Join(h.dir, "j"))
		if err != nil || len(entries) != c.want {
			t.Errorf("before %v: %d files, %v", c.before, len(entries), err)
		}
	}
}

func TestDue(t *testing.T) {
	t.Parallel()
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	at := func(text string) time.Time {
		t.Helper()
		v, err := time.ParseInLocation("2006-01-02 15:04", text, berlin)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, c := range []struct {
		schedule string
		last     []string // runs; none: never
		now      string
		due      bool
	}{
		{"daily 02:30", nil, "2026-03-01 12:00", true},
		{"daily 02:30", []string{"2026-03-01 02:30"}, "2026-03-02 02:29", false},
		{"daily 02:30", []string{"2026-03-01 02:30"}, "2026-03-02 02:30", true},
		{"daily 02:30", []string{"2026-02-01 02:30"}, "2026-03-02 01:00", true}, // the host was off
		// In spring there is no 02:30: it is 03:30.
		{"daily 02:30", []string{"2026-03-28 02:30"}, "2026-03-29 03:29", false},
		{"daily 02:30", []string{"2026-03-28 02:30"}, "2026-03-29 03:30", true},
		{"daily 02:30", []string{"2026-03-29 03:30"}, "2026-03-30 02:29", false},
		// The clock was a year ahead: that run counts for nothing, and stops nothing.
		{"daily 02:30", []string{"2026-03-01 02:30", "2027-03-01 02:30"}, "2026-03-01 12:00", false},
		{"daily 02:30", []string{"2026-03-01 02:30", "2027-03-01 02:30"}, "2026-03-02 02:30", true},
		{"daily 02:30", []string{"2027-03-01 02:30"}, "2026-03-01 12:00", true},
		{"weekly Sun 04:00", []string{"2026-03-01 04:00"}, "2026-03-08 03:59", false},
		{"weekly Sun 04:00", []string{"2026-03-01 04:00"}, "2026-03-08 04:00", true},
	} {
		s, err := config.ParseSchedule(c.schedule)
		if err != nil {
			t.Fatal(err)
		}
		conf := &config.Config{State: t.TempDir(), Jobs: map[string]config.Job{"j": {Schedule: s}, "never": {}}}
		for _, last := range c.last {
			ran(t, NewHistory(conf.State), "j", at(last))
		}
		due, err := Due(conf, at(c.now))
		if err != nil || slices.Equal(due, []string{"j"}) != c.due || len(due) > 1 {
			t.Errorf("%s after %v at %s: %v, %v", c.schedule, c.last, c.now, due, err)
		}
	}
	// In autumn 02:30 comes twice, and the job once.
	s, err := config.ParseSchedule("daily 02:30")
	if err != nil {
		t.Fatal(err)
	}
	conf := &config.Config{State: t.TempDir(), Jobs: map[string]config.Job{"j": {Schedule: s}}}
	first := time.Date(2026, 10, 25, 0, 30, 0, 0, time.UTC).In(berlin) // 02:30, the first time
	ran(t, NewHistory(conf.State), "j", first)
	if due, err := Due(conf, first.Add(time.Hour)); err != nil || len(due) > 0 {
		t.Errorf("at the second 02:30: %v, %v", due, err)
	}
}

// While a run is at work, another of the same job says so, or waits; one of another job
// does neither.
func TestLock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "vm"), []byte("off\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := options(dir)
	unlock, err := newRunner(o, "none").lock(t.Context(), "none", 0)
	if err != nil {
		t.Fatal(err)
	}
	var busy *BusyError
	if r, err := Execute(t.Context(), o, "none"); !errors.As(err, &busy) || r != nil {
		t.Errorf("a second run: %v, %v", r, err)
	}
	if r, err := Execute(t.Context(), o, "vms"); err != nil || r.Status != 0 {
		t.Errorf("another job: %+v, %v", r, err)
	}
	o.Wait = time.Minute
	type outcome struct {
		run *Run
		err error
	}
	ended := make(chan outcome)
	go func() {
		r, err := Execute(t.Context(), o, "none")
		ended <- outcome{r, err}
	}()
	unlock()
	if e := <-ended; e.err != nil || e.run.Status != 0 {
		t.Errorf("who waited: %+v", e)
	}
}

// Where the state can't be kept the backup is done, and that is told.
func TestStateCannotBeKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{"vm": "off\n", "state": "a file"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := options(dir)
	r, err := Execute(t.Context(), o, "vms")
	if err == nil || !strings.Contains(err.Error(), "could not be kept") {
		t.Errorf("it is not told: %v", err)
	}
	if r == nil || r.Status != 0 || len(r.Steps) != 1 || r.Steps[0].What != StepBackup {
		t.Errorf("the run: %+v", r)
	}
}

// What steps print is bounded, one by one and together; so is a line of the log.
func TestBounds(t *testing.T) {
	t.Parallel()
	o := options(t.TempDir())
	o.Config.Jobs["big"] = config.Job{Repository: "r"}
	r := newRunner(o, "big")
	r.log = &logFile{now: o.Now}
	print := func(bytes int) command {
		return command{Cmd: exec.Command("sh", "-c", fmt.Sprintf(`printf '"'; head -c %d /dev/zero | tr '\0' x; printf '"'`, bytes-2))}
	}
	if d := r.do(t.Context(), StepCheck, "", print(maxResult), nil); len(d.Result) != maxResult || d.Status != 0 {
		t.Errorf("as much as may be: %d, status %d", len(d.Result), d.Status)
	}
	if d := r.do(t.Context(), StepCheck, "", print(maxResult+1), nil); d.Result != nil || d.Status != 0 {
		t.Errorf("more: %d, status %d", len(d.Result), d.Status)
	}
	result := []byte(`"` + strings.Repeat("x", maxResult-2) + `"`)
	for range maxResults/maxResult + 3 {
		r.add(Done{What: StepCheck, Result: result})
	}
	kept := 0
	for _, d := range r.run.Steps {
		kept += len(d.Result)
	}
	if kept != maxResults {
		t.Errorf("%d bytes of results are kept", kept)
	}
	var all []string
	l := lines{each: func(line string) { all = append(all, line) }}
	for range 5 {
		_, _ = l.Write(bytes.Repeat([]byte("y"), maxLine/2))
	}
	l.flush()
	if len(all) != 3 || slices.ContainsFunc(all, func(s string) bool { return len(s) > maxLine }) {
		t.Errorf("%d lines", len(all))
	}
}

// A step that takes too long is told to end, and has failed; a command of others is ended
// with what it started, and one that goes on in the background is not waited for.
func TestTimeLimits(t *testing.T) {
	t.Parallel()
	o := options(t.TempDir())
	o.Config.Jobs["slow"] = config.Job{
		Repository: "r", Limits: config.Limits{Timeout: config.Duration(100 * time.Millisecond)},
		Hooks: config.Hooks{Timeout: config.Duration(100 * time.Millisecond)},
	}
	o.Config.Jobs["unlimited"] = config.Job{Repository: "r"}
	o.Self = func(...string) *exec.Cmd {
		return exec.Command("sh", "-c", "trap 'exit 130' TERM; while :; do sleep 0.05; done")
	}
	r := newRunner(o, "slow")
	r.log = &logFile{now: o.Now}
	if d := r.step(t.Context(), StepCheck, "", nil); d.Status != 1 || d.Error != ErrTimeout.Error() {
		t.Errorf("a step: %+v", d)
	}
	if d := r.runHook(t.Context(), StepBefore, "web", []string{"sh", "-c", "sleep 1000; echo"}); d.Status != 1 || d.Error != ErrTimeout.Error() {
		t.Errorf("a hook: %+v", d)
	}
	r = newRunner(o, "unlimited")
	r.log = &logFile{now: o.Now}
	if d := r.runHook(t.Context(), StepBefore, "web", []string{"sh", "-c", "sleep 1000 & echo $!"}); d.Status != 0 {
		t.Errorf("a hook that leaves something running: %+v", d)
	} else if err := exec.Command("kill", strings.TrimSpace(string(d.Result))).Run(); err != nil {
		t.Errorf("it does not run: %v", err)
	}
}
