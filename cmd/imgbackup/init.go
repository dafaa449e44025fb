// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore/open"
)

func (a *app) initCommand() *cobra.Command {
	var o chain.InitOptions
	var shared string
	var enc encryptOptions
	var locks lockFlags
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a new, empty repository",
		Long: `init makes a repository in a new or empty folder, or in a bucket of an S3 store
that exists, which --repo or the environment variable IMGBACKUP_REPO names. An
S3 store is tried first: it must be able to create an object only if there is none
(If-None-Match: *), to read back what was written, and to check checksums.

With --encrypt all that is stored is encrypted, and signed by who stores it. Who has no key reads
nothing, and nobody can help who has lost all of them. --hide-names also keeps the names of domains,
checkpoints and hosts out of the keys of objects, where they would be seen.`,
		Annotations: exits(exitKey),
		Example:     "  imgbackup init -r /backup\n  imgbackup init -r s3://vm-backups/host1\n  imgbackup init -r /backup --encrypt --recipient age1…",
		Args:        takes(cobra.ExactArgs(0), "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if shared != "" && shared != "group" {
				return usage.Errorf("--shared is group, not %q", shared)
			}
			var err error
			if o.Lock, err = locks.lock(); err != nil {
				return err
			}
			if err := enc.complete(a, cmd.Flags()); err != nil {
				return err
			}
			done, err := a.encrypting(cmd.Context(), &enc, &o)
			if err != nil {
				return err
			}
			store, err := a.store(open.Options{Create: true, Shared: shared == "group"})
			if err != nil {
				return done(err)
			}
			repo, err := chain.Init(cmd.Context(), store, o)
			if err != nil {
				return done(fmt.Errorf("%s: %w", a.repoFlag, err))
			}
			if err := done(nil); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(initJSON{a.repoFlag, repo.Config.ID, repo.Config.Version})
			}
			_, err = fmt.Fprintf(a.out, "made repository %s in %s\n", repo.Config.ID, a.repoFlag)
			return err
		},
	}
	cmd.Flags().BoolVar(&o.SingleWriter, "single-writer", false, "accept a store without conditional writes, or a folder without\nhard links: only one program at a time will ever write to this\nrepository")
	cmd.Flags().StringVar(&shared, "shared", "", "`group`: the members of the folder's group may read and write the\nrepository (files 0660, folders 2770); else only who made it may")
	enc.add(cmd.Flags())
	locks.add(cmd.Flags())
	return cmd
}

// initJSON is what init --json prints.
type initJSON struct {
	Repository string `json:"repository"` // as it was named
	ID         string `json:"id"`
	Version    int    `json:"version"` // of the format
}
