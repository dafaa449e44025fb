// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/habit"
	"github.com/imgbackup/imgbackup/jobs"
)

const statusHelp = `status says of every domain of the configuration's jobs whether it is backed up as it should be: how old its
newest checkpoint is, and how old it may be, what came of the last run, check (of which part of the data) and drill,
what its checkpoints added to the repository when they were made, and when it is next backed up.

The exit status is for monitoring, as Nagios has it (below).`

// statusJSON is what status --json prints.
type statusJSON struct {
	Level    jobs.Level       `json:"level"`
	Good     int              `json:"good"`
	Warning  int              `json:"warning"`
	Critical int              `json:"critical"`
	Domains  []domainStatus   `json:"domains"`
	Findings []jobs.Finding   `json:"findings,omitempty"` // about no domain
	repos    map[string]*seen // by name
}

type domainStatus struct {
	Job        string         `json:"job"`
	Domain     string         `json:"domain"`
	Repository string         `json:"repository"`
	Level      jobs.Level     `json:"level"`
	Findings   []jobs.Finding `json:"findings"`
	Checkpoint string         `json:"checkpoint,omitempty"`
	Created    *time.Time     `json:"created,omitempty"`
	Age        float64        `json:"age_seconds,omitempty"`
	Objective  float64        `json:"objective_seconds,omitempty"`
	Overdue    bool           `json:"overdue,omitempty"` // it is older than that
	Count      int            `json:"checkpoints"`
	Stored     int64          `json:"stored_bytes"`
	LastRun    *time.Time     `json:"last_run,omitempty"`
	LastCheck  *time.Time     `json:"last_check,omitempty"` // of the job
	Checked    string         `json:"checked,omitempty"`    // what of the data the job's check reads
	LastDrill  *time.Time     `json:"last_drill,omitempty"`
	Drill      string         `json:"drill,omitempty"` // how it ended
	// Unusual is what of the newest checkpoint is unlike the domain's habit.
	Unusual []habit.Finding `json:"unusual,omitempty"`
	NextRun *time.Time      `json:"next_run,omitempty"`
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:         "status [JOB…]",
		Short:       "Say whether all domains are backed up as they should be",
		SuggestFor:  []string{"state", "health", "monitor"},
		Long:        statusHelp,
		Annotations: ownExits("0    good", "1    warning", "2    wrong usage, or critical", "3    it could not be found out", "130  interrupted"),
		Example:     "  imgbackup status\n  imgbackup status nightly --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.status(cmd.Context(), args)
		},
	}
}

// unknownStatus is the exit status of monitoring for what can't be found out.
const unknownStatus = 3

func (a *app) status(ctx context.Context, names []string) error {
	s, err := a.findStatus(ctx, names)
	if err != nil {
		if ctx.Err() == nil {
			err = domainsFailed{unknownStatus, err}
		}
		return err
	}
	if err := a.printStatus(s); err != nil {
		return domainsFailed{unknownStatus, err}
	}
	if s.Level != jobs.Good {
		return domainsFailed{int(s.Level), fmt.Errorf("%s: %d critical, %d warning, %d good", s.Level, s.Critical, s.Warning, s.Good)}
	}
	return nil
}

// findStatus finds out how the domains of jobs are.
func (a *app) findStatus(ctx context.Context, names []string) (*statusJSON, error) {
	c, err := a.configuration()
	if err != nil {
		return nil, err
	}
	if names, err = chooseJobs(c, runOptions{}, names); err != nil {
		return nil, err
	}
	plans := make(map[string]*jobs.Plan)
	wanted := make(map[string][]string) // domains by repositories
	for _, name := range names {
		p, err := jobs.Make(c, name)
		if err != nil {
			return nil, err
		}
		plans[name] = p
		for _, t := range p.Domains {
			repo := c.Jobs[name].Repository
			wanted[repo] = append(wanted[repo], t.Name)
		}
	}
	s := &statusJSON{Domains: []domainStatus{}, repos: make(map[string]*seen)}
	for _, repo := range slices.Sorted(maps.Keys(wanted)) {
		s.repos[repo] = a.lookAt(ctx, repo, wanted[repo])
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	stopped, err := jobs.LeftStopped(c)
	if err != nil {
		s.finding(jobs.Critical, err.Error())
	}
	now := time.Now()
	for _, name := range names {
		s.addJob(c, plans[name], stopped, now)
	}
	slices.SortStableFunc(s.Domains, func(x, y domainStatus) int { return cmp.Compare(y.Level, x.Level) })
	return s, nil
}

func (s *statusJSON) finding(l jobs.Level, text string) {
	s.Level = max(s.Level, l)
	s.Findings = append(s.Findings, jobs.Finding{Level: l, Text: text})
}

// addJob judges a job's domains.
func (s *statusJSON) addJob(c *config.Config, p *jobs.Plan, stopped map[string]bool, now time.Time) {
	j := c.Jobs[p.Job]
	runs, damaged, err := jobs.NewHistory(c.State).Runs(p.Job, historyDepth)
	if err := errors.Join(append(damaged, err)...); err != nil {
		s.finding(jobs.Warning, err.Error())
	}
	for _, t := range p.Domains {
		repo := s.repos[j.Repository]
		d := repo.domains[t.Name]
		f := jobs.Facts{
			Now: now, Objective: jobs.Objective(c, p.Job, t.Name, now), Newest: d.created, Unread: repo.err, Damaged: d.damaged, Drill: d.drill,
			Stopped: stopped[t.Name], Unusual: d.found,
		}
		view := domainStatus{
			Job: p.Job, Domain: t.Name, Repository: j.Repository, Checkpoint: d.newest, Count: d.count, Stored: d.stored,
			Objective: f.Objective.Seconds(), Drill: d.drill, Unusual: d.found, LastDrill: given(d.drilled), LastCheck: lastStep(runs, jobs.StepCheck),
		}
		if len(runs) > 0 {
			f.Run, view.LastRun = runs[0], &runs[0].Begun
		}
		if !d.created.IsZero() {
			view.Created, view.Age = &d.created, now.Sub(d.created).Seconds()
		}
		if next, ok := j.Schedule.Next(now); ok {
			view.NextRun = &next
		}
		if j.Check != nil {
			view.Checked = checkedPart(j.Check)
		}
		view.Level, view.Findings = jobs.Judge(t.Name, f)
		view.Overdue = f.Overdue()
		if t.Missing != nil {
			view.Level = max(view.Level, jobs.Warning)
			view.Findings = append(view.Findings, jobs.Finding{Level: jobs.Warning, Text: t.Missing.Error()})
		}
		if view.Findings == nil {
			view.Findings = []jobs.Finding{}
		}
		s.add(view)
	}
}

func (s *statusJSON) add(d domainStatus) {
	s.Domains, s.Level = append(s.Domains, d), max(s.Level, d.Level)
	switch d.Level {
	case jobs.Critical:
		s.Critical++
	case jobs.Warning:
		s.Warning++
	default:
		s.Good++
	}
}

// historyDepth is how many runs are looked through for the last check.
const historyDepth = 40

// lastStep is when a step of a kind last went well.
func lastStep(runs []*jobs.Run, what string) *time.Time {
	for _, r := range runs {
		for _, d := range r.Steps {
			if d.What == what && d.Status == exitDone && d.Skipped == "" {
				return &d.Begun
			}
		}
	}
	return nil
}

// checkedPart is what of the data a job's check reads, in a few words.
func checkedPart(c *config.Check) string {
	switch {
	case c.UnprovenSince != 0:
		return "unproven since " + c.UnprovenSince.String()
	case c.ReadData == config.All:
		return "all data"
	case c.ReadData != "":
		return string(c.ReadData) + " of the data"
	}
	return "no data"
}

func given(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// seen is what a repository tells of domains.
type seen struct {
	err     error // it could not be asked
	mu      sync.Mutex
	domains map[string]seenDomain
}

type seenDomain struct {
	newest  string
	created time.Time
	count   int
	stored  int64
	damaged []error
	drill   string
	drilled time.Time
	found   []habit.Finding // of the newest
}

// domainsAtOnce is how many domains are looked at at a time.
const domainsAtOnce = 16

// lookAt asks a repository of the configuration about domains.
func (a *app) lookAt(ctx context.Context, name string, domains []string) *seen {
	s := &seen{domains: make(map[string]seenDomain)}
	s.err = func() error {
		other, err := a.at(name)
		if err != nil {
			return err
		}
		repo, err := other.openCached(ctx)
		if err != nil {
			return err
		}
		drills, err := record.List(ctx, repo, "")
		if err != nil {
			return err
		}
		known := other.knownBriefs(repo)
		found, err := repo.Briefs(ctx, domains, known)
		if err != nil {
			return err
		}
		other.keepBriefs(repo, known, found)
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(domainsAtOnce)
		for name, briefs := range found {
			g.Go(func() error { return s.look(ctx, repo, name, briefs, drills[name]) })
		}
		return g.Wait()
	}()
	return s
}

// look takes in what is known of a domain; only its newest manifest with data is read.
func (s *seen) look(ctx context.Context, repo *chain.Repository, name string, all *chain.DomainBriefs, drills []record.Name) error {
	d := seenDomain{damaged: all.Damaged, count: len(all.Briefs)}
	for _, b := range all.Briefs {
		d.stored += b.Stored
		if b.Kind == chain.KindArchive {
			d.newest, d.created = b.Checkpoint, b.Created
		}
	}
	if d.newest != "" {
		m, err := repo.Manifest(ctx, name, d.newest)
		switch {
		case err == nil:
			d.created, d.found = m.Created, unusualOf(m)
		case chain.Unusable(err):
			d.damaged = append(d.damaged, err)
		case !errors.Is(err, chain.ErrNoCheckpoint): // it was forgotten just now
			return err
		}
	}
	for _, n := range slices.Backward(drills) { // the newest first
		if !n.Tells() {
			continue
		}
		proven, err := record.Proven(ctx, repo, map[string][]record.Name{name: {n}})
		if err != nil {
			return err
		}
		if len(proven[name]) > 0 {
			d.drilled, d.drill = n.Begun, string(n.Verdict)
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.domains[name] = d
	return nil
}

// unusualOf is what is unusual about a checkpoint.
func unusualOf(m *chain.Manifest) (found []habit.Finding) {
	for i := range m.Disks {
		for _, f := range m.Unusual(&m.Disks[i], habit.DefaultLimits()) {
			f.Text = m.Disks[i].Name + ": " + f.Text
			found = append(found, f)
		}
	}
	return found
}

func (a *app) printStatus(s *statusJSON) error {
	if a.json {
		return a.printJSON(s)
	}
	w := &checkedWriter{w: a.out}
	w.printf("%s: %s: %d good, %d warning, %d critical\n", s.Level, count(len(s.Domains), "domain"), s.Good, s.Warning, s.Critical)
	if w.err == nil && len(s.Domains) > 0 {
		t := &table{out: a.out}
		t.row("DOMAIN", "JOB", "STATUS", "NEWEST", "AGE", "CHECKED", "DRILLED", "ADDED", "NEXT RUN")
		for _, d := range s.Domains {
			age := "-"
			if d.Created != nil {
				age = roughAge(d.Age)
			}
			drilled := since(d.LastDrill)
			if d.Drill != "" {
				drilled += " (" + d.Drill + ")"
			}
			checked := since(d.LastCheck)
			if d.LastCheck != nil && d.Checked != "" {
				checked += " (" + d.Checked + ")"
			}
			next := "-"
			if d.NextRun != nil {
				next = d.NextRun.Format("Mon 2006-01-02 15:04")
			}
			t.row(d.Domain, d.Job, d.Level.String(), orDash(d.Checkpoint), age, checked, drilled, size(d.Stored), next)
		}
		w.err = t.print()
	}
	for _, f := range s.Findings {
		w.printf("%s: %s\n", f.Level, oneLine(f.Text))
	}
	for _, d := range s.Domains {
		for _, f := range d.Findings {
			w.printf("%s: %s: %s\n", f.Level, d.Domain, oneLine(f.Text))
		}
	}
	return w.err
}

func since(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return roughAge(time.Since(*t).Seconds()) + " ago"
}

func roughAge(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%.0fd", d.Hours()/24)
	case d >= time.Hour:
		return fmt.Sprintf("%.0fh", d.Hours())
	}
	return d.Round(time.Second).String()
}
