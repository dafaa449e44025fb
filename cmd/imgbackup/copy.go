// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/transfer"
	"github.com/imgbackup/imgbackup/internal/usage"
)

func (a *app) copyCommand() *cobra.Command {
	var (
		to     string
		dryRun bool
	)
	cmd := &cobra.Command{
		Use:        "copy --to REPO2 [DOMAIN…]",
		Short:      "Copy checkpoints to another repository",
		SuggestFor: []string{"sync", "mirror", "clone"},
		Long: `copy copies the checkpoints of the named domains (all by default) to another
repository that init has made: only what is missing there, and every object
proven by its digest on the way. A copy that was cut off is gone on with by
running it again.`,
		Annotations: exits(exitDamage, exitTaken, exitInterrupted),
		Example: `  imgbackup copy -r /backup --to /mnt/usb/backup
  imgbackup copy -r /backup --to /mnt/usb/backup web --dry-run`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if to == "" {
				return usage.Errorf("where to? give --to REPO2")
			}
			for _, d := range args {
				if err := chain.CheckDomain(d); err != nil {
					return usage.Wrap(err)
				}
			}
			from, err := a.openRepo(cmd.Context())
			if err != nil {
				return err
			}
			other := *a
			other.repoFlag = to
			dest, err := other.openRepo(cmd.Context())
			if err != nil {
				return err
			}
			bar := a.newBar("copying")
			result, err := transfer.Copy(cmd.Context(), from, dest, transfer.Options{
				Domains: args, DryRun: dryRun, TempDir: tempDir(), Progress: func(done, total int64) {
					bar.set(done, total)
					a.events.set("copying", done, total)
				},
				Note: func(msg string) {
					bar.clear()
					a.note(msg)
				},
			})
			bar.clear()
			if err != nil {
				return sayWhich(cmd.Context(), from, err)
			}
			return a.printCopy(result)
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "the repository to copy to: a `REPO2` like --repo")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be copied, and write nothing")
	return a.addProgress(cmd)
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
		w.printf("%s %s %s: %d objects, %s\n", verb, c.Domain, c.Name, c.Objects, size(c.Bytes))
	}
	w.printf("%s %d checkpoints, %d objects, %s; %d checkpoints were there already\n",
		verb, len(r.Checkpoints), r.Objects, size(r.Bytes), r.Present)
	return w.err
}
