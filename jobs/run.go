// SPDX-License-Identifier: Apache-2.0

package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/config"
)

// Options say how jobs are run.
type Options struct {
	Config *config.Config
	// Self is this program with arguments.
	Self func(args ...string) *exec.Cmd
	// Worse is the worse of two exit statuses.
	Worse func(a, b int) int
	// InUse is the exit status of a backup whose images are in use.
	InUse int
	Host  string
	Now   func() time.Time
	// Wait is how long another run of the same job is waited for.
	Wait time.Duration
	// Pause is the time between two looks whether a VM has ended that is waited for.
	Pause time.Duration
	// Patience is how long a VM that can't be started is tried again: for a libvirtd that is
	// being restarted, and what a killed run left behind that still has the image open.
	Patience time.Duration
	// Parallel is how many domains are backed up at once; 0: as the job says, else Usual.
	Parallel, Usual int
	// Progress, if any, is told how far steps are, bytes.
	Progress func(what, domain string, done, total int64)
	// Tell, if any, is told as steps begin (Seconds below 0) and end.
	Tell func(Done)
	// Journal, if any, has all that the runs' logs have, with fields: job, run, step, domain,
	// status and seconds.
	Journal *slog.Logger
	// Note, if any, is told what a person should know.
	Note func(text string)
}

// runner is a run at work.
type runner struct {
	Options
	job     config.Job
	plan    *Plan
	history *History
	log     *logFile

	mu      sync.Mutex
	run     *Run
	passing bool    // it is on no record
	unkept  []error // what could not be kept, and is not tried again
	// The record takes long to write where it is long: so it is not written after every
	// step then.
	unstored error     // what kept the record from being written last
	stored   time.Time // when it was
	writing  time.Duration
	results  int // bytes of what steps have printed
}

// Execute runs a job. What came of it is in the run, which is never nil where the job was
// begun; the error is about what kept it from being begun, or its record from being kept.
// A job whose state can't be kept is done all the same: a backup that is not on record is
// better than none.
func Execute(ctx context.Context, o Options, job string) (*Run, error) {
	r := newRunner(o, job)
	unlock, err := r.lock(ctx, job, o.Wait)
	var busy *BusyError
	switch {
	case errors.As(err, &busy):
		return nil, err
	case ctx.Err() != nil:
		if err == nil {
			unlock()
		}
		return nil, context.Cause(ctx)
	case err != nil:
		r.unkept = append(r.unkept, err)
	default:
		defer unlock()
		r.settle()
	}
	if err := r.begin(); err != nil {
		r.unkept = append(r.unkept, err)
	}
	r.log = openLog(r.run.Log, o.Now)
	r.log.journal = r.journal()
	if unlock != nil {
		r.startLeft(ctx, job)
	}
	if r.plan, err = Make(o.Config, job); err != nil {
		r.add(Done{What: StepPlan, Begun: o.Now().UTC(), Status: 1, Error: err.Error()})
		return r.run, r.finish()
	}
	r.run.Notes = append(r.run.Notes, r.plan.Notes...)
	for _, n := range r.plan.Notes {
		r.Note(n)
	}
	r.steps(ctx)
	return r.run, r.finish()
}

// Recover starts VMs that runs have shut down which are no more, where no job is to be
// done now that would do so. What came of it is in steps.
func Recover(ctx context.Context, o Options) (steps []Done) {
	r := newRunner(o, "")
	r.log = &logFile{now: o.Now, journal: r.journal()}
	r.passing = true
	r.startLeft(ctx, "")
	return r.run.Steps
}

func newRunner(o Options, job string) *runner {
	r := &runner{Options: o, job: o.Config.Jobs[job], history: NewHistory(o.Config.State)}
	if r.Tell == nil {
		r.Tell = func(Done) {}
	}
	if r.Note == nil {
		r.Note = func(string) {}
	}
	r.run = newRun(job, o.Host, o.Now())
	return r
}

// journal is that of the run; nil: there is none.
func (r *runner) journal() *slog.Logger {
	if r.Journal == nil {
		return nil
	}
	return r.Journal.With("job", r.run.Job, "run", r.run.ID)
}

// settle marks earlier runs of the job that were cut off.
func (r *runner) settle() {
	cut, err := r.history.settle(r.run.Job)
	if err != nil {
		r.unkept = append(r.unkept, err)
	}
	for _, old := range cut {
		r.Note(fmt.Sprintf("the run of %s at %s was cut off", old.Job, old.Begun.Local().Format("2006-01-02 15:04:05")))
	}
}

// begin puts the run on record.
func (r *runner) begin() error {
	r.run.Log = r.history.path(r.run, ".log")
	return r.history.begin(r.run)
}

// add takes down what came of a step.
func (r *runner) add(d Done) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch d.Skipped {
	case "":
		r.run.Status = r.Worse(r.run.Status, d.Status)
	case interrupted: // nothing went wrong, and it is not done
		r.run.Status = r.Worse(r.run.Status, 1)
	}
	if r.results += len(d.Result); r.results > maxResults {
		d.Result = nil
	}
	r.run.Steps = append(r.run.Steps, d)
	if since := time.Since(r.stored); !r.passing && since > 20*r.writing {
		r.store()
	}
	r.Tell(d)
}

// store writes the record, as far as that can be done.
func (r *runner) store() {
	begun := time.Now()
	r.unstored = r.history.write(r.run)
	r.stored = time.Now()
	r.writing = r.stored.Sub(begun)
}

// interrupted is why steps are left out at a signal.
const interrupted = "the run was interrupted"

// steps does them: the backups, side by side, and then what follows, one after the other.
func (r *runner) steps(ctx context.Context) {
	done := r.backups(ctx)
	uncopied := false
	for _, s := range r.plan.After(r.Config, done) {
		why := ""
		switch {
		case ctx.Err() != nil:
			why = interrupted
		case s.What == StepForget && uncopied:
			why = "copy failed: what would go may not be copied yet"
		}
		if why != "" {
			r.add(Done{What: s.What, Begun: r.Now().UTC(), Skipped: why, Command: s.Args})
			continue
		}
		d := r.step(ctx, s.What, "", s.Args)
		uncopied = uncopied || s.What == StepCopy && d.Status != 0
	}
	if argv := r.job.Hooks.OnFailure; r.run.Status != 0 && len(argv) > 0 {
		r.runHook(context.WithoutCancel(ctx), StepFailure, "", argv, fmt.Sprintf("IMGBACKUP_STATUS=%d", r.run.Status))
	}
}

// step runs this program as a step.
func (r *runner) step(ctx context.Context, what, domain string, args []string) Done {
	ctx, cancel := r.limit(ctx, time.Duration(r.job.Limits.Timeout))
	defer cancel()
	d := r.try(ctx, what, domain, args, nil)
	r.add(d)
	return d
}

// try runs this program as a step; begins, if any, is told of each step of a backup's order.
func (r *runner) try(ctx context.Context, what, domain string, args []string, begins func(step string)) Done {
	r.Tell(Done{What: what, Domain: domain, Seconds: -1})
	shown := append([]string{"imgbackup"}, args...)
	cmd := command{ours: true, step: begins}
	if r.Progress != nil || begins != nil {
		args = append(slices.Clone(args), "--progress", "json", "--progress-to", fmt.Sprintf("fd:%d", progressFD))
	}
	if r.Progress != nil {
		cmd.progress = func(done, total int64) { r.Progress(what, domain, done, total) }
	}
	cmd.Cmd = r.Self(args...)
	return r.do(ctx, what, domain, cmd, shown)
}

func (r *runner) limit(ctx context.Context, most time.Duration) (context.Context, context.CancelFunc) {
	if most == 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, most, ErrTimeout)
}

func (r *runner) runHook(ctx context.Context, what, domain string, argv []string, more ...string) Done {
	ctx, cancel := r.limit(ctx, time.Duration(r.job.Hooks.Timeout))
	defer cancel()
	r.Tell(Done{What: what, Domain: domain, Seconds: -1})
	d := r.do(ctx, what, domain, command{Cmd: r.hook(argv, domain, more...)}, argv)
	if d.Status != 0 {
		d.Status = 1 // its own numbers mean something else than ours
	}
	r.add(d)
	return d
}

// backups does all domains' backups, and returns those that went well, in their order.
func (r *runner) backups(ctx context.Context) (done []string) {
	n := max(cmp.Or(r.Parallel, r.job.Limits.Parallel, r.Usual), 1)
	well := make([]bool, len(r.plan.Domains))
	var g errgroup.Group
	g.SetLimit(n)
	for i, t := range r.plan.Domains {
		g.Go(func() error {
			well[i] = r.backup(ctx, t)
			return nil
		})
	}
	_ = g.Wait() // each has told what came of it
	for i, t := range r.plan.Domains {
		if well[i] {
			done = append(done, t.Name)
		}
	}
	return done
}

// backup backs up a domain, with what goes before and after; ok: it went well.
func (r *runner) backup(ctx context.Context, t Target) (ok bool) {
	none := Done{What: StepBackup, Domain: t.Name, Begun: r.Now().UTC()}
	if t.Missing != nil {
		none.Status, none.Error = 1, t.Missing.Error()
		r.add(none)
		return false
	}
	if ctx.Err() != nil {
		none.Skipped = interrupted
		r.add(none)
		return false
	}
	hooks := r.job.Hooks
	if len(hooks.Before) > 0 {
		if d := r.runHook(ctx, StepBefore, t.Name, hooks.Before); d.Status != 0 {
			none.Skipped = "before failed"
			r.add(none)
			return false
		}
	}
	d := r.poweredBackup(ctx, t)
	if len(hooks.After) > 0 {
		r.runHook(context.WithoutCancel(ctx), StepAfter, t.Name, hooks.After, fmt.Sprintf("IMGBACKUP_STATUS=%d", d.Status))
	}
	return d.Status == 0 && d.Skipped == ""
}

// stepReleased is the step of a backup from which on a VM may have the images.
const stepReleased = "released"

// poweredBackup backs up a domain whose VM may run.
func (r *runner) poweredBackup(ctx context.Context, t Target) Done {
	var begins func(step string)
	if r.job.OnRunning.What == config.Stop {
		stop, err := r.shutDown(ctx, t.Name)
		if stop != nil {
			again := sync.OnceFunc(func() { r.startAgain(ctx, stop, false) })
			defer again()
			if c := r.job.Backup.Clone; c != "" && c != "never" {
				begins = func(step string) {
					if step == stepReleased {
						go again() // the backup is not to wait for it
					}
				}
			}
		}
		why := "it could not be shut down"
		if err == nil && ctx.Err() != nil {
			err, why = ctx.Err(), interrupted
		}
		if err != nil {
			d := Done{What: StepBackup, Domain: t.Name, Begun: r.Now().UTC(), Skipped: why}
			r.add(d)
			return d
		}
	}
	ctx, cancel := r.limit(ctx, time.Duration(r.job.Limits.Timeout))
	defer cancel()
	d := r.try(ctx, StepBackup, t.Name, t.Args, begins)
	switch {
	case d.Status != r.InUse:
	case r.job.OnRunning.What == config.Skip:
		d.Skipped = d.Error
	case r.job.OnRunning.What == config.Wait:
		d = r.patiently(ctx, t, d)
	}
	r.add(d)
	return d
}

// patiently tries again until a VM has ended, or time is up.
func (r *runner) patiently(ctx context.Context, t Target, d Done) Done {
	until := time.Now().Add(time.Duration(r.job.OnRunning.For))
	tick := time.NewTicker(r.Pause)
	defer tick.Stop()
	for d.Status == r.InUse && time.Now().Before(until) {
		select {
		case <-tick.C:
			d = r.try(ctx, StepBackup, t.Name, t.Args, nil)
		case <-ctx.Done():
			return d
		}
	}
	return d
}

// shutDown shuts a domain's VM down, if it runs. What is not nil is to be started again,
// also where it could not be shut down: it may be later.
func (r *runner) shutDown(ctx context.Context, domain string) (*stopped, error) {
	p := &power{r, r.job.Shutdown, domain}
	begun := time.Now()
	d := Done{What: StepShutdown, Domain: domain, Begun: r.Now().UTC(), Seconds: -1}
	end := func(s *stopped, err error) (*stopped, error) {
		if d.Seconds = time.Since(begun).Seconds(); err != nil {
			d.Status, d.Error = 1, err.Error()
		}
		r.add(d)
		return s, err
	}
	state, err := p.state(ctx)
	if err != nil {
		return end(nil, err)
	}
	if state == isOff {
		return nil, nil
	}
	r.Tell(d)
	s := &stopped{Format: stoppedFormat, Domain: domain, Job: r.run.Job, Run: r.run.ID, Time: r.Now().UTC(), Shutdown: r.job.Shutdown}
	before, unread := readStopped(r.stoppedPath(domain)) // by what it was told then it may still go off
	if errors.Is(unread, fs.ErrNotExist) {
		unread = nil
	}
	if err := r.remember(s); err != nil {
		return end(nil, fmt.Errorf("%s is not shut down, since that it is to be started again can't be noted: %w", domain, err))
	}
	switch told, err := p.stop(ctx); {
	case err == nil:
		s.Off = true
		// Without that it is only longer taken for one that may still shut down.
		_ = r.remember(s)
		return end(s, nil)
	case !told && before != nil:
		return end(nil, errors.Join(err, r.remember(before)))
	case !told && unread != nil:
		return end(nil, errors.Join(err, unread)) // the new record stays: it may have been told before
	case !told:
		return end(nil, errors.Join(err, r.forgotten(domain)))
	default:
		return end(s, err)
	}
}

// finish ends the record and the log, and removes what is too old.
func (r *runner) finish() error {
	ended := r.Now().UTC()
	r.run.Ended = &ended
	level := slog.LevelInfo
	if r.run.Status != 0 {
		level = slog.LevelError
	}
	r.log.to(level, "run", "", fmt.Sprintf("ends: status %d", r.run.Status), slog.Int("status", r.run.Status))
	r.store()
	lerr := r.log.close()
	if err := errors.Join(append(r.unkept, r.unstored, lerr)...); err != nil {
		return fmt.Errorf("what the run did could not be kept: %w", err)
	}
	return r.history.tidy(r.run.Job, r.Now().Add(-time.Duration(r.Config.History)))
}

// Parallel is how many domains are backed up at once: one for each two cores, and for
// each so many bytes of memory.
func Parallel(memory, each int64) int {
	n := (runtime.NumCPU() + 1) / 2
	return max(1, min(n, int(memory/each)))
}

// Failed are the steps that went wrong.
func (r *Run) Failed() []Done {
	return slices.DeleteFunc(slices.Clone(r.Steps), func(d Done) bool { return d.Status == 0 || d.Skipped != "" })
}
