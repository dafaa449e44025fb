// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// leasesOptions are the command line of leases.
type leasesOptions struct {
	settle string // the uuid of a run; "": list
	run    backup.RunOptions
}

func (a *app) leasesCommand() *cobra.Command {
	var o leasesOptions
	cmd := &cobra.Command{
		Use:        "leases [--settle UUID]",
		Short:      "List who writes to the repository, and settle what was left unfinished",
		SuggestFor: []string{"locks", "unlock", "intents"},
		Long: `leases lists every run that holds a lease in the repository, or has an intent
there, which names the bitmaps that it adds to images: on which host, since
when, whether it can still be at work as far as that can be known from here, and
what to do.

What a run left that was killed is settled by the next backup on its machine.
For a host that is gone, --settle does that, where the images are: it takes the
run's bitmaps out of them, unless its checkpoint was committed, and removes its
intent and lease. It refuses while the run is at work, or may be.`,
		Annotations: exits(exitDamage, exitInUse, exitInterrupted),
		Example: `  imgbackup leases
  imgbackup leases --settle 0f8fad5b-d9cb-469f-a165-70867728950e
  imgbackup leases --settle 0f8fad5b-d9cb-469f-a165-70867728950e --images-gone`,
		Args: takes(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.settle == "" && (cmd.Flags().Changed("settle") || o.run != backup.RunOptions{}) {
				return usage.Errorf("which run? give --settle UUID; imgbackup leases lists them")
			}
			repo, err := a.openRepo(cmd.Context())
			if err != nil {
				return err
			}
			runs, unusable, err := repo.Runs(cmd.Context())
			if err != nil {
				return err
			}
			if o.settle != "" {
				return a.settleRun(cmd.Context(), repo, runs, o)
			}
			return errors.Join(append([]error{a.printRuns(runs)}, unusable...)...)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.settle, "settle", "", "end what the run with this `UUID` left behind")
	f.BoolVar(&o.run.ImagesGone, "images-gone", false, "images that are not there are gone for good")
	f.BoolVar(&o.run.Ended, "ended", false, "the run has ended, though that cannot be seen from here")
	completes(cmd, map[string]completer{"settle": a.runs})
	return cmd
}

func (a *app) settleRun(ctx context.Context, repo *chain.Repository, runs []*chain.Run, o leasesOptions) error {
	i := slices.IndexFunc(runs, func(r *chain.Run) bool { return r.UUID == o.settle })
	if i < 0 {
		return fmt.Errorf("no run %s has a lease or an intent in the repository (imgbackup leases lists them)", oneLine(o.settle))
	}
	done, err := backup.SettleRun(ctx, repo, runs[i], o.run)
	if perr := a.printSettled(o.settle, done, err == nil); err == nil {
		err = perr
	}
	return err
}

// runs completes the uuid of a run that is not at work.
func (a *app) runs(cmd *cobra.Command, _ []string, _ string) []cobra.Completion {
	repo := a.completionRepo(cmd)
	if repo == nil {
		return nil
	}
	runs, _, err := repo.Runs(cmd.Context())
	if err != nil {
		return nil
	}
	var all []string
	for _, r := range runs {
		if r.Fate != chain.FateAlive {
			all = append(all, r.UUID)
		}
	}
	return all
}

// settledJSON is what leases --settle --json prints.
type settledJSON struct {
	UUID    string           `json:"uuid"`
	Settled bool             `json:"settled"` // its intents and its lease are gone
	Images  []backup.Settled `json:"images"`
}

func (a *app) printSettled(uuid string, done []backup.Settled, settled bool) error {
	if a.json {
		return a.printJSON(settledJSON{uuid, settled, append([]backup.Settled{}, done...)})
	}
	w := &checkedWriter{w: a.out}
	for _, d := range done {
		switch {
		case d.Removed:
			w.printf("removed bitmap %s from %s\n", d.Bitmap, oneLine(d.Path))
		case d.Gone:
			w.printf("%s is gone\n", oneLine(d.Path))
		}
	}
	if settled {
		w.printf("settled run %s\n", uuid)
	}
	return w.err
}

// runJSON is what leases --json prints of a run.
type runJSON struct {
	UUID        string       `json:"uuid"`
	Host        chain.Host   `json:"host"`
	PID         int          `json:"pid"`
	Since       *time.Time   `json:"since"` // null: nothing of the run can be read
	Purpose     string       `json:"purpose,omitempty"`
	State       string       `json:"state"`        // alive, ended, unknown
	ThisMachine bool         `json:"this_machine"` // it runs, or ran, here
	Lease       bool         `json:"lease"`
	Intents     []intentJSON `json:"intents"`
	Damaged     []string     `json:"damaged,omitempty"` // keys of what can't be read
	WhatToDo    string       `json:"what_to_do"`
}

type intentJSON struct {
	Domain         string            `json:"domain"`
	Checkpoint     string            `json:"checkpoint"`
	CheckpointUUID string            `json:"checkpoint_uuid"`
	Images         []intentImageJSON `json:"images"`
}

type intentImageJSON struct {
	Disk   string `json:"disk"`
	Path   string `json:"path"`
	Bitmap string `json:"bitmap"` // that the run adds
}

func viewRun(r *chain.Run) runJSON {
	v := runJSON{
		UUID: r.UUID, Host: r.Process.Host, PID: r.Process.PID, State: r.Fate.String(), ThisMachine: r.Here,
		Lease: r.Lease != nil, Intents: []intentJSON{}, Damaged: r.Damaged, WhatToDo: whatToDo(r),
	}
	if !r.Since.IsZero() {
		v.Since = &r.Since
	}
	if r.Lease != nil {
		v.Purpose = r.Lease.Purpose
	}
	for _, in := range r.Intents {
		images := []intentImageJSON{}
		for _, im := range in.Images {
			images = append(images, intentImageJSON{im.Disk, im.Path, im.Add})
		}
		v.Intents = append(v.Intents, intentJSON{in.Domain, in.Checkpoint, in.CheckpointUUID, images})
	}
	return v
}

// whatToDo advises a person about a run.
func whatToDo(r *chain.Run) string {
	settle := "imgbackup leases --settle " + r.UUID
	var next string
	if len(r.Intents) > 0 {
		next = "the next backup of " + r.Intents[0].Domain + " on this machine settles it; or "
	}
	switch {
	case r.Fate == chain.FateAlive:
		return "nothing: it is at work"
	case r.Fate == chain.FateEnded && next == "":
		return "the next backup removes it; or " + settle
	case r.Fate == chain.FateEnded, r.Here && next != "":
		return next + settle
	case r.Here:
		return "if no container of this machine is at it: " + settle + " --ended"
	case len(r.Intents) > 0:
		return "if its host is gone for good: " + settle + ", where the images are (--images-gone, if they are gone, too)"
	case len(r.Damaged) > 0 && r.Lease == nil:
		return "if its host is gone, or is not at work: " + settle
	}
	return "if its host is gone for good, or the run has certainly ended: " + settle
}

func (a *app) printRuns(runs []*chain.Run) error {
	if a.json {
		views := []runJSON{}
		for _, r := range runs {
			views = append(views, viewRun(r))
		}
		return a.printJSON(map[string]any{"leases": views})
	}
	w := &checkedWriter{w: a.out}
	for _, r := range runs {
		printRun(w, viewRun(r))
	}
	if len(runs) == 0 {
		w.printf("nobody writes to the repository, and nothing was left unfinished\n")
	}
	return w.err
}

func printRun(w *checkedWriter, v runJSON) {
	w.printf("%s", v.UUID)
	if v.Purpose != "" {
		w.printf("  %s", oneLine(v.Purpose))
	}
	w.printf("\n")
	if v.Since != nil {
		w.printf("  host %s, process %d, since %s\n", oneLine(v.Host.Name), v.PID, v.Since.Format(time.RFC3339))
	}
	for _, in := range v.Intents {
		w.printf("  intent: domain %s, checkpoint %s\n", oneLine(in.Domain), in.Checkpoint)
		for _, im := range in.Images {
			w.printf("    %s  %s  bitmap %s\n", im.Disk, oneLine(im.Path), im.Bitmap)
		}
	}
	for _, key := range v.Damaged {
		w.printf("  damaged: %s\n", key)
	}
	w.printf("  %s\n  %s\n", stateWords(v), v.WhatToDo)
}

// stateWords say what is known about a run.
func stateWords(v runJSON) string {
	switch {
	case v.State == chain.FateAlive.String():
		return "it is at work"
	case v.State == chain.FateEnded.String():
		return "it has ended"
	case v.ThisMachine:
		return "it may be at work on this machine, in a container that cannot be seen into from here"
	}
	return "whether it is at work cannot be seen from here"
}
