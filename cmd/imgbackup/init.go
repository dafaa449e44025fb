// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/chain"
)

func (a *app) initCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "Make a new, empty repository",
		Long: `init makes a repository in a new or empty folder, which --repo or the environment
variable IMGBACKUP_REPO names.` + exitHelp(),
		Example: "  imgbackup init -r /backup",
		Args:    exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := a.store(true)
			if err != nil {
				return err
			}
			repo, err := chain.Init(cmd.Context(), store)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"repository": a.repoFlag, "id": repo.Config.ID, "version": repo.Config.Version})
			}
			_, err = fmt.Fprintf(a.out, "made repository %s in %s\n", repo.Config.ID, a.repoFlag)
			return err
		},
	}
}
