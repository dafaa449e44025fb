// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill"
	"github.com/imgbackup/imgbackup/drill/plan"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// drillRequest is the command line of drill.
type drillRequest struct {
	domains    []string
	checkpoint string
	plan       plan.Plan // of all domains, as flags say it
	noScratch  bool
	askedBy    string
}

const drillHelp = `drill rehearses restores: it takes checkpoints (the newest of each domain by default) through steps that
each pass, fail or are skipped, and says why. A step that could not be done is never a pass.

    chunks       every chunk of the checkpoint is fetched and proven by its digest

Nothing changes: not the repository, but for its record of the drill, not the images, nor the host.`

func (a *app) drillCommand() *cobra.Command {
	var r drillRequest
	cmd := &cobra.Command{
		Use:         "drill [DOMAIN…]",
		Short:       "Rehearse restores, and keep the evidence",
		SuggestFor:  []string{"rehearse", "test", "verify-restore"},
		Long:        drillHelp,
		Annotations: exits(exitDamage, exitInterrupted),
		Example: `  imgbackup drill web
  imgbackup drill --checkpoint all`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r.domains = args
			if err := notEmpty(cmd.Flags(), "checkpoint"); err != nil {
				return err
			}
			for _, d := range args {
				if err := chain.CheckDomain(d); err != nil {
					return usage.Wrap(err)
				}
			}
			return a.drill(cmd.Context(), &r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.checkpoint, "checkpoint", "latest", "drill this `CHECKPOINT`: a name, latest, all, or random:N")
	f.StringArrayVar(&r.plan.Disks, "disk", nil, "drill only this disk `TARGET`; may be repeated")
	f.StringSliceVar(&r.plan.Require, "require", nil, "these `STEPS` must pass, as chunks,restore (default: all that are done, but boot)")
	f.StringVar(&r.askedBy, "asked-by", "", "who asks for the drill, for its record: a `TEXT` (default: this user)")
	section(f, whatIsDone, "checkpoint", "disk", "require", "asked-by")
	return a.addProgress(cmd)
}

// drillFailed is the end of a run whose verdict is told already.
type drillFailed struct {
	code int
	error
}

func (a *app) drill(ctx context.Context, r *drillRequest) (err error) {
	repo, err := a.openRepo(ctx)
	if err != nil {
		return err
	}
	chosen, err := a.chooseDrills(ctx, repo, r)
	if err != nil {
		return err
	}
	run := record.Run{Format: record.RunFormat, Version: record.Version, Run: chain.NewUUID(), Begun: time.Now().UTC()}
	d, err := drill.New(repo, drill.Options{
		Dir: tempDir(), Tool: tool(), AskedBy: r.askedBy, Run: run.Run, Note: a.note,
		Told: func(string, int64) {},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	for _, t := range chosen {
		t.Require = r.plan.Require
		t.Steps = a.drillSteps(d, &r.plan)
		one, err := d.Run(ctx, t)
		run.Drills = append(run.Drills, record.Drilled{Record: *one})
		if err != nil {
			return err
		}
	}
	run.Ended = time.Now().UTC()
	return a.printDrill(&run)
}

// drillSteps are the steps that a plan asks for, in their order.
func (a *app) drillSteps(d *drill.Drill, p *plan.Plan) []drill.Step {
	return []drill.Step{d.Chunks()}
}

// printDrill tells what a run has found, and is an error unless everything passed.
func (a *app) printDrill(run *record.Run) error {
	run.Verdict, run.Status = record.VerdictPassed, exitDone
	for i := range run.Drills {
		switch run.Drills[i].Verdict {
		case record.VerdictFailed:
			run.Verdict, run.Status = record.VerdictFailed, exitDamage
		case record.VerdictIncomplete:
			if run.Status == exitDone {
				run.Verdict, run.Status = record.VerdictIncomplete, exitFailed
			}
		}
	}
	w := &checkedWriter{w: a.out}
	if a.json {
		w.err = a.printJSON(run)
	} else {
		for i := range run.Drills {
			printDrilled(w, &run.Drills[i].Record)
		}
	}
	if w.err != nil || run.Status == exitDone {
		return w.err
	}
	bad := 0
	for i := range run.Drills {
		if run.Drills[i].Verdict != record.VerdictPassed {
			bad++
		}
	}
	return drillFailed{run.Status, fmt.Errorf("%d of %s did not pass", bad, count(len(run.Drills), "drill"))}
}

func printDrilled(w *checkedWriter, r *record.Record) {
	w.printf("%s at %s: %s\n", r.Domain, r.Checkpoint, r.Verdict)
	for _, s := range r.Steps {
		w.printf("  %-11s  %s", s.Step, s.Status)
		if s.Status == record.Passed {
			w.printf("  %s in %s", size(s.Bytes), time.Duration(s.Duration)*time.Millisecond)
		}
		if s.Reason != "" {
			w.printf("  %s", oneLine(s.Reason))
		}
		w.printf("\n")
		if s.WhatToDo != "" {
			w.printf("    to do: %s\n", oneLine(s.WhatToDo))
		}
	}
}
