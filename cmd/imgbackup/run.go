// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/internal/memory"
	"github.com/imgbackup/imgbackup/internal/suggest"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/jobs"
	"github.com/imgbackup/imgbackup/notify"
)

const runHelp = `run does what jobs of the configuration say, all of them or the named ones: the backup of each domain,
copies, forgetting, pruning, a check, drills. One that fails does not keep the others from being done; what
comes after a domain's backup leaves that domain out. The exit status is the worst of all.

A VM that runs fails its domain's backup, or is skipped, waited for, or shut down and started again, as the
job says (on_running). It is started whatever happens: after a power failure the next run does so.`

const runManual = `Each step is a run of this program, whose command --dry-run shows. What came of it is kept for as long as the
configuration says (imgbackup runs). A second run of the same job ends with exit status 5, or waits (--wait).
--due leaves out jobs whose time has not come: with it, cron can call this every few minutes where there is
no systemd.`

// parallelUsage describes the flag of what is done for several domains.
const parallelUsage = "back up `N` domains at once (default: by cores and memory)"

type runOptions struct {
	dryRun, due bool
	wait        time.Duration
	metrics     string // a file
	parallel    int
}

func (a *app) runCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:         "run [JOB…]",
		Short:       "Do what jobs of the configuration say",
		SuggestFor:  []string{"job", "jobs", "schedule"},
		Long:        runHelp,
		Annotations: exits(exitDamage, exitNotTrusted, exitInUse, exitTaken, exitInterrupted),
		Example:     "  imgbackup run --dry-run\n  imgbackup run nightly\n  */15 * * * * root imgbackup run --due --quiet   # as a line of a crontab",
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("parallel") && o.parallel < 1 {
				return usage.Errorf("--parallel %d: want a number from 1 on", o.parallel)
			}
			return a.runJobs(cmd.Context(), o, args)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVar(&o.due, "due", false, "only jobs whose time has come since they ran last")
	f.StringVar(&o.metrics, "metrics-file", "", "write figures for Prometheus into this `FILE` (default: as configured)")
	f.DurationVar(&o.wait, "wait", 0, "wait this `TIME` for another run of the same job")
	f.IntVar(&o.parallel, "parallel", 0, parallelUsage)
	addManual(cmd, runManual)
	return cmd
}

func (a *app) runJobs(ctx context.Context, o runOptions, names []string) error {
	c, err := a.configuration()
	if err != nil {
		return err
	}
	if names, err = chooseJobs(c, o, names); err != nil {
		return err
	}
	if o.dryRun {
		return a.printPlans(c, names)
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	code := exitDone
	var all []*jobs.Run
	options := a.jobOptions(c, o, host)
	tellSystemd(daemon.SdNotifyReady)
	if t := a.newWorkTable(); t != nil {
		defer t.close()
		options.Progress = t.set
		options.Tell = func(d jobs.Done) { t.step(d, "imgbackup: "+stepLine(d)) }
		options.Note = func(text string) { t.say("imgbackup: note: " + text) }
	}
	t := &teller{c: c, sender: notify.Usual(c), host: host}
	if len(names) == 0 {
		for _, d := range jobs.Recover(ctx, options) {
			code = worst(code, d.Status)
		}
	}
	for _, name := range names {
		if ctx.Err() != nil {
			break
		}
		tellSystemd("STATUS=" + name)
		t.begin(ctx, name)
		run, err := jobs.Execute(ctx, options, name)
		t.end(ctx, name, run, err)
		if run != nil {
			all = append(all, run)
			code = worst(code, run.Status)
		}
		if err != nil {
			a.say("%s: %v", name, err)
			code = worst(code, jobError(err))
		}
	}
	if err := errors.Join(a.lookAround(ctx, c, o, t), errors.Join(t.errs...)); err != nil {
		a.say("%s", oneLine(err.Error()))
		code = worst(code, exitFailed)
	}
	if err := a.printJobRuns(all, true); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if code != exitDone {
		return domainsFailed{code, errors.New("not everything went well")}
	}
	return nil
}

// lookAround looks at all jobs after a run: for figures, and for what is overdue.
func (a *app) lookAround(ctx context.Context, c *config.Config, o runOptions, t *teller) error {
	if o.metrics == "" && c.Metrics != nil {
		o.metrics = c.Metrics.File
	}
	if o.metrics == "" && !wantsOverdue(c) || ctx.Err() != nil {
		return nil
	}
	s, err := a.findStatus(ctx, nil)
	if err != nil {
		return err
	}
	err = t.overdue(ctx, s)
	if o.metrics != "" {
		err = errors.Join(err, a.writeMetrics(c, s, o.metrics))
	}
	return err
}

func jobError(err error) int {
	var busy *jobs.BusyError
	if errors.As(err, &busy) {
		return exitInUse
	}
	return exitFailed
}

// chooseJobs are the named ones, or all.
func chooseJobs(c *config.Config, o runOptions, names []string) ([]string, error) {
	known := slices.Sorted(maps.Keys(c.Jobs))
	for _, name := range names {
		if _, ok := c.Jobs[name]; !ok {
			return nil, usage.Errorf("there is no job %s%s", name, thereIs(name, known))
		}
	}
	if len(names) == 0 {
		names = known
	}
	if !o.due {
		return names, nil
	}
	due, err := jobs.Due(c, time.Now())
	return slices.DeleteFunc(names, func(name string) bool { return !slices.Contains(due, name) }), err
}

func (a *app) jobOptions(c *config.Config, o runOptions, host string) jobs.Options {
	path, _ := a.configPath()
	if full, err := filepath.Abs(path); err == nil {
		path = full
	}
	return jobs.Options{
		Config: c, Worse: worst, InUse: exitInUse, Host: host, Now: time.Now, Wait: o.wait, Pause: 10 * time.Second,
		Patience: cmp.Or(a.retry.Patience, time.Minute),
		Parallel: o.parallel, Usual: jobs.Parallel(memory.Room(), memory.Usual),
		Self: func(args ...string) *exec.Cmd {
			return a.self(append([]string{"--config", path}, args...)...)
		},
		Note:    a.note,
		Tell:    a.tellStep,
		Journal: a.journal,
	}
}

// self is this program with arguments.
func (a *app) self(args ...string) *exec.Cmd {
	path, err := os.Executable()
	if err != nil {
		path = os.Args[0] // which is told by the start that fails, if it is none
	}
	cmd := exec.Command(path, args...)
	cmd.Args[0] = "imgbackup"
	cmd.Dir = "/" // names mean the same whoever runs a job, and where
	return cmd
}

// tellStep tells a person of a step that begins or has ended.
func (a *app) tellStep(d jobs.Done) {
	if !a.quiet && a.journal == nil { // which has the run's log
		a.say("%s", stepLine(d))
	}
}

// stepLine says in a line that a step begins, or what came of it.
func stepLine(d jobs.Done) string {
	what := d.What
	if d.Domain != "" {
		what += " " + d.Domain
	}
	switch {
	case d.Seconds < 0:
		return what + " …"
	case d.Skipped != "":
		return what + ": left out: " + d.Skipped
	case d.Status != exitDone:
		return fmt.Sprintf("%s: failed (%d): %s", what, d.Status, d.Error)
	}
	return fmt.Sprintf("%s: done in %s%s", what, seconds(d.Seconds), tally(d))
}

// tally says how many checkpoints a step has forgotten.
func tally(d jobs.Done) string {
	var r struct{ Keep, Remove []json.RawMessage }
	if d.What != jobs.StepForget || d.Skipped != "" || json.Unmarshal(d.Result, &r) != nil {
		return ""
	}
	return fmt.Sprintf(": %s forgotten, %d stay", count(len(r.Remove), "checkpoint"), len(r.Keep))
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(100 * time.Millisecond).String()
}

// plannedJSON is what run --dry-run --json prints of a job.
type plannedJSON struct {
	Job     string            `json:"job"`
	Domains []plannedDomain   `json:"domains"`
	After   []plannedStepJSON `json:"after"`
	Notes   []string          `json:"notes,omitempty"`
}

type plannedDomain struct {
	Domain  string   `json:"domain"`
	Command []string `json:"command,omitempty"`
	Error   string   `json:"error,omitempty"`
}

type plannedStepJSON struct {
	What    string   `json:"what"`
	Command []string `json:"command"`
}

func (a *app) printPlans(c *config.Config, names []string) error {
	all := []plannedJSON{}
	code := exitDone
	for _, name := range names {
		p, err := jobs.Make(c, name)
		if err != nil {
			return err
		}
		view := plannedJSON{Job: name, Domains: []plannedDomain{}, After: []plannedStepJSON{}, Notes: p.Notes}
		var well []string
		for _, t := range p.Domains {
			d := plannedDomain{Domain: t.Name}
			if t.Missing != nil {
				d.Error, code = t.Missing.Error(), exitFailed
			} else {
				d.Command = a.typed(t.Args)
				well = append(well, t.Name)
			}
			view.Domains = append(view.Domains, d)
		}
		for _, s := range p.After(c, well) {
			view.After = append(view.After, plannedStepJSON{s.What, a.typed(s.Args)})
		}
		all = append(all, view)
	}
	if err := a.printPlanned(all); err != nil {
		return err
	}
	if code != exitDone {
		return domainsFailed{code, errors.New("not everything could be done")}
	}
	return nil
}

// typed is a step's command as it can be typed by hand.
func (a *app) typed(args []string) []string {
	command := append([]string{"imgbackup"}, args...)
	if a.configFlag != "" { // where the repository's name is found
		command = append(command, "--config", a.configFlag)
	}
	return command
}

func (a *app) printPlanned(all []plannedJSON) error {
	if a.json {
		return a.printJSON(all)
	}
	w := &checkedWriter{w: a.out}
	for _, p := range all {
		w.printf("job %s\n", p.Job)
		for _, n := range p.Notes {
			w.printf("  note: %s\n", n)
		}
		for _, d := range p.Domains {
			if d.Error != "" {
				w.printf("  %s: cannot be backed up: %s\n", d.Domain, d.Error)
				continue
			}
			w.printf("  %s\n", jobs.ShellWords(d.Command))
		}
		for _, s := range p.After {
			w.printf("  %s\n", jobs.ShellWords(s.Command))
		}
	}
	return w.err
}

// printJobRuns shows what came of runs; steps: of each step, too.
func (a *app) printJobRuns(all []*jobs.Run, steps bool) error {
	if a.json {
		if all == nil {
			all = []*jobs.Run{}
		}
		return a.printJSON(all)
	}
	t := &table{out: a.out}
	if !steps {
		t.row("JOB", "BEGUN", "TOOK", "STEPS", "OUTCOME", "ID")
		for _, r := range all {
			took := "-"
			if r.Ended != nil {
				took = r.Ended.Sub(r.Begun).Round(time.Second).String()
			}
			t.row(r.Job, shortTime(r.Begun), took, fmt.Sprint(len(r.Steps)), runOutcome(r), r.ID[:min(8, len(r.ID))])
		}
		return t.print()
	}
	if len(all) == 0 { // as most often where cron asks what is due
		return nil
	}
	t.row("JOB", "STEP", "DOMAIN", "OUTCOME", "TOOK")
	for _, r := range all {
		for _, d := range r.Steps {
			what := "done" + tally(d)
			switch {
			case d.Skipped != "":
				what = "left out: " + d.Skipped
			case d.Status != exitDone:
				what = fmt.Sprintf("failed (%d): %s", d.Status, d.Error)
			}
			t.row(r.Job, d.What, orDash(d.Domain), what, seconds(d.Seconds))
		}
	}
	if err := t.print(); err != nil {
		return err
	}
	w := &checkedWriter{w: a.out}
	for _, r := range all {
		w.printf("%s: %s; log: %s\n", r.Job, runOutcome(r), r.Log)
	}
	return w.err
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// runOutcome is what came of a run, in a word or two.
func runOutcome(r *jobs.Run) string {
	switch {
	case r.Interrupted:
		return "cut off"
	case r.Ended == nil:
		return "at work"
	case r.Status == exitDone:
		return "done"
	}
	return fmt.Sprintf("%s failed (%d)", count(len(r.Failed()), "step"), r.Status)
}

func (a *app) runsCommand() *cobra.Command {
	var last int
	cmd := &cobra.Command{
		Use:   "runs {[JOB…] | ID}",
		Short: "What came of the runs of jobs",
		Long: `runs lists what this host keeps of the runs of jobs, newest first, or shows one, by its id or the beginning
of that, with all its steps and where its log is.`,
		Annotations: exits(),
		Example:     "  imgbackup runs\n  imgbackup runs nightly --last 30\n  imgbackup runs 1f3a9c02 --json",
		RunE: func(_ *cobra.Command, args []string) error {
			return a.listRuns(args, last)
		},
	}
	cmd.Flags().IntVar(&last, "last", 10, "at most the newest `N` of each job")
	return cmd
}

func (a *app) listRuns(args []string, last int) error {
	c, err := a.configuration()
	if err != nil {
		return err
	}
	h := jobs.NewHistory(c.State)
	known, err := h.Jobs()
	if err != nil {
		return err
	}
	for name := range c.Jobs {
		if !slices.Contains(known, name) {
			known = append(known, name)
		}
	}
	slices.Sort(known)
	if len(args) == 1 && !slices.Contains(known, args[0]) {
		return a.showRun(h, known, args[0])
	}
	for _, name := range args {
		if !slices.Contains(known, name) {
			return usage.Errorf("there is no job %s%s; one run is shown by its id alone: imgbackup runs ID", name, suggest.DidYouMean(suggest.Near(name, known)))
		}
	}
	if len(args) == 0 {
		args = known
	}
	var all []*jobs.Run
	for _, name := range args {
		runs, damaged, err := h.Runs(name, last)
		if err != nil {
			return err
		}
		for _, d := range damaged {
			a.note(d.Error())
		}
		all = append(all, runs...)
	}
	slices.SortStableFunc(all, func(x, y *jobs.Run) int { return y.Begun.Compare(x.Begun) })
	return a.printJobRuns(all, false)
}

// showRun shows the one run whose id begins so.
func (a *app) showRun(h *jobs.History, known []string, id string) error {
	var found []*jobs.Run
	for _, name := range known {
		runs, _, err := h.Runs(name, -1)
		if err != nil {
			return err
		}
		for _, r := range runs {
			if len(id) >= 4 && len(r.ID) >= len(id) && r.ID[:len(id)] == id {
				found = append(found, r)
			}
		}
	}
	switch len(found) {
	case 0:
		return usage.Errorf("there is no job and no run %s%s", id, suggest.DidYouMean(suggest.Near(id, known)))
	case 1:
		return a.printJobRuns(found, true)
	}
	return usage.Errorf("%d runs begin with %s", len(found), id)
}
