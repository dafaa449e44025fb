// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill"
	"github.com/imgbackup/imgbackup/drill/plan"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/internal/spool"
)

// drillFailed is the end of a run whose verdict is told already.
type drillFailed struct {
	code int
	error
}

// drilling is a run of drill.
type drilling struct {
	noting sync.Mutex

	a       *app
	r       *drillRequest
	repo    *chain.Repository
	run     record.Run
	report  *drillReport            // nil: none is wanted
	resume  *drill.State            // nil: the run begins
	saved   time.Time               // when its state was
	saving  sync.Mutex              // held by who saves it
	unsaved error                   // why it could not be
	drills  map[string]*drill.Drill // by the folder for scratch data
}

func (a *app) drill(ctx context.Context, r *drillRequest) (err error) {
	repo, err := a.openRepo(ctx)
	if err != nil {
		return err
	}
	repo = a.beneath(repo)
	if err := checkReadsData(repo, "a drill"); err != nil {
		return err
	}
	if dir, err := a.cacheDir(repo.Store); err == nil && dir != nil { // of the host alone: nothing of the repository is taken from there
		for _, look := range r.looks {
			look.Cache = dir.Path()
		}
	}
	d := &drilling{a: a, r: r, repo: repo, drills: make(map[string]*drill.Drill)}
	d.run = record.Run{Format: record.RunFormat, Version: record.Version, Run: chain.NewUUID(), Begun: time.Now().UTC(), Drills: []record.Drilled{}}
	if r.state != "" {
		if err := a.checkOutside("--state", r.state); err != nil {
			return err
		}
		if d.resume, err = drill.LoadState(r.state); err != nil {
			return fmt.Errorf("--state: %w", err)
		}
		if d.resume != nil {
			d.run.Run = d.resume.Run
		}
	}
	if r.signKey != "" { // not after hours
		if _, err := record.Sign(ctx, r.signKey, []byte("imgbackup: may records be signed?\n")); err != nil {
			return fmt.Errorf("--sign-key: %w", err)
		}
	}
	if !r.noRecord {
		if err := repo.CheckWritable(); err != nil {
			return err
		}
	}
	chosen, failed, err := a.chooseDrills(ctx, repo, r)
	if err != nil {
		return err
	}
	if r.report != "" {
		if d.report, err = a.newDrillReport(r.report); err != nil {
			return err
		}
	}
	defer func() {
		for _, one := range d.drills {
			err = errors.Join(err, one.Close())
		}
	}()
	if chosen, err = d.notYet(ctx, chosen); err != nil {
		return err
	}
	d.saved = time.Now()
	bar := a.newBar("drilling")
	err = errors.Join(d.all(ctx, chosen, bar), failed)
	bar.clear()
	return errors.Join(err, d.end(ctx, err))
}

// saveEvery is how often what was proven is saved while a run goes on.
const saveEvery = time.Minute

// save keeps what was proven, if that is asked for, and it is time or the run is over. Of two
// that call it at once one does it.
func (d *drilling) save(over bool) error {
	if d.r.state == "" || !d.saving.TryLock() {
		return nil
	}
	defer d.saving.Unlock()
	if d.unsaved != nil || !over && time.Since(d.saved) < saveEvery {
		return d.unsaved
	}
	d.saved = time.Now()
	for _, one := range d.drills { // of one folder, most often: what others prove is proven again
		if err := one.Save(d.r.state); err != nil {
			d.unsaved = fmt.Errorf("--state: %w", err)
		}
		break
	}
	return d.unsaved
}

// notYet leaves out what has passed already in the same run. What failed is drilled again:
// the exit status is that of the whole run.
func (d *drilling) notYet(ctx context.Context, chosen []*drill.Target) ([]*drill.Target, error) {
	if d.resume == nil {
		return chosen, nil
	}
	done := make(map[string]bool)
	for _, t := range chosen {
		if domain := t.Manifest.Domain; !done[domain] {
			done[domain] = true
			names, err := record.List(ctx, d.repo, domain)
			if err != nil {
				return nil, err
			}
			for _, n := range names[domain] {
				r, err := record.Read(ctx, d.repo, domain, n.UUID)
				if err == nil && r.Run == d.run.Run && r.Verdict == record.VerdictPassed {
					done[r.CheckpointUUID] = true
				}
			}
		}
	}
	left := slices.DeleteFunc(chosen, func(t *drill.Target) bool { return done[t.Manifest.UUID] })
	d.note(fmt.Sprintf("the drill of before goes on: %s left", count(len(left), "checkpoint")))
	return left, nil
}

// all drills the chosen checkpoints.
func (d *drilling) all(ctx context.Context, chosen []*drill.Target, bar *bar) error {
	var total int64
	for _, t := range chosen {
		total += expected(t)
	}
	var done atomic.Int64
	told := func(string, int64) {}
	if total > 0 {
		told = func(step string, n int64) {
			if step == record.StepChunks || step == record.StepRestore {
				now := min(done.Add(n), total)
				bar.set(now, total)
				d.a.events.set("drilling", now, total)
			}
		}
	}
	progress := told
	told = func(step string, n int64) {
		progress(step, n)
		if step == record.StepChunks { // of a large checkpoint, too, which may take hours
			_ = d.save(false) // an error is told when the checkpoint is done
		}
	}
	for _, t := range chosen {
		err := d.one(ctx, t, told)
		if err = errors.Join(err, d.save(false)); err != nil {
			return err
		}
	}
	return nil
}

// expected is about how many bytes a drill of a checkpoint goes through: of one that is
// not the first of its domain, what its backup has archived.
func expected(t *drill.Target) (n int64) {
	for i := range t.Manifest.Disks {
		d := &t.Manifest.Disks[i]
		if len(t.Disks) > 0 && !slices.Contains(t.Disks, d.Name) {
			continue
		}
		if !t.Whole {
			n += d.DataBytes
			continue
		}
		// The newest: all that its line has archived, most often more than it shows.
		for _, m := range t.History {
			if was, ok := m.Disk(d.Name); ok && m.Sequence <= t.Manifest.Sequence {
				n += was.DataBytes
			}
		}
		n = min(n, d.Size)
	}
	return n
}

// one drills a checkpoint, and keeps its record.
func (d *drilling) one(ctx context.Context, t *drill.Target, told func(string, int64)) error {
	p := d.r.planOf(t.Manifest.Domain)
	engine, err := d.engine(p.Scratch, told)
	if err != nil {
		return err
	}
	t.Require, t.Limits.Timeout = p.Require, time.Duration(p.Timeout)
	t.Steps = d.steps(engine, t, &p)
	rec, err := engine.Run(ctx, t)
	drilled := record.Drilled{Record: *rec}
	if err == nil {
		err = d.keep(ctx, &drilled)
	}
	d.run.Drills = append(d.run.Drills, drilled)
	return err
}

// engine is the run in a scratch folder.
func (d *drilling) engine(scratch string, told func(string, int64)) (*drill.Drill, error) {
	if scratch == "" || scratch == plan.NoScratch {
		scratch = spool.TempDir()
	}
	if one := d.drills[scratch]; one != nil {
		return one, nil
	}
	if err := d.a.checkOutside("--scratch", scratch); err != nil {
		return nil, err
	}
	askedBy := d.r.askedBy
	if askedBy == "" {
		askedBy = asker()
	}
	o := drill.Options{Dir: scratch, Resume: d.resume, Tool: tool(), AskedBy: askedBy, Run: d.run.Run, Note: d.note, Told: told}
	if d.report != nil {
		o.Kept = d.report.kept
	}
	one, err := drill.New(d.repo, o)
	if err == nil {
		d.drills[scratch] = one
	}
	return one, err
}

// note tells a person, and the report.
func (d *drilling) note(text string) {
	d.a.note(text)
	d.noting.Lock() // a server of disks may have something to tell, too
	defer d.noting.Unlock()
	if len(d.run.Notes) < 1000 {
		d.run.Notes = append(d.run.Notes, text)
	}
}

// steps are those that a checkpoint goes through, in their order.
func (d *drilling) steps(engine *drill.Drill, t *drill.Target, p *plan.Plan) []drill.Step {
	scratch := p.Scratch != plan.NoScratch && t.Whole
	steps := engine.Data(scratch)
	if !t.Whole {
		return steps
	}
	if newest := newestArchive(t.History); newest != nil && newest.UUID == t.Manifest.UUID {
		steps = append(steps, engine.Source(newest, d.r.allowDirs))
	}
	if scratch {
		steps = append(steps, drill.Image())
	}
	steps = append(steps, d.guestSteps(t.Manifest.Domain, p)...)
	if len(p.Command.Run) > 0 {
		c := drill.Command{Run: p.Command.Run, Timeout: time.Duration(p.Command.Timeout), Hidden: d.a.secretVariables()}
		if p.Command.Expect != "" {
			c.Expect = regexp.MustCompile(p.Command.Expect) // it was checked
		}
		steps = append(steps, c.Step())
	}
	return slices.DeleteFunc(steps, func(s drill.Step) bool { return slices.Contains(p.Skip, s.Name()) })
}

func newestArchive(history []*chain.Manifest) *chain.Manifest {
	for _, m := range slices.Backward(history) {
		if m.Kind == chain.KindArchive {
			return m
		}
	}
	return nil
}

// keep signs and stores a record.
func (d *drilling) keep(ctx context.Context, drilled *record.Drilled) error {
	data, err := record.Seal(&drilled.Record)
	if err != nil {
		return fmt.Errorf("the record of the drill of %s at %s: %w", drilled.Domain, drilled.Checkpoint, err)
	}
	var sig []byte
	if d.r.signKey != "" {
		if sig, err = record.Sign(ctx, d.r.signKey, data); err != nil {
			return err
		}
		drilled.Signed = true
	}
	if d.report != nil {
		if err := d.report.record(drilled.Domain, drilled.UUID, data, sig); err != nil {
			return err
		}
	}
	if d.r.noRecord {
		return nil
	}
	if err := d.repo.PutDrill(ctx, &chain.DrillRecord{Domain: drilled.Domain, ID: drilled.UUID, CheckpointUUID: drilled.CheckpointUUID, Data: data, Signature: sig}); err != nil {
		return fmt.Errorf("the record of the drill of %s at %s could not be stored: %w", drilled.Domain, drilled.Checkpoint, err)
	}
	drilled.Stored = true
	return nil
}

// end judges the run, and tells of it. err is what has cut it off, if anything has.
func (d *drilling) end(ctx context.Context, err error) error {
	run := &d.run
	run.Ended = time.Now().UTC()
	run.Verdict, run.Status = record.VerdictPassed, exitDone
	bad := 0
	for i := range run.Drills {
		switch run.Drills[i].Verdict {
		case record.VerdictFailed:
			run.Verdict, run.Status = record.VerdictFailed, exitDamage
			bad++
		case record.VerdictIncomplete:
			bad++
			if run.Status == exitDone {
				run.Verdict, run.Status = record.VerdictIncomplete, exitFailed
			}
		}
	}
	if err != nil {
		// What failed counts, also if the run was cut off, but for an interrupt.
		if code := exitCode(ctx, err); run.Status != exitDamage || code == exitInterrupted {
			run.Status = code
		}
		if run.Verdict != record.VerdictFailed {
			run.Verdict = record.VerdictIncomplete
		}
	}
	var oerr error
	if d.report != nil {
		if oerr = d.report.end(run); oerr != nil {
			oerr = fmt.Errorf("--report: %w", oerr)
		}
	}
	// What was found is told, and its state kept, whatever becomes of the report.
	if oerr = errors.Join(oerr, d.a.printDrill(run)); oerr != nil && err == nil && run.Status != exitDamage {
		err = oerr
	}
	switch {
	case d.r.state == "":
	case err != nil || run.Status == exitFailed:
		if serr := d.save(true); serr != nil && !errors.Is(err, serr) {
			return serr
		}
	default:
		if rerr := os.Remove(d.r.state); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			return fmt.Errorf("--state: %w", rerr)
		}
	}
	if run.Status == exitDone || err != nil && run.Status != exitDamage {
		return oerr
	}
	return errors.Join(oerr, drillFailed{run.Status, fmt.Errorf("%d of %s did not pass", bad, count(len(run.Drills), "drill"))})
}

// printDrill tells what a run has found.
func (a *app) printDrill(run *record.Run) error {
	if a.json {
		return a.printJSON(run)
	}
	w := &checkedWriter{w: a.out}
	for i := range run.Drills {
		printDrilled(w, &run.Drills[i])
	}
	return w.err
}

func printDrilled(w *checkedWriter, r *record.Drilled) {
	w.printf("%s at %s: %s\n", r.Domain, r.Checkpoint, r.Verdict)
	for _, s := range r.Steps {
		w.printf("  %-11s  %-7s", s.Step, s.Status)
		if s.Status == record.Passed {
			w.printf("  %s in %s", size(s.Bytes), roundMS(s.Duration))
		}
		if s.Reason != "" {
			w.printf("  %s", oneLine(s.Reason))
		}
		w.printf("\n")
		if s.WhatToDo != "" && !slices.Contains([]record.Status{record.Passed}, s.Status) {
			w.printf("    to do: %s\n", oneLine(s.WhatToDo))
		}
	}
	if ms := r.RTO.Restore; ms != nil {
		w.printf("  all disks were back after %s", roundMS(*ms))
		if first := r.RTO.FirstByte; first != nil {
			w.printf(", and could be read after %s", roundMS(*first))
		}
		w.printf("\n")
	}
	if r.Stored {
		w.printf("  record %s\n", r.UUID)
	}
}
