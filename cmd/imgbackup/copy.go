// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/transfer"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// copyOptions are the command line of copy.
type copyOptions struct {
	transfer.Options
	to    string
	names []string // domains, or a domain and checkpoints of it
}

func (a *app) copyCommand() *cobra.Command {
	var o copyOptions
	cmd := &cobra.Command{
		Use:        "copy --to REPO2 [DOMAIN… | DOMAIN CHECKPOINT…]",
		Short:      "Copy checkpoints to another repository",
		SuggestFor: []string{"sync", "mirror", "clone"},
		Long: `copy copies the checkpoints of the named domains (all by default), or the named ones of a domain, to
another repository that init has made: only what is missing there, every object proven by its digest
on the way. What a checkpoint there lacks is brought back, tags that it got later, too; with --read-data what is
damaged there as well. What stays known of forgotten checkpoints goes along.
A checkpoint whose source is damaged stays
behind, named, and the others are copied: the exit status is 3. A copy that was cut off is
completed by running it again.`,
		Annotations: exits(exitDamage, exitTaken, exitInterrupted),
		Example: `  imgbackup copy -r /backup --to /mnt/usb/backup
  imgbackup copy -r /backup --to /mnt/usb/backup web mail --dry-run
  imgbackup copy -r /backup --to s3://vm-backups/host1 web monday tuesday
  imgbackup copy -r /backup --to /mnt/usb/backup --newest 3
  imgbackup copy -r /backup --to /mnt/usb/backup --read-data`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.names = args
			if err := o.complete(cmd.Flags()); err != nil {
				return err
			}
			return a.copy(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.to, "to", "", "the repository to copy to: a `REPO2` like --repo")
	f.StringArrayVar(&o.Checkpoints, "checkpoint", nil, "copy only this checkpoint `NAME` of the one DOMAIN; may be repeated")
	f.IntVar(&o.Newest, "newest", 0, "copy only the newest `N` of each domain")
	f.BoolVar(&o.ReadData, "read-data", false, "read all that the checkpoints there have, too, and bring back what is damaged")
	f.BoolVar(&o.DryRun, "dry-run", false, "say what would be copied, and write nothing")
	return a.addProgress(cmd)
}

func (o *copyOptions) complete(f *pflag.FlagSet) error {
	if o.to == "" {
		return usage.Errorf("no destination: give --to REPO2")
	}
	if f.Changed("newest") && o.Newest < 1 {
		return usage.Errorf("--newest %d: want a number from 1 on", o.Newest)
	}
	if o.Newest > 0 && len(o.Checkpoints) > 0 {
		return usage.Errorf("--newest and --checkpoint exclude each other")
	}
	if len(o.Checkpoints) > 0 && len(o.names) != 1 {
		return usage.Errorf("--checkpoint needs the one DOMAIN it belongs to")
	}
	for _, d := range o.names {
		if err := chain.CheckDomain(d); err != nil {
			return usage.Wrap(err)
		}
	}
	return nil
}

// choose finds out which names are domains: all of them, or the first, and the others
// are checkpoints of it.
func (o *copyOptions) choose(ctx context.Context, from *chain.Repository) error {
	o.Domains = o.names
	if len(o.names) > 1 {
		known, err := from.Domains(ctx)
		if err != nil {
			return err
		}
		isDomain := func(name string) bool { return slices.Contains(known, name) }
		if !isDomain(o.names[0]) {
			return noDomain(ctx, from, o.names[0])
		}
		if !slices.ContainsFunc(o.names[1:], isDomain) {
			o.Domains, o.Checkpoints = o.names[:1], o.names[1:]
		}
	}
	for i, name := range o.Checkpoints {
		m, err := find(ctx, from, o.Domains[0], name, anyKind)
		if err != nil {
			return err
		}
		o.Checkpoints[i] = m.Checkpoint
	}
	if len(o.Checkpoints) > 0 && o.Newest > 0 {
		return usage.Errorf("--newest is for all checkpoints of a domain, and %s names some", o.names[0])
	}
	return nil
}

func (a *app) copy(ctx context.Context, o copyOptions) error {
	a.second = true
	from, err := a.openRepo(ctx)
	if err != nil {
		return err
	}
	if err := o.choose(ctx, from); err != nil {
		return err
	}
	other := *a
	other.repoFlag = o.to
	dest, err := other.openRepo(ctx)
	if err != nil {
		return err
	}
	bar := a.newBar("copying")
	o.TempDir = spool.TempDir()
	o.Progress = func(done, total int64) {
		bar.set(done, total)
		a.events.set("copying", done, total)
	}
	o.Note = func(msg string) {
		bar.clear()
		a.note(msg)
	}
	result, err := transfer.Copy(ctx, from, dest, o.Options)
	bar.clear()
	if result != nil {
		err = errors.Join(a.printCopy(result), err)
	}
	return sayWhich(ctx, from, err)
}

func (a *app) printCopy(r *transfer.Result) error {
	if a.json {
		return a.printJSON(r)
	}
	w := &checkedWriter{w: a.out}
	verb := "copied"
	if r.DryRun {
		verb = "would copy"
	}
	for _, c := range r.Checkpoints {
		w.printf("%s %s %s: %s, %s\n", verb, c.Domain, c.Name, count(c.Objects, "object"), size(c.Bytes))
	}
	for _, c := range r.Healed {
		heal := "brought back what was missing of"
		if r.DryRun {
			heal = "would bring back what is missing of"
		}
		w.printf("%s %s %s: %s, %s\n", heal, c.Domain, c.Name, count(c.Objects, "object"), size(c.Bytes))
	}
	if r.Tagged > 0 {
		w.printf("%s tags of %s\n", verb, count(r.Tagged, "checkpoint"))
	}
	if r.Forgotten > 0 {
		w.printf("%s what %s left\n", verb, count(r.Forgotten, "forgotten checkpoint"))
	}
	were := "were"
	if r.Present == 1 {
		were = "was"
	}
	w.printf("%s %s, %s, %s; %s %s there already\n", verb, count(len(r.Checkpoints), "checkpoint"), count(r.Objects, "object"),
		size(r.Bytes), count(r.Present, "checkpoint"), were)
	return w.err
}
