// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/request"
)

// domainsFailed is returned when at least one of several domains could not be
// backed up; what was wrong has been told. Its status is the worst of all.
type domainsFailed struct {
	code int
	error
}

// worst compares exit statuses: damage is worse than a failure, and that worse
// than what another try may cure.
func worst(a, b int) int {
	order := []int{exitDone, exitUsage, exitNotTrusted, exitInUse, exitTaken, exitKey, exitFailed, exitDamage, exitInterrupted}
	if slices.Index(order, a) > slices.Index(order, b) {
		return a
	}
	return b
}

// domainOutcome is what came of one definition.
type domainOutcome struct {
	File    string      `json:"file"`
	Domain  string      `json:"domain,omitempty"` // empty: the definition cannot be read
	Status  int         `json:"status"`
	Skipped bool        `json:"skipped,omitempty"`
	Error   string      `json:"error,omitempty"`
	Plan    *planJSON   `json:"plan,omitempty"`
	Backup  *backupJSON `json:"backup,omitempty"`
}

// backupAll backs up every domain whose definition lies in a folder, some at once. One that
// fails does not keep the others from being backed up.
func (a *app) backupAll(ctx context.Context, b backupOptions) error {
	files, err := request.Definitions(b.folder)
	if err != nil {
		return err
	}
	repo, err := a.openCached(ctx)
	if err != nil {
		return err
	}
	all, err := a.backupEach(ctx, repo, b, files)
	if err != nil {
		return err
	}
	code := exitDone
	for _, o := range all {
		code = worst(code, o.Status)
	}
	failed, err := a.printOutcomes(all, code)
	if err != nil {
		return err
	}
	if code != exitDone {
		return domainsFailed{code, fmt.Errorf("%d of %d domains could not be backed up", failed, len(all))}
	}
	return nil
}

// backupDefinition deals with one definition; a person sees the result at once.
func (a *app) backupDefinition(ctx context.Context, repo *chain.Repository, b backupOptions, file string, others *others) domainOutcome {
	o := domainOutcome{File: file}
	err := func() error {
		b.XML.Domain = filepath.Join(b.folder, file)
		job, err := a.backupJob(b.Backup)
		if o.Domain = job.Request.Domain; err != nil {
			return err
		}
		defer others.enter(&job.Request)()
		plan, result, err := a.carryOut(ctx, repo, job.Request, b.dryRun, true)
		switch {
		case err != nil:
			return err
		case b.dryRun:
			o.Plan = viewPlan(plan, job.Request.LeftOut)
		default:
			o.Backup = a.viewBackup(result, job.Request.LeftOut)
		}
		switch {
		case b.dryRun && a.json:
			return nil
		case b.dryRun:
			return a.printPlan(plan, job.Request.LeftOut)
		case a.json:
			return errors.Join(auditError(result.Audits), salvaged(result.Manifest))
		}
		return errors.Join(a.printBackup(result, job.Request.LeftOut), salvaged(result.Manifest))
	}()
	switch {
	case errors.Is(err, request.ErrNoDisks):
		o.Skipped, o.Error = true, err.Error()
	case err != nil:
		o.Status, o.Error = exitCode(ctx, err), explain(ctx, err)
	}
	return o
}

func (o *domainOutcome) name() string {
	if o.Domain == "" {
		return "-"
	}
	return o.Domain
}

// printOutcomes prints the summary, and counts the domains that failed.
func (a *app) printOutcomes(all []domainOutcome, code int) (failed int, err error) {
	out := struct {
		Status  int `json:"status"`
		Done    int `json:"done"`
		Failed  int `json:"failed"`
		Skipped int `json:"skipped"`
		// Unchanged are those of Done of which no checkpoint was made, nor need be.
		Unchanged int             `json:"unchanged,omitempty"`
		Domains   []domainOutcome `json:"domains"`
	}{Status: code, Domains: all}
	w := &checkedWriter{w: a.out}
	t := &table{out: a.out}
	for _, o := range all {
		what := "done"
		switch {
		case o.Skipped:
			out.Skipped++
			what = "skipped: " + o.Error
		case o.Status != exitDone:
			out.Failed++
			what = fmt.Sprintf("failed (%d): %s", o.Status, o.Error)
		default:
			out.Done++
			if o.Backup != nil && o.Backup.Unchanged != nil {
				out.Unchanged++
				what = "unchanged since " + o.Backup.Unchanged.Since
			}
		}
		t.row(o.name(), o.File, strings.ReplaceAll(what, "\n", "; "))
	}
	if a.json {
		return out.Failed, a.printJSON(out)
	}
	w.printf("\n%s: %d done, %d failed, %d skipped\n", count(len(all), "domain"), out.Done, out.Failed, out.Skipped)
	if w.err == nil {
		w.err = t.print()
	}
	return out.Failed, w.err
}
