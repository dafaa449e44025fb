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
	broken string // likewise: only its lease is broken
	run    backup.RunOptions
}

func (a *app) leasesCommand() *cobra.Command {
	var o leasesOptions
	cmd := &cobra.Command{
		Use:        "leases [--settle UUID | --break UUID]",
		Short:      "List who writes to the repository, and settle what was left unfinished",
		SuggestFor: []string{"locks", "unlock", "intents"},
		Long: `leases lists every run that holds a lease in the repository, or has an intent
there, which names the bitmaps that it adds to images: on which host, since
when, whether it can still be at work as far as that can be known from here, and
what to do.

What a run left that was killed is settled by the next backup on its machine.
For a host that is gone, --settle does that, where the images are: it takes the
run's bitmaps out of them, unless its checkpoint was committed, and removes its
intent and lease. It refuses while the run is at work, or may be.

A prune deletes nothing while a lease stands that it has found. One whose writer
has ended it breaks by itself, on the same machine at once, on another after a
day without a sign of life. --break does so at once, and leaves intents and
images as they are. If the run is at work after all, it fails, and no
checkpoint is harmed: what it was about to commit can't be committed any more.`,
		Annotations: exits(exitDamage, exitInUse, exitInterrupted),
		Example: `  imgbackup leases
  imgbackup leases --settle 0f8fad5b-d9cb-469f-a165-70867728950e
  imgbackup leases --settle 0f8fad5b-d9cb-469f-a165-70867728950e --images-gone
  imgbackup leases --break 0f8fad5b-d9cb-469f-a165-70867728950e`,
		Args: takes(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.settle == "" && (cmd.Flags().Changed("settle") || (o.run.ImagesGone || o.run.Ended)) {
				return usage.Errorf("which run? give --settle UUID; imgbackup leases lists them")
			}
			if o.broken != "" && o.settle != "" {
				return usage.Errorf("--settle breaks the run's lease, too: leave --break out")
			}
			if o.broken == "" && cmd.Flags().Changed("break") {
				return usage.Errorf("which run? give --break UUID; imgbackup leases lists them")
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
			if o.broken != "" {
				return a.breakLease(cmd.Context(), repo, runs, o.broken)
			}
			unchanged, err := repo.Unchanged(cmd.Context(), leasesOf(runs))
			if err != nil {
				return err
			}
			return errors.Join(append([]error{a.printRuns(runs, unchanged)}, unusable...)...)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.settle, "settle", "", "end what the run with this `UUID` left behind")
	f.StringVar(&o.broken, "break", "", "break the lease of the run with this `UUID`: it can commit nothing more")
	f.BoolVar(&o.run.ImagesGone, "images-gone", false, "images that are not there are gone for good")
	f.BoolVar(&o.run.Ended, "ended", false, "the run has ended, though that cannot be seen from here")
	completes(cmd, map[string]completer{"settle": a.runs, "break": a.runs})
	return cmd
}

// runNamed is the run with a uuid.
func runNamed(runs []*chain.Run, uuid string) (*chain.Run, error) {
	i := slices.IndexFunc(runs, func(r *chain.Run) bool { return r.UUID == uuid })
	if i < 0 {
		return nil, fmt.Errorf("no run %s has a lease or an intent in the repository (imgbackup leases lists them)", oneLine(uuid))
	}
	return runs[i], nil
}

func leasesOf(runs []*chain.Run) []*chain.Lease {
	var all []*chain.Lease
	for _, r := range runs {
		if r.Lease != nil {
			all = append(all, r.Lease)
		}
	}
	return all
}

// brokenJSON is what leases --break --json prints.
type brokenJSON struct {
	UUID   string `json:"uuid"`
	Broken bool   `json:"broken"`
}

func (a *app) breakLease(ctx context.Context, repo *chain.Repository, runs []*chain.Run, uuid string) error {
	run, err := runNamed(runs, uuid)
	switch {
	case err != nil:
		return err
	case run.Lease == nil:
		return fmt.Errorf("run %s has no lease that could be broken (--settle ends what it left)", run.UUID)
	case run.Fate == chain.FateAlive:
		return &backup.AliveError{UUID: run.UUID, Why: fmt.Sprintf("its process %d is at work on this machine: end it", run.Process.PID)}
	}
	if err := repo.CheckWritable(); err != nil {
		return err
	}
	if err := repo.BreakLease(ctx, run.Lease); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(brokenJSON{run.UUID, true})
	}
	w := &checkedWriter{w: a.out}
	w.printf("broke the lease of run %s\n", run.UUID)
	if len(run.Intents) > 0 {
		w.printf("its intent stays: %s\n", whatToDo(run))
	}
	return w.err
}

func (a *app) settleRun(ctx context.Context, repo *chain.Repository, runs []*chain.Run, o leasesOptions) error {
	run, err := runNamed(runs, o.settle)
	if err != nil {
		return err
	}
	if o.run.Cloner, err = a.cloner(backup.CloneNever); err != nil {
		return err
	}
	done, err := backup.SettleRun(ctx, repo, run, o.run)
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
	UUID        string     `json:"uuid"`
	Host        chain.Host `json:"host"`
	PID         int        `json:"pid"`
	Since       *time.Time `json:"since"` // null: nothing of the run can be read
	Purpose     string     `json:"purpose,omitempty"`
	State       string     `json:"state"`        // alive, ended, unknown
	ThisMachine bool       `json:"this_machine"` // it runs, or ran, here
	Lease       bool       `json:"lease"`
	// Of the lease: the last sign of life, by the writer's clock; what it is about to
	// commit; and for how many seconds a prune here has seen it unchanged.
	RenewedAt *time.Time   `json:"renewed_at,omitempty"`
	Announces *commitJSON  `json:"announces,omitempty"`
	Unchanged int64        `json:"unchanged_seconds,omitempty"`
	Broken    bool         `json:"broken,omitempty"`
	Intents   []intentJSON `json:"intents"`
	Damaged   []string     `json:"damaged,omitempty"` // keys of what can't be read
	WhatToDo  string       `json:"what_to_do"`
}

type commitJSON struct {
	Domain     string `json:"domain"`
	Checkpoint string `json:"checkpoint"`
}

type intentJSON struct {
	Domain         string            `json:"domain"`
	Checkpoint     string            `json:"checkpoint"`
	CheckpointUUID string            `json:"checkpoint_uuid"`
	Complete       bool              `json:"complete,omitempty"` // its checkpoint was made
	Images         []intentImageJSON `json:"images"`
	Clones         []string          `json:"clones,omitempty"` // copies that are to be released, by name
}

type intentImageJSON struct {
	Disk   string `json:"disk"`
	Path   string `json:"path"`
	Bitmap string `json:"bitmap"` // that the run adds
	// Retire are old bitmaps that the next run removes.
	Retire []string `json:"retire,omitempty"`
}

func viewRun(r *chain.Run, unchanged map[string]time.Duration) runJSON {
	v := runJSON{
		UUID: r.UUID, Host: r.Process.Host, PID: r.Process.PID, State: r.Fate.String(), ThisMachine: r.Here,
		Lease: r.Lease != nil, Intents: []intentJSON{}, Damaged: r.Damaged, WhatToDo: whatToDo(r),
	}
	if !r.Since.IsZero() {
		v.Since = &r.Since
	}
	if r.Lease != nil {
		l := r.Lease
		v.Purpose, v.RenewedAt, v.Broken = l.Purpose, &l.RenewedAt, l.Broken
		v.Unchanged = int64(unchanged[l.Key()] / time.Second)
		if l.Announces != nil {
			v.Announces = &commitJSON{l.Announces.Domain, l.Announces.Checkpoint}
		}
	}
	for _, in := range r.Intents {
		images := []intentImageJSON{}
		for _, im := range in.Images {
			images = append(images, intentImageJSON{im.Disk, im.Path, im.Add, im.Retire})
		}
		var copies []string
		for _, k := range in.Clones {
			copies = append(copies, k.Name)
		}
		v.Intents = append(v.Intents, intentJSON{in.Domain, in.Checkpoint, in.CheckpointUUID, in.Complete, images, copies})
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
		return "to do: nothing, it is at work"
	case r.Fate == chain.FateEnded && next == "":
		return "the next backup removes it; or " + settle
	case r.Fate == chain.FateEnded, r.Here && next != "":
		return next + settle
	case r.Here:
		return "if no container of this machine is at it: " + settle + " --ended" + orPrune(r)
	case len(r.Intents) > 0:
		return "if its host is gone for good: " + settle + ", where the images are (--images-gone, if they are gone, too)"
	case len(r.Damaged) > 0 && r.Lease == nil:
		return "if its host is gone, or is not at work: " + settle
	}
	return "if its host is gone for good, or the run has certainly ended: " + settle + orPrune(r)
}

// orPrune is what ends a lease that nobody renews, also where nobody can tell what became of its writer.
func orPrune(r *chain.Run) string {
	switch {
	case r.Lease == nil:
		return ""
	case r.Lease.Rotates:
		return ", with an admin's key"
	}
	return "; or a prune that has seen it unchanged for a day (by this machine's clock) ends it"
}

func (a *app) printRuns(runs []*chain.Run, unchanged map[string]time.Duration) error {
	if a.json {
		views := []runJSON{}
		for _, r := range runs {
			views = append(views, viewRun(r, unchanged))
		}
		return a.printJSON(map[string]any{"leases": views})
	}
	w := &checkedWriter{w: a.out}
	for _, r := range runs {
		printRun(w, viewRun(r, unchanged))
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
	if v.Announces != nil {
		w.printf("  what it commits in the end: checkpoint %s of domain %s\n", v.Announces.Checkpoint, oneLine(v.Announces.Domain))
	}
	if v.RenewedAt != nil && v.State != chain.FateEnded.String() {
		w.printf("  last sign of life %s, by its host's clock\n", v.RenewedAt.Format(time.RFC3339))
	}
	if v.Unchanged > 0 {
		w.printf("  a prune on this machine has seen its lease unchanged for %s\n", time.Duration(v.Unchanged)*time.Second)
	}
	for _, in := range v.Intents {
		printIntent(w, in)
	}
	for _, key := range v.Damaged {
		w.printf("  damaged: %s\n", key)
	}
	w.printf("  %s\n  %s\n", stateWords(v), v.WhatToDo)
}

func printIntent(w *checkedWriter, in intentJSON) {
	w.printf("  intent: domain %s, checkpoint %s", oneLine(in.Domain), in.Checkpoint)
	if in.Complete {
		w.printf(", which was made: what is left of it is still to be removed")
	}
	w.printf("\n")
	for _, im := range in.Images {
		bitmaps := im.Retire
		if !in.Complete {
			bitmaps = []string{im.Bitmap}
		}
		for _, name := range bitmaps {
			w.printf("    %s  %s  bitmap %s\n", im.Disk, oneLine(im.Path), oneLine(name))
		}
	}
	for _, name := range in.Clones {
		w.printf("    copy %s, to be released\n", name)
	}
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
