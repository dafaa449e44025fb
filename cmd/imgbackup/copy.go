// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/forget"
	"github.com/imgbackup/imgbackup/chain/transfer"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// copyOptions are the command line of copy.
type copyOptions struct {
	transfer.Options
	to    string
	keys  keyFlags // of the repository that is copied to
	names []string // domains, or a domain and checkpoints of it
	// rules say what is copied, if there are any.
	rules    forget.Request
	timezone string
}

const copyManual = `Where both repositories have the same keys (init --keys-of) objects are copied as they are stored, for which a
manager's key is enough. Where one is encrypted with other keys, or not at all, all is decrypted and stored anew;
the copy notes what each object was made of, so that the next one makes only what is new. --identity opens both
repositories, if it may be; or --to-identity opens the one that is copied to.`

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
completed by running it again.

Rules as forget has them (--keep-daily 7) say which of each domain's checkpoints are copied: those that forget
would keep. So what is about to be forgotten is not copied; nothing is forgotten, here or there.`,
		Annotations: exits(exitDamage, exitTaken, exitKey, exitInterrupted),
		Example: `  imgbackup copy -r /backup --to /mnt/usb/backup
  imgbackup copy -r /backup --to s3://vm-backups/host1 web monday tuesday
  imgbackup copy -r /backup --to /mnt/usb/backup --newest 3
  imgbackup copy -r /backup --to s3://elsewhere/backup --keep-last 3 --keep-monthly 12
  imgbackup copy -r /backup --to /mnt/usb/backup --read-data
  imgbackup copy -r /backup --identity me.key --to s3://elsewhere/backup --to-identity other.key`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.names = args
			if err := o.complete(cmd.Flags()); err != nil {
				return err
			}
			return a.copy(cmd.Context(), o)
		},
	}
	addManual(cmd, copyManual)
	f := cmd.Flags()
	f.StringVar(&o.to, "to", "", "the repository to copy to: a `REPO2` like --repo")
	f.StringArrayVar(&o.Checkpoints, "checkpoint", nil, "copy only this checkpoint `NAME` of the one DOMAIN; may be repeated")
	o.keys.add(f, "to-", "--to")
	f.IntVar(&o.Newest, "newest", 0, "copy only the newest `N` of each domain")
	f.BoolVar(&o.ReadData, "read-data", false, "read all that the checkpoints there have, too, and bring back what is damaged")
	f.BoolVar(&o.DryRun, "dry-run", false, "say what would be copied, and write nothing")
	section(f, whereTo, "to", "to-identity", "to-passphrase-file")
	section(f, whatIsDone, "read-data", "dry-run")
	section(f, whatIsCopied, "checkpoint", "newest")
	section(f, whatIsCopied, addRules(f, &o.rules.Rules)...)
	f.StringVar(&o.timezone, "timezone", "", zoneUsage)
	section(f, whatIsCopied, "timezone")
	return a.addProgress(cmd)
}

func (o *copyOptions) complete(f *pflag.FlagSet) (err error) {
	if o.to == "" {
		return usage.Errorf("no destination: give --to REPO2")
	}
	if f.Changed("newest") && o.Newest < 1 {
		return usage.Errorf("--newest %d: want a number from 1 on", o.Newest)
	}
	if o.Newest > 0 && len(o.Checkpoints) > 0 {
		return usage.Errorf("--newest and --checkpoint exclude each other")
	}
	if !o.rules.Rules.None() && (o.Newest > 0 || len(o.Checkpoints) > 0) {
		return usage.Errorf("rules, --newest and --checkpoint exclude each other")
	}
	if o.rules.Zone, err = zoneFlag(f, o.timezone); err != nil {
		return err
	}
	o.rules.Now = time.Now()
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
	if len(o.Checkpoints) > 0 && (o.Newest > 0 || !o.rules.Rules.None()) {
		return usage.Errorf("--newest and rules are for all checkpoints of a domain, and of %s some are named", o.names[0])
	}
	return nil
}

// keepRules lets the rules say what is copied. Where they can't, all is.
func (o *copyOptions) keepRules(from *chain.Repository) {
	if o.rules.Rules.None() {
		return
	}
	o.Choose = func(ctx context.Context, domain string) (uuids []string, err error) {
		kept, refused, err := o.rules.Kept(ctx, from, domain)
		switch {
		case err != nil:
			return nil, err
		case refused != nil:
			o.Note(fmt.Sprintf("all checkpoints of %s are copied, since forget would keep them all: %v", domain, refused))
		case len(kept) == 0:
			o.Note("the rules keep nothing of " + domain + ": nothing of it is copied")
		}
		for _, m := range kept {
			uuids = append(uuids, m.UUID)
		}
		return uuids, nil
	}
}

func (a *app) copy(ctx context.Context, o copyOptions) error {
	a.second = true
	from, err := a.openRepo(ctx)
	if err != nil {
		return err
	}
	from = a.beneath(from)
	if err := o.choose(ctx, from); err != nil {
		return err
	}
	dest, err := a.openOther(ctx, o.to, o.keys)
	if err == nil {
		err = a.restrict(confine.Self{}, reads(from), writes(dest))
	}
	if err != nil {
		return err
	}
	if archive.KeysOf(dest.Store) == nil && archive.KeysOf(from.Store) != nil {
		a.note("what is copied to " + o.to + " is not encrypted there")
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
	o.keepRules(from)
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
		w.printf("%s what is known of %s, by which backups trust bitmaps\n", verb, count(r.Forgotten, "forgotten checkpoint"))
	}
	were := "were"
	if r.Present == 1 {
		were = "was"
	}
	w.printf("%s %s, %s, %s; %s %s there already\n", verb, count(len(r.Checkpoints), "checkpoint"), count(r.Objects, "object"),
		size(r.Bytes), count(r.Present, "checkpoint"), were)
	return w.err
}
