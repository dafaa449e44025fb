// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/habit"
	"github.com/imgbackup/imgbackup/jobs"
	"github.com/imgbackup/imgbackup/metrics"
)

// writeMetrics writes the figures of all jobs of the configuration.
func (a *app) writeMetrics(c *config.Config, s *statusJSON, path string) error {
	if err := a.checkOutside("--metrics-file", path); err != nil {
		return err
	}
	f := &metrics.Figures{Version: version(), Made: time.Now()}
	for _, d := range s.Domains {
		m := metrics.Domain{
			Job: d.Job, Domain: d.Domain, Repository: d.Repository, Status: int(d.Level), Objective: time.Duration(d.Objective * float64(time.Second)),
			Checkpoints: d.Count, StoredBytes: d.Stored, DrillPassed: d.Drill == string(record.VerdictPassed), Unusual: make(map[string]int),
		}
		for _, code := range habit.Codes() {
			m.Unusual[code] = 0
		}
		for _, u := range d.Unusual {
			m.Unusual[u.Code]++
		}
		if d.Created != nil {
			m.Newest = *d.Created
		}
		if d.LastDrill != nil {
			m.Drilled = *d.LastDrill
		}
		f.Domains = append(f.Domains, m)
	}
	slices.SortFunc(f.Domains, func(x, y metrics.Domain) int {
		return cmp.Or(cmp.Compare(x.Job, y.Job), cmp.Compare(x.Domain, y.Domain))
	})
	h := jobs.NewHistory(c.State)
	for name, j := range c.Jobs {
		m, err := jobFigures(h, name)
		if err != nil {
			return err
		}
		if next, ok := j.Schedule.Next(time.Now()); ok {
			m.Next = next
		}
		f.Jobs = append(f.Jobs, m)
	}
	if err := metrics.Write(path, f); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// jobFigures are those of a job's runs.
func jobFigures(h *jobs.History, name string) (metrics.Job, error) {
	m := metrics.Job{Job: name, Steps: make(map[string]time.Duration)}
	runs, _, err := h.Runs(name, historyDepth)
	if err != nil || len(runs) == 0 {
		return m, err
	}
	last := runs[0]
	m.Begun, m.Status, m.Interrupted = last.Begun, last.Status, last.Interrupted
	if last.Ended != nil {
		m.Took = last.Ended.Sub(last.Begun)
	}
	for _, d := range last.Steps {
		m.Steps[d.What] += time.Duration(d.Seconds * float64(time.Second))
	}
	for _, r := range runs {
		if r.Ended != nil && r.Status == exitDone {
			m.LastGood = r.Begun
			break
		}
	}
	return m, nil
}
