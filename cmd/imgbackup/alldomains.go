// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
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
	order := []int{exitDone, exitUsage, exitNotTrusted, exitInUse, exitTaken, exitFailed, exitDamage, exitInterrupted}
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

// backupAll backs up every domain whose definition lies in a folder. One that
// fails does not keep the others from being backed up.
func (a *app) backupAll(cmd *cobra.Command, req backup.Request, folder string, dryRun bool) error {
	files, err := definitions(folder)
	if err != nil {
		return usageError{err}
	}
	ctx := cmd.Context()
	repo, err := a.openRepo(ctx)
	if err != nil {
		return err
	}
	var all []domainOutcome
	code := exitDone
	for _, file := range files {
		o := a.backupDefinition(ctx, repo, req, folder, file, dryRun)
		if err := ctx.Err(); err != nil && o.Status != exitDone {
			return fmt.Errorf("%d of %d domains were dealt with: %w", len(all), len(files), err)
		}
		if o.Error != "" && !o.Skipped {
			a.events.tell(event{Event: "error", Domain: o.Domain, Error: o.Error})
			a.say("%s (%s): %s", o.name(), file, o.Error)
		}
		all, code = append(all, o), worst(code, o.Status)
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

// definitions lists the definitions in a folder by name: regular files that end
// in .xml, and symbolic links to such. What lies in its own folders (libvirt's networks, autostart) is not
// looked at.
func definitions(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, fmt.Errorf("--all-domains: %w", err)
	}
	var files []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".xml") {
			continue
		}
		// One that cannot be looked at is not passed over: to read it will fail.
		kind, at := e.Type(), filepath.Join(folder, e.Name())
		if fi, err := os.Stat(at); err == nil {
			kind = fi.Mode().Type()
		}
		if kind.IsRegular() || kind == fs.ModeSymlink {
			files = append(files, e.Name())
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("--all-domains: there is no definition (*.xml) in %s", folder)
	}
	return files, nil
}

// backupDefinition deals with one definition; a person sees the result at once.
func (a *app) backupDefinition(ctx context.Context, repo *chain.Repository, req backup.Request, folder, file string, dryRun bool) domainOutcome {
	o := domainOutcome{File: file}
	err := func() error {
		in, err := a.readXML(xmlFlags{domain: filepath.Join(folder, file)})
		if err != nil {
			return err
		}
		o.Domain, req.Domain = in.domain.Name, in.domain.Name
		left, err := a.describe(&req, &in, nil)
		if err != nil {
			return err
		}
		plan, result, err := a.carryOut(ctx, repo, req, dryRun)
		switch {
		case err != nil:
			return err
		case dryRun:
			o.Plan = &planJSON{plan, left}
		default:
			o.Backup = describeBackup(result, left)
		}
		if a.json {
			return nil
		}
		if dryRun {
			return a.printPlan(plan, left)
		}
		return a.printBackup(result, left)
	}()
	switch {
	case errors.Is(err, errNoDisks):
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
		Status  int             `json:"status"`
		Done    int             `json:"done"`
		Failed  int             `json:"failed"`
		Skipped int             `json:"skipped"`
		Domains []domainOutcome `json:"domains"`
	}{Status: code, Domains: all}
	w := &checkedWriter{w: a.out}
	var lines []string
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
		}
		lines = append(lines, fmt.Sprintf("%-15s  %-20s  %s\n", o.name(), o.File, strings.ReplaceAll(what, "\n", "; ")))
	}
	if a.json {
		return out.Failed, a.printJSON(out)
	}
	w.printf("\n%d domains: %d done, %d failed, %d skipped\n", len(all), out.Done, out.Failed, out.Skipped)
	for _, l := range lines {
		w.printf("%s", l)
	}
	return out.Failed, w.err
}
