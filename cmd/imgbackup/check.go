// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/internal/usage"
)

func (a *app) checkCommand() *cobra.Command {
	var readData bool
	cmd := &cobra.Command{
		Use:        "check [DOMAIN]",
		Short:      "Check that a repository is whole",
		SuggestFor: []string{"verify", "fsck", "scrub"},
		Long: `check reads every manifest, map and bitmap, proves their digests, and looks
whether every pack that a map names is there with the right length. With
--read-data it reads every pack, too, and decodes every chunk.

It ends with exit status 3 when it finds damage, and says what is affected.`,
		Annotations: exits(exitDamage, exitInterrupted),
		Example: `  imgbackup check
  imgbackup check --read-data web`,
		Args: takes(cobra.MaximumNArgs(1), "at most one DOMAIN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, d := range args {
				if err := chain.CheckDomain(d); err != nil {
					return usage.Wrap(err)
				}
			}
			repo, err := a.openRepo(cmd.Context())
			if err != nil {
				return err
			}
			bar := a.newBar("checking")
			report, err := check.Run(cmd.Context(), repo, check.Options{
				ReadData: readData, Domains: args,
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
	cmd.Flags().BoolVar(&readData, "read-data", false, "read and decode every pack, too")
	return a.addProgress(cmd)
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
		if r.UnreadPacks > 0 {
			w.printf("the data in %s (%s) was not read: --read-data reads it\n", count(r.UnreadPacks, "pack"), size(r.UnreadBytes))
		}
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
		return damageFound{fmt.Errorf("%d damaged or missing objects", n)}
	}
	return nil
}
