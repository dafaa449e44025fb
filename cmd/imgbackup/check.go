// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/drill/plan"
	"github.com/imgbackup/imgbackup/internal/usage"
)

func (a *app) checkCommand() *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:        "check [DOMAIN]",
		Short:      "Check that a repository is whole",
		SuggestFor: []string{"verify", "fsck", "scrub"},
		Long: `check reads every manifest, map and bitmap, proves their digests, and looks
whether every pack that a map names is there with the right length. With
--read-data it reads every pack, too, and decodes every chunk; or a part of them: what was proven longest
ago (5%, 10G), a fixed part of the whole (N/M), or what was not proven for some time. What is proven is
remembered in the repository, where the credentials allow that.

With --no-decode the packs that are read are proven by the SHA-256 of their bytes alone, which takes a
fraction of the time: a pack that was decoded before, and has the same bytes still, is as good as it was.
It can't see what a faulty writer made wrong from the start: what was never decoded does not count as proven.

It ends with exit status 3 when it finds damage, and says what is affected.`,
		Annotations: exits(exitDamage, exitInterrupted),
		Example: `  imgbackup check
  imgbackup check --read-data web
  imgbackup check --read-data-subset 5%
  imgbackup check --read-data-subset $(date +%-j)/366
  imgbackup check --unproven-since 90d`,
		Args: takes(cobra.MaximumNArgs(1), "at most one DOMAIN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, d := range args {
				if err := chain.CheckDomain(d); err != nil {
					return usage.Wrap(err)
				}
			}
			subset, err := o.choose()
			if err != nil {
				return err
			}
			repo, err := a.openRepo(cmd.Context())
			if err == nil {
				err = a.restrict(confine.Self{}, writes(repo))
			}
			if err != nil {
				return err
			}
			bar := a.newBar("checking")
			report, err := check.Run(cmd.Context(), repo, check.Options{
				ReadData: o.readData || subset != check.Subset{}, NoDecode: o.noDecode, Subset: subset, Domains: args,
				Progress: func(e check.Event) {
					bar.set(e.Done, e.Total)
					a.events.set(e.Phase, e.Done, e.Total)
				},
			})
			bar.clear()
			if err != nil {
				// What has been found until there is damage all the same.
				if len(report.Findings) > 0 {
					found := a.tellReport(report)
					if cmd.Context().Err() == nil {
						err = errors.Join(err, found)
					}
				}
				return sayWhich(cmd.Context(), repo, err)
			}
			if len(args) == 1 && report.Checkpoints == 0 && len(report.Findings) == 0 {
				return noDomain(cmd.Context(), repo, args[0])
			}
			return a.tellReport(report)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.readData, "read-data", false, "read and decode every pack, too")
	f.StringVar(&o.subset, "read-data-subset", "", "read a `PART` of the packs: 5%, 10G, or N/M")
	f.BoolVar(&o.noDecode, "no-decode", false, "prove packs that are read by their bytes alone")
	f.StringVar(&o.unproven, "unproven-since", "", "read what was not proven for this `TIME`, as 90d or 36h")
	return a.addProgress(cmd)
}

// checkOptions are the flags of check.
type checkOptions struct {
	readData, noDecode bool
	subset, unproven   string
}

// choose is the part of the data that is to be read.
func (o *checkOptions) choose() (s check.Subset, err error) {
	switch {
	case o.readData && o.subset+o.unproven != "", o.subset != "" && o.unproven != "":
		return s, usage.Errorf("--read-data, --read-data-subset and --unproven-since exclude each other")
	case o.noDecode && !o.readData && o.subset+o.unproven == "":
		return s, usage.Errorf("--no-decode is for what --read-data, --read-data-subset or --unproven-since reads")
	case o.subset != "":
		if s, err = check.ParseSubset(o.subset); err != nil {
			return s, usage.Errorf("--read-data-subset %w", err)
		}
	case o.unproven != "":
		age, err := plan.ParseDuration(o.unproven)
		if err != nil {
			return s, usage.Errorf("--unproven-since %w", err)
		}
		s.Before = time.Now().Add(-age)
	}
	return s, nil
}

// printProofs tells when the data was last read.
func printProofs(w *checkedWriter, p *check.Proofs) {
	if p == nil || p.Packs+p.Never == 0 {
		return
	}
	if p.Oldest != nil {
		w.printf("of the data, %s were read and proven since %s", size(p.Bytes), p.Oldest.Local().Format("2006-01-02 15:04"))
		if p.Never > 0 {
			w.printf(", %s not, or are not any more what was proven", size(p.Unread))
		}
		w.printf("\n")
	}
}

// tellReport is an error if there is damage.
func (a *app) tellReport(r *check.Report) error {
	for _, f := range r.Findings {
		a.events.tell(event{Event: "damage", Damage: &damage{Object: f.Object, Affects: f.Affects}, Error: f.What})
	}
	return a.printReport(r)
}

func (a *app) printReport(r *check.Report) error {
	w := &checkedWriter{w: a.out}
	if a.json {
		w.err = a.printJSON(r)
	} else {
		for _, f := range r.Findings {
			w.printf("DAMAGED %s: %s\n", f.Object, oneLine(f.What))
			for _, what := range f.Affects {
				w.printf("  affects %s\n", what)
			}
		}
		for _, n := range r.Notes {
			w.printf("note: %s\n", oneLine(n))
		}
		w.printf("checked %s, %s, %s\n", count(r.Checkpoints, "checkpoint"), count(r.Objects, "object"), size(r.Bytes-r.UnreadBytes))
		for _, s := range r.Signed {
			w.printf("signed by %s: %s\n", s.By, count(s.Checkpoints, "checkpoint"))
		}
		for _, l := range r.Lost {
			w.printf("known to be lost: %s/%s/%s: %s in %s\n", l.Domain, l.Checkpoint, l.Disk, size(l.Bytes), count(l.Ranges, "range"))
		}
		if r.UnreadPacks > 0 {
			w.printf("the data in %s (%s) was not read: --read-data reads it\n", count(r.UnreadPacks, "pack"), size(r.UnreadBytes))
		}
		if r.NoDecode {
			w.printf("packs were proven by their bytes, and not decoded\n")
		}
		printProofs(w, r.Proofs)
		switch {
		case !r.Complete:
			w.printf("the check is not complete\n")
		case len(r.Findings) == 0:
			w.printf("no damage found\n")
		}
	}
	if w.err != nil {
		return w.err
	}
	if n := len(r.Findings); n > 0 {
		return damageFound{fmt.Errorf("%s", count(n, "damaged or missing object"))}
	}
	return nil
}
