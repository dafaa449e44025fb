// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manCommand writes the man pages, which are made from the commands' own help.
func (a *app) manCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:     "man DIR",
		Short:   "Write the man pages into a folder",
		Long:    "man writes a page for each command into a folder that is there." + exitHelp(),
		Example: "  imgbackup man /usr/local/share/man/man1",
		Hidden:  true,
		Args:    takes(cobra.ExactArgs(1), "one DIR"),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := a.checkOutside("man", args[0]); err != nil {
				return err
			}
			// A fixed date keeps the generated files the same from day to day.
			date := time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)
			root.DisableAutoGenTag = true
			return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "imgbackup", Date: &date}, args[0])
		},
	}
}
