// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/jobs"
	"github.com/imgbackup/imgbackup/notify"
)

// tellLimit bounds how long all receivers of an event may take: telling keeps no backup
// waiting, and no machine from going down.
const tellLimit = 3 * time.Minute

// teller tells the receivers of jobs.
type teller struct {
	c      *config.Config
	sender *notify.Sender
	host   string
	wait   sync.WaitGroup // for what is told beside a run
	mu     sync.Mutex
	errs   []error
}

// send tells all receivers of a job at once; ok: all have been told. What fails is kept.
func (t *teller) send(ctx context.Context, e *notify.Event) (ok bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tellLimit)
	defer cancel()
	var all sync.WaitGroup
	var failed atomic.Bool
	for _, name := range t.c.Jobs[e.Job].Notices {
		all.Go(func() {
			if err := t.sender.Send(ctx, name, e); err != nil {
				failed.Store(true)
				t.mu.Lock()
				defer t.mu.Unlock()
				t.errs = append(t.errs, err)
			}
		})
	}
	all.Wait()
	return !failed.Load()
}

// begin tells that a run begins, beside it.
func (t *teller) begin(ctx context.Context, job string) {
	t.wait.Go(func() {
		t.send(ctx, &notify.Event{Event: notify.Start, Job: job, Host: t.host, Begun: time.Now().UTC(), Summary: job + " begins"})
	})
}

// end tells what came of a run; err is what kept it from being begun or recorded.
func (t *teller) end(ctx context.Context, job string, run *jobs.Run, err error) {
	t.wait.Wait() // a start that comes after the end would be taken for another run's
	var busy *jobs.BusyError
	if errors.As(err, &busy) {
		return // whoever called hears of it; the run that is at work tells
	}
	e := &notify.Event{Event: notify.Success, Job: job, Host: t.host, Begun: time.Now().UTC(), Summary: job + ": done"}
	if run != nil {
		e.Run, e.Status, e.Begun, e.Ended, e.Log = run.ID, run.Status, run.Begun, run.Ended, run.Log
		for _, d := range run.Failed() {
			e.Problems = append(e.Problems, fmt.Sprintf("%s: %s", strings.TrimSpace(d.What+" "+d.Domain), d.Error))
		}
	}
	if run != nil && run.Status != exitDone && len(e.Problems) == 0 {
		e.Problems = append(e.Problems, "the run was interrupted")
	}
	if err != nil {
		e.Status = worst(e.Status, exitFailed)
		e.Problems = append(e.Problems, err.Error())
	}
	switch {
	case e.Status != exitDone:
		e.Event, e.Summary = notify.Failure, fmt.Sprintf("%s: failed (%d): %s", job, e.Status, count(len(e.Problems), "problem"))
	case t.failedBefore(job):
		e.Event, e.Summary = notify.Recovery, job+": done, for the first time after a failure"
	}
	t.send(ctx, e)
}

// failedBefore reports whether the run before the newest failed.
func (t *teller) failedBefore(job string) bool {
	runs, _, err := jobs.NewHistory(t.c.State).Runs(job, 2)
	return err == nil && len(runs) == 2 && (runs[1].Status != exitDone || runs[1].Interrupted)
}

// overdue tells of domains whose newest checkpoint is too old, each once until it is not.
func (t *teller) overdue(ctx context.Context, s *statusJSON) error {
	path := filepath.Join(t.c.State, "overdue.json")
	told, err := readTold(path)
	if err != nil {
		return err
	}
	now := make(map[string][]string)
	for _, d := range s.Domains {
		if d.Overdue {
			now[d.Job] = append(now[d.Job], d.Domain)
		}
	}
	for job, domains := range now {
		slices.Sort(domains)
		if !slices.ContainsFunc(domains, func(d string) bool { return !slices.Contains(told[job], d) }) {
			continue
		}
		e := &notify.Event{Event: notify.Overdue, Job: job, Host: t.host, Begun: time.Now().UTC(), Summary: fmt.Sprintf("%s: %s not backed up in time", job, count(len(domains), "domain"))}
		for _, d := range s.Domains {
			if d.Job == job && d.Overdue {
				e.Problems = append(e.Problems, d.Domain+": "+d.Findings[0].Text)
			}
		}
		if !t.send(ctx, e) { // the next run tells those who have heard, too
			heard := slices.DeleteFunc(told[job], func(d string) bool { return !slices.Contains(domains, d) })
			if now[job] = heard; len(heard) == 0 {
				delete(now, job)
			}
		}
	}
	return writeTold(path, now)
}

func readTold(path string) (told map[string][]string, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if json.Unmarshal(text, &told) != nil {
		return nil, nil // told once more
	}
	return told, nil
}

func writeTold(path string, told map[string][]string) error {
	if len(told) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	return sys.WriteWhole(path, ".overdue-", 0o640, func(w io.Writer) error { return json.NewEncoder(w).Encode(told) })
}

// wantsOverdue reports whether anybody is to be told of what is overdue.
func wantsOverdue(c *config.Config) bool {
	for _, j := range c.Jobs {
		for _, name := range j.Notices {
			if notify.Wants(c.Notices[name], notify.Overdue) {
				return true
			}
		}
	}
	return false
}
