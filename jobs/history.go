// SPDX-License-Identifier: Apache-2.0

package jobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// Run is what came of a job once; docs/json.md explains it.
type Run struct {
	Format string `json:"format"` // RunFormat
	ID     string `json:"id"`
	Job    string `json:"job"`
	Host   string `json:"host"`
	// Begun and Ended are when; Ended is nil while it is at work, or was cut off.
	Begun time.Time  `json:"begun"`
	Ended *time.Time `json:"ended,omitempty"`
	// Status is the worst exit status of its steps.
	Status int `json:"status"`
	// Interrupted: it was cut off, as by a power failure, and found so later.
	Interrupted bool     `json:"interrupted,omitempty"`
	Steps       []Done   `json:"steps"`
	Notes       []string `json:"notes,omitempty"`
	Log         string   `json:"log"` // the file
}

// RunFormat is what a run's file says that it is.
const RunFormat = "imgbackup-run"

// Done is what came of a step.
type Done struct {
	What    string          `json:"what"`
	Domain  string          `json:"domain,omitempty"`
	Command []string        `json:"command,omitempty"`
	Begun   time.Time       `json:"begun"`
	Seconds float64         `json:"seconds"`
	Status  int             `json:"status"`
	Skipped string          `json:"skipped,omitempty"` // why it was not done
	Error   string          `json:"error,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"` // what its --json printed
}

// The bounds of what is kept and read of a run, bytes.
const (
	maxResult  = 256 << 10 // of what a step prints
	maxResults = 16 << 20  // of all steps together
	maxRun     = 64 << 20
)

// History is the folder of a host's runs: a folder for each job.
type History struct{ state, dir string }

// NewHistory returns that of a folder for state; it need not be there.
func NewHistory(state string) *History { return &History{state, filepath.Join(state, "runs")} }

func newRun(job, host string, now time.Time) *Run {
	return &Run{Format: RunFormat, ID: uuid.NewString(), Job: job, Host: host, Begun: now.UTC(), Steps: []Done{}}
}

// begin puts a run on record.
func (h *History) begin(r *Run) error {
	if err := os.MkdirAll(filepath.Join(h.dir, r.Job), 0o750); err != nil {
		return err
	}
	return h.write(r)
}

// stamp begins the names of a run's files, which sort by it; always of one length.
func stamp(t time.Time) string { return t.UTC().Format("20060102T150405.000Z") }

// path is a file of a run.
func (h *History) path(r *Run, ending string) string {
	return filepath.Join(h.dir, r.Job, r.file(ending))
}

func (r *Run) file(ending string) string { return stamp(r.Begun) + "-" + r.ID[:8] + ending }

func (h *History) write(r *Run) error {
	return sys.WriteWhole(h.path(r, ".json"), ".run-", 0o640, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(r)
	})
}

// Jobs are those that have runs, sorted.
func (h *History) Jobs() ([]string, error) {
	entries, err := os.ReadDir(h.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// Runs are a job's newest runs, newest first, at most n; n < 0: all. Damaged files are
// told of, and left out. A run that has no end, and is not at work any more, was cut off, and
// says so, although no later run has found that yet.
func (h *History) Runs(job string, n int) (runs []*Run, damaged []error, err error) {
	if runs, damaged, err = h.read(job, n); err != nil {
		return nil, nil, err
	}
	open := make(map[string]bool)
	for _, r := range runs {
		if r.open() {
			open[r.ID] = true
		}
	}
	if len(open) == 0 {
		return runs, damaged, nil
	}
	if works, err := atWork(h.state, job); err != nil || works {
		return runs, damaged, err
	}
	// It may have ended after it was read, and another begun.
	if runs, damaged, err = h.read(job, n); err != nil {
		return nil, nil, err
	}
	for _, r := range runs {
		r.Interrupted = r.Interrupted || r.open() && open[r.ID]
	}
	return runs, damaged, nil
}

// open reports whether nothing is on record of the run's end.
func (r *Run) open() bool { return r.Ended == nil && !r.Interrupted }

// read is Runs as they are on record.
func (h *History) read(job string, n int) (runs []*Run, damaged []error, err error) {
	names, err := h.names(job)
	if err != nil {
		return nil, nil, err
	}
	slices.Reverse(names)
	for _, name := range names {
		if n >= 0 && len(runs) == n {
			break
		}
		r, err := readRun(filepath.Join(h.dir, job, name))
		switch {
		case errors.Is(err, fs.ErrNotExist): // tidied away meanwhile
		case err != nil:
			damaged = append(damaged, err)
		default:
			runs = append(runs, r)
		}
	}
	return runs, damaged, nil
}

func (h *History) names(job string) ([]string, error) { return recordNames(filepath.Join(h.dir, job)) }

func readRun(path string) (*Run, error) {
	var r Run
	if err := readRecord(path, maxRun, &r); err != nil {
		return nil, err
	}
	if r.Format != RunFormat || len(r.ID) < 8 || r.Job == "" {
		return nil, fmt.Errorf("%s: it is no record of a run", path)
	}
	// It is written again to where this says.
	if folder, name := filepath.Split(path); r.Job != filepath.Base(folder) || r.file(".json") != name {
		return nil, fmt.Errorf("%s: it is the record of another run", path)
	}
	return &r, nil
}

// settle marks runs of a job that were cut off: the caller holds the job's lock, so that
// none is at work.
func (h *History) settle(job string) (cut []*Run, err error) {
	names, err := h.names(job)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Backward(names) { // one at a time: they are many, and may be long
		r, rerr := readRun(filepath.Join(h.dir, job, name))
		if rerr != nil || !r.open() { // of what is damaged tells who lists
			continue
		}
		r.Interrupted = true
		err = errors.Join(err, h.write(r))
		cut = append(cut, r)
	}
	return cut, err
}

// last is a job's newest run that did not begin after now, by a clock that was right
// then; nil: there is none.
func (h *History) last(job string, now time.Time) (*Run, error) {
	names, err := h.names(job)
	if err != nil {
		return nil, err
	}
	slices.Reverse(names)
	for _, name := range names {
		if name[:min(len(name), len(stamp(now)))] > stamp(now) {
			continue
		}
		if r, err := readRun(filepath.Join(h.dir, job, name)); err == nil {
			return r, nil // of one that is damaged nobody knows when it was
		}
	}
	return nil, nil
}

// always is how many runs stay however old they are: a clock may be wrong.
const always = 10

// tidy removes runs that began before a time, but for the newest.
func (h *History) tidy(job string, before time.Time) error {
	names, err := h.names(job)
	if err != nil {
		return err
	}
	oldest := stamp(before)
	for _, name := range names[:max(len(names)-always, 0)] {
		if name >= oldest {
			break
		}
		path := filepath.Join(h.dir, job, name)
		// The record last: what a cut-off tidying leaves is found again.
		log := os.Remove(strings.TrimSuffix(path, ".json") + ".log")
		if errors.Is(log, fs.ErrNotExist) {
			log = nil
		}
		if log == nil {
			log = os.Remove(path)
		}
		err = errors.Join(err, log)
	}
	return err
}
