// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/prune"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/request"
)

// pruneOptions are the command line of prune.
type pruneOptions struct {
	dryRun, takeOver    bool
	purge               bool
	maxUnused, moveMost string
}

// pruneWait is for how long a prune waits for writers: for one that is about to end.
const pruneWait = 5 * time.Second

func (a *app) pruneCommand() *cobra.Command {
	var o pruneOptions
	cmd := &cobra.Command{
		Use:        "prune [--dry-run]",
		Short:      "Remove from a repository what no checkpoint needs",
		SuggestFor: []string{"gc", "clean", "cleanup", "compact", "purge", "vacuum"},
		Long: `prune deletes the packs, maps and other objects that no checkpoint needs: what forgotten checkpoints
alone used, and what killed backups have left. Packs of which too much is unused are repacked: their
chunks in use move to new packs. Indexes are merged when there are many.

It may run beside everything else. What a running backup may still need waits for that to end: the
next prune deletes it. A prune that was cut off is completed by the next one.

With object lock, it keeps on what checkpoints need when it is done, as lock does.`,
		Annotations: exits(exitDamage, exitTaken, exitInterrupted),
		Example: `  imgbackup prune --dry-run
  imgbackup prune
  imgbackup prune --max-unused 10G --repack-max 200G`,
		Args: takes(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts, err := o.options()
			if err != nil {
				return err
			}
			if o.purge && o.dryRun {
				return usage.Errorf("--purge-versions and --dry-run exclude each other")
			}
			repo, err := a.openRepo(cmd.Context())
			if err == nil {
				err = a.restrictPrune(cmd.Context(), repo, opts)
			}
			if err != nil {
				return err
			}
			err = a.pruneWhole(cmd.Context(), repo, opts, o.purge)
			if err == nil && !o.dryRun {
				err = a.lockAfter(cmd.Context(), repo)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.dryRun, "dry-run", false, "say what would be won, and write nothing")
	f.BoolVar(&o.purge, "purge-versions", false, "in a bucket with versions, remove for good what was deleted or replaced, and\nnobody needs, where no object lock keeps it")
	f.BoolVar(&o.takeOver, "take-over", false, "go on for a prune that has ended, though that cannot be seen from here")
	o.addFlags(f)
	return a.addProgress(cmd)
}

// addFlags adds those of everything that prunes.
func (o *pruneOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.maxUnused, "max-unused", "5%", "repack until at most `HOW MUCH` of what is kept is unused: 5%, 10G, or unlimited")
	f.StringVar(&o.moveMost, "repack-max", "", "move at most this `SIZE` of chunks to new packs")
}

func (o *pruneOptions) options() (prune.Options, error) {
	p := prune.Options{DryRun: o.dryRun, TakeOver: o.takeOver, Wait: pruneWait, TempDir: spool.TempDir()}
	var err error
	if p.MaxUnused, err = prune.ParseLimit(o.maxUnused, request.ParseSize); err != nil {
		return p, usage.Errorf("--max-unused %q: %w", o.maxUnused, err)
	}
	if o.moveMost != "" {
		if p.RepackMax, err = request.ParseSize(o.moveMost); err != nil || p.RepackMax == 0 {
			return p, usage.Errorf("--repack-max %q: want a size, as 200G", o.moveMost)
		}
	}
	return p, nil
}

// restrictPrune restricts this process. What can be seen of writers in other namespaces is
// looked at before, so that their leases hold nothing up: afterwards it can't be.
func (a *app) restrictPrune(ctx context.Context, repo *chain.Repository, o prune.Options) error {
	if !a.alone || o.DryRun {
		return a.restrict(confine.Self{}, writes(repo))
	}
	if err := repo.CleanLeases(ctx); err != nil {
		return err
	}
	return a.restrict(confine.Self{}, writes(repo))
}

// prune prunes, and tells of it.
func (a *app) prune(ctx context.Context, repo *chain.Repository, o prune.Options) error {
	return a.pruneAs(ctx, repo, o, func(r *prune.Result) any { return r })
}

// prunedJSON is what prune --json prints.
type prunedJSON struct {
	*prune.Result
	Purged *prune.Purged `json:"purged,omitempty"`
}

// pruneWhole prunes, and then removes versions, if that is asked for.
func (a *app) pruneWhole(ctx context.Context, repo *chain.Repository, o prune.Options, purge bool) error {
	if !purge {
		return a.prune(ctx, repo, o)
	}
	var pruned *prune.Result
	quiet := *a
	quiet.out = io.Discard
	if !a.json {
		quiet.out = a.out
	}
	if err := quiet.pruneAs(ctx, repo, o, func(r *prune.Result) any { pruned = r; return r }); err != nil {
		return err
	}
	bar := a.newBar("purging")
	p, err := prune.Purge(ctx, repo, func(done, total int64) {
		bar.set(done, total)
		a.events.set("purging", done, total)
	})
	bar.clear()
	switch {
	case p == nil:
		return err
	case a.json:
		return errors.Join(a.printJSON(prunedJSON{pruned, p}), err)
	}
	w := &checkedWriter{w: a.out}
	w.printf("removed %s for good: %s\n", count(int(p.Versions), "version"), size(p.Bytes))
	if p.Kept > 0 {
		w.printf("%s (%s) that nobody needs are still kept by object lock", count(int(p.Kept), "version"), size(p.KeptBytes))
		if p.Next != nil {
			w.printf("; the first may go from %s on", p.Next.Local().Format(time.DateOnly))
		}
		w.printf("\n")
	}
	return errors.Join(w.err, err)
}

// pruneAs prunes; view is what --json prints of it.
func (a *app) pruneAs(ctx context.Context, repo *chain.Repository, o prune.Options, view func(*prune.Result) any) error {
	bar := a.newBar("pruning")
	o.Progress = func(phase string, done, total int64) {
		bar.set(done, total)
		a.events.set(phase, done, total)
	}
	o.Note = func(msg string) {
		bar.clear()
		a.note(msg)
	}
	w := &checkedWriter{w: a.out}
	if !a.json {
		o.Planned = func(s *prune.Summary) {
			bar.clear()
			printSummary(w, s, o.DryRun)
		}
	}
	result, err := prune.Run(ctx, repo, o)
	bar.clear()
	switch {
	case result == nil, errors.As(err, new(*chain.RoleError)) && !a.json: // nothing was begun
	case a.json:
		err = errors.Join(a.printJSON(view(result)), err)
	default:
		printPruned(w, result)
		err = errors.Join(w.err, err)
	}
	var stands *chain.MarkStandsError
	if errors.As(err, &stands) {
		err = fmt.Errorf("%w (if it has ended, and that cannot be seen from here: imgbackup prune --take-over)", err)
	}
	var listing *chain.ListingError
	if errors.As(err, &listing) {
		err = damageFound{err}
	}
	return err
}

// printSummary says what will be won.
func printSummary(w *checkedWriter, s *prune.Summary, dry bool) {
	will := "will be"
	if dry {
		will = "would be"
	}
	for _, x := range s.Remove {
		w.printf("%s unneeded: %s, %s\n", x.Kind, count(int(x.Objects), "object"), size(x.Bytes))
	}
	t := s.Remove.Total()
	w.printf("%s of %s %s deleted; %s and what they need stay: %s\n", size(t.Bytes), count(int(t.Objects), "object"), will,
		count(s.Checkpoints, "checkpoint"), size(s.Kept.Total().Bytes))
	if r := s.Repack; r.Packs > 0 {
		w.printf("%s of %s %s repacked: %s move to new packs, about %s are freed\n",
			count(int(r.Packs), "pack"), size(r.Bytes), will, size(r.Moves), size(r.Frees))
	}
	if s.Repack.Unused > 0 {
		w.printf("%s stay unused in packs that are partly used\n", size(s.Repack.Unused))
	}
	if m := s.Indexes; m.From > 0 {
		w.printf("%d indexes %s merged\n", m.From, will)
	}
}

// printPruned says what was won.
func printPruned(w *checkedWriter, r *prune.Result) {
	if r.DryRun {
		return
	}
	if t := r.Resumed.Total(); t.Objects > 0 {
		w.printf("an earlier prune was completed: %s, %s deleted\n", count(int(t.Objects), "object"), size(t.Bytes))
	}
	for _, x := range r.Removed {
		w.printf("%s deleted: %s, %s\n", x.Kind, count(int(x.Objects), "object"), size(x.Bytes))
	}
	if p := r.Repack; p.Packs > 0 {
		w.printf("repacked %s of %s: %s moved to new packs\n", count(int(p.Packs), "pack"), size(p.Bytes), size(p.Moves))
	}
	if m := r.Indexes; m.From > 0 {
		w.printf("merged %d indexes into %d\n", m.From, m.To)
	}
	if len(r.Waiting) > 0 {
		var names []string
		for _, x := range r.Waiting {
			names = append(names, strings.TrimSpace(oneLine(x.Purpose)+" on "+oneLine(x.Host)))
		}
		t := r.Left.Total()
		w.printf("%s of %s wait for: %s; the next prune goes on (imgbackup leases tells which of them have ended, and what to do)\n", size(t.Bytes), count(int(t.Objects), "object"), strings.Join(names, ", "))
		return
	}
	if r.VersionsKept {
		w.printf("removed %s; the bucket keeps versions, so that they take their space until those are removed (prune --purge-versions)\n",
			size(r.Removed.Total().Bytes+r.Resumed.Total().Bytes))
		return
	}
	w.printf("freed %s\n", size(r.Freed))
}
