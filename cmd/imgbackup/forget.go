// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // --timezone where the system has no zones

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/forget"
	"github.com/imgbackup/imgbackup/chain/prune"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/request"
)

const forgetHelp = `forget removes checkpoints from a repository: the named ones of a domain, or, of one domain or several,
all that no rule keeps. Every other checkpoint still restores. What the forgotten ones alone needed stays
until prune deletes it; --prune does both. Nothing is written into images: the next backups remove the
bitmaps of forgotten checkpoints.

A rule as --keep-daily 7 keeps the newest checkpoint of each of the last seven days that have one. Rules are
asked each by itself, and what any of them keeps stays; so does what has the tag "keep". --dry-run says what
would go, and by which rules the others stay.`

const forgetManual = `Weeks are ISO weeks, from Monday on. Days and hours are those of --timezone, or of this system. --keep-within
30d keeps all that are not older than 30 days, counted from the newest checkpoint of the domain, and
--keep-within-daily 1y the newest of each day of the last year; times are written as 1y5m7d2h (years, months,
days, hours; w is weeks). Numbers may be "unlimited".

Rules are about archives. A checkpoint without data takes none's place, and stays until it is named, here or to
checkpoint delete, which also takes its bitmap out of the image. What is newest is the order in which checkpoints
were made: where their times contradict that, a clock was wrong, and rules about times are refused for the
domain. With --all-domains, or several, the others are worked on, and the exit status tells.

In a repository with object lock (init --object-lock) rules are asked only about checkpoints that are older than
the lock, and two days more: younger ones stay, and take no place of older ones.

If the newest checkpoint goes, the next backup may have less to build on. That is said, by --dry-run, too.`

// forgetOptions are the command line of forget.
type forgetOptions struct {
	forget.Request
	names      []string // domains, or a domain and checkpoints of it
	named      []string // by --checkpoint
	allDomains bool
	timezone   string
	dryRun     bool
	prune      bool
	pruning    pruneOptions
}

func (a *app) forgetCommand() *cobra.Command {
	var o forgetOptions
	cmd := &cobra.Command{
		Use:         "forget {DOMAIN CHECKPOINT… | DOMAIN… RULES | --all-domains RULES}",
		Short:       "Remove checkpoints, by name or by rules",
		SuggestFor:  []string{"delete", "remove", "rm", "expire", "retention"},
		Long:        forgetHelp,
		Annotations: exits(exitDamage, exitTaken, exitInterrupted),
		Example: `  imgbackup forget web monday
  imgbackup forget web --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run
  imgbackup forget --all-domains --keep-last 3 --keep-within-daily 30d --prune`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.names = args
			if err := o.complete(cmd.Flags()); err != nil {
				return err
			}
			return a.forget(cmd.Context(), o)
		},
	}
	o.addFlags(cmd.Flags())
	addManual(cmd, forgetManual)
	return a.addProgress(cmd)
}

func (o *forgetOptions) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.named, "checkpoint", nil, "forget this checkpoint `NAME` of the one DOMAIN; may be repeated")
	f.BoolVar(&o.allDomains, "all-domains", false, "apply the rules to every domain of the repository")
	f.BoolVar(&o.dryRun, "dry-run", false, "say what would go and what would stay, and forget nothing")
	section(f, whatIsDone, "checkpoint", "all-domains", "dry-run")
	section(f, whatStays, addRules(f, &o.Rules)...)
	f.StringVar(&o.timezone, "timezone", "", zoneUsage)
	f.BoolVar(&o.AllowEmpty, "allow-empty", false, "rules may leave a domain without any archive")
	section(f, whatStays, "timezone", "allow-empty")
	f.BoolVar(&o.prune, "prune", false, "prune afterwards")
	o.pruning.addFlags(f)
	section(f, whatIsDone, "prune")
}

// complete refuses what makes no sense before anything is opened.
func (o *forgetOptions) complete(f *pflag.FlagSet) (err error) {
	switch {
	case o.allDomains && len(o.names) > 0:
		return usage.Errorf("--all-domains takes every domain: none can be named")
	case !o.allDomains && len(o.names) == 0:
		return usage.Errorf("no domain is named: give a DOMAIN, or --all-domains")
	case len(o.named) > 0 && len(o.names) != 1:
		return usage.Errorf("--checkpoint needs the one DOMAIN it belongs to")
	case o.Rules.None() && slices.ContainsFunc(keepNames(f), f.Changed):
		return usage.Errorf("these rules keep nothing, and 0 is no rule: want one as --keep-daily 7, or the name of a checkpoint")
	case o.Rules.None() && (o.allDomains || len(o.names) < 2 && len(o.named) == 0):
		return usage.Errorf("nothing is forgotten without a rule, as --keep-daily 7, or the name of a checkpoint")
	case !o.Rules.None() && len(o.named) > 0:
		return usage.Errorf("checkpoints are forgotten by name or by rules, not both")
	}
	for _, name := range slices.Concat(o.names, o.named) {
		if name == "" {
			return usage.Errorf("a name is empty, as by a variable that is not set")
		}
	}
	if o.Zone, err = zoneFlag(f, o.timezone); err != nil {
		return err
	}
	o.Now = time.Now()
	if f.Changed("max-unused") || f.Changed("repack-max") {
		if !o.prune {
			return usage.Errorf("--max-unused and --repack-max are for --prune")
		}
	}
	_, err = o.pruning.options()
	return err
}

// keepNames are the flags of rules.
func keepNames(f *pflag.FlagSet) (names []string) {
	f.VisitAll(func(f *pflag.Flag) {
		if strings.HasPrefix(f.Name, "keep-") {
			names = append(names, f.Name)
		}
	})
	return names
}

// choose finds out what the names are: with rules domains, without them a domain and
// checkpoints of it.
func (o *forgetOptions) choose(ctx context.Context, repo *chain.Repository) (err error) {
	known, err := repo.Domains(ctx)
	if err != nil {
		return err
	}
	if o.allDomains {
		o.Domains = known
		return nil
	}
	isDomain := func(name string) bool { return slices.Contains(known, name) }
	o.Domains = o.names
	if o.Rules.None() {
		o.Domains, o.Checkpoints = o.names[:1], slices.Concat(o.names[1:], o.named)
	}
	for i, name := range o.Domains {
		if err := checkNames(name, ""); err != nil {
			return err
		}
		if isDomain(name) {
			continue
		}
		if i > 0 && isDomain(o.names[0]) {
			if _, err := find(ctx, repo, o.names[0], name, anyKind); err == nil {
				return usage.Errorf("%s is a checkpoint of %s, and no domain: checkpoints are forgotten by name or by rules, not both", name, o.names[0])
			}
		}
		return noDomain(ctx, repo, name)
	}
	return o.findCheckpoints(ctx, repo, isDomain)
}

// findCheckpoints puts the newest one's name where latest is asked for, and sees that
// there are those that are named.
func (o *forgetOptions) findCheckpoints(ctx context.Context, repo *chain.Repository, isDomain func(string) bool) error {
	for i, name := range o.Checkpoints {
		if name == request.Latest {
			m, err := find(ctx, repo, o.Domains[0], name, anyKind)
			if err != nil {
				return err
			}
			o.Checkpoints[i] = m.Checkpoint
			continue
		}
		known, err := repo.Checkpoints(ctx, o.Domains[0])
		switch {
		case err != nil:
			return err
		case slices.Contains(known, name):
		case isDomain(name):
			return usage.Errorf("domain %s has no checkpoint %s, which is a domain: of several domains checkpoints are forgotten by rules, as --keep-daily 7", o.Domains[0], name)
		default:
			if err := checkNames(o.Domains[0], name); err != nil {
				return err
			}
			return noCheckpoint(ctx, repo, o.Domains[0], name)
		}
	}
	return nil
}

func (a *app) forget(ctx context.Context, o forgetOptions) error {
	repo, err := a.openCached(ctx)
	if err == nil && !o.prune {
		err = a.restrict(confine.Self{}, writes(repo))
	}
	if err != nil {
		return err
	}
	if err := o.choose(ctx, repo); err != nil {
		return err
	}
	plan, err := forget.Make(ctx, repo, o.Request)
	var empty *forget.EmptyError
	if errors.As(err, &empty) {
		return fmt.Errorf("%w: nothing is forgotten (--allow-empty says that it is meant)", err)
	}
	if err != nil {
		return sayWhich(ctx, repo, err)
	}
	for _, note := range plan.Notes {
		a.note(note)
	}
	keep, gone := plan.Keep, plan.Remove
	if !o.dryRun {
		gone = nil
		err = plan.Run(ctx, repo, func(m *chain.Manifest) {
			i := slices.IndexFunc(plan.Remove, func(d forget.Decision) bool { return d.UUID == m.UUID })
			gone = append(gone, plan.Remove[i])
		})
		slices.SortStableFunc(gone, func(x, y forget.Decision) int {
			return slices.IndexFunc(plan.Remove, func(d forget.Decision) bool { return d.UUID == x.UUID }) -
				slices.IndexFunc(plan.Remove, func(d forget.Decision) bool { return d.UUID == y.UUID })
		})
		keep = plan.Stands(gone)
	}
	refused := errors.Join(plan.Refused...)
	if !o.prune || o.dryRun || err != nil {
		return errors.Join(a.printForgotten(keep, gone, plan.Left, o.dryRun), err, refused)
	}
	return errors.Join(a.pruneAfter(ctx, o, keep, gone, plan.Left), refused)
}

// pruneAfter prunes when checkpoints have been forgotten. (What a dry run would forget is
// there still, so that it can't tell what a prune would win.)
func (a *app) pruneAfter(ctx context.Context, o forgetOptions, keep, gone []forget.Decision, left int) error {
	opts, err := o.pruning.options()
	if err != nil {
		return err
	}
	if !a.json {
		if err := a.printForgotten(keep, gone, left, false); err != nil {
			return err
		}
	}
	repo, err := a.openRepo(ctx) // what a prune goes by is not remembered
	if err == nil {
		err = a.restrictPrune(ctx, repo, opts)
	}
	if err != nil {
		return err
	}
	return a.pruneAs(ctx, repo, opts, func(r *prune.Result) any {
		return forgottenJSON{Keep: viewDecisions(keep), Remove: viewDecisions(gone), Prune: r}
	})
}

// forgottenJSON is what forget --json prints.
type forgottenJSON struct {
	Keep   []decisionJSON `json:"keep"`
	Remove []decisionJSON `json:"remove"`
	Prune  *prune.Result  `json:"prune,omitempty"`
}

type decisionJSON struct {
	Domain     string   `json:"domain"`
	Checkpoint string   `json:"checkpoint"`
	Reasons    []string `json:"reasons"`
}

func viewDecisions(all []forget.Decision) []decisionJSON {
	out := []decisionJSON{}
	for _, d := range all {
		reasons := d.Reasons
		if reasons == nil {
			reasons = []string{}
		}
		out = append(out, decisionJSON{d.Domain, d.Checkpoint, reasons})
	}
	return out
}

// printForgotten says which checkpoints stay and why, and which are gone, or would be; left are
// those of domains of which nothing could be decided.
func (a *app) printForgotten(keep, gone []forget.Decision, left int, dry bool) error {
	if a.json {
		return a.printJSON(forgottenJSON{Keep: viewDecisions(keep), Remove: viewDecisions(gone)})
	}
	verb, total := "forgotten", "forgot"
	if dry {
		verb, total = "would go", "would forget"
	}
	t := &table{out: a.out}
	t.row("DOMAIN", "CHECKPOINT", "CREATED", "", "REASONS")
	all := slices.Concat(keep, gone)
	slices.SortFunc(all, func(x, y forget.Decision) int {
		return cmp.Or(cmp.Compare(x.Domain, y.Domain), cmp.Compare(x.Sequence, y.Sequence), cmp.Compare(x.UUID, y.UUID))
	})
	for _, d := range all {
		what := verb
		if len(d.Reasons) > 0 {
			what = "stays"
		}
		t.row(d.Domain, d.Checkpoint, shortTime(d.Created), what, strings.Join(d.Reasons, ", "))
	}
	w := &checkedWriter{w: a.out}
	err := t.print()
	w.printf("%s %s; %d stay", total, count(len(gone), "checkpoint"), len(keep))
	if left > 0 {
		w.printf(", and %d of domains of which nothing is forgotten", left)
	}
	w.printf("\n")
	return errors.Join(err, w.err)
}

// zoneUsage describes the flag of the zone that rules go by.
const zoneUsage = "the `ZONE` of days and hours, as Europe/Berlin (default: the system's)"

// zoneFlag is the zone that --timezone names, or else the system's.
func zoneFlag(f *pflag.FlagSet, name string) (*time.Location, error) {
	if !f.Changed("timezone") {
		return time.Local, nil
	}
	zone, err := time.LoadLocation(name)
	if err != nil || name == "" {
		return nil, usage.Errorf("--timezone %q: there is no such time zone; want a name as Europe/Berlin or UTC", name)
	}
	return zone, nil
}
