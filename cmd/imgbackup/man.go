// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manCommand writes the man pages, which are made from the commands' own help.
func (a *app) manCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:         "man DIR",
		Short:       "Write the man pages into a folder",
		Long:        "man writes a page for each command into a folder that is there.",
		Annotations: exits(),
		Example:     "  imgbackup man /usr/local/share/man/man1",
		Hidden:      true,
		Args:        takes(cobra.ExactArgs(1), "one DIR"),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := a.checkOutside("man", args[0]); err != nil {
				return err
			}
			// A fixed date keeps the generated files the same from day to day.
			date := time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)
			root.DisableAutoGenTag = true
			inFull(root)
			return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "imgbackup", Date: &date}, args[0])
		},
	}
}

// inFull makes of each command's help the text of its man page.
func inFull(cmd *cobra.Command) {
	text := strings.TrimSpace(cmd.Long)
	if more := cmd.Annotations[manualKey]; more != "" {
		text += "\n\n" + more
	}
	text += "\n\n# EXIT STATUS\n\n" + exitTable(exitsOf(cmd))
	if !cmd.HasParent() {
		text += "\n\n# ENVIRONMENT\n\n" + environment
	}
	cmd.Long = text
	for _, c := range cmd.Commands() {
		inFull(c)
	}
}

// environment is a part of the program's own man page.
const environment = `**IMGBACKUP_REPO**: the repository where no --repo names one.

**IMGBACKUP_HOST_ID**: what this host is known by where no --host-id says so.

**IMGBACKUP_CACHE**: the folder of what this host remembers of repositories, or **off**; else imgbackup in
**XDG_CACHE_HOME** or ~/.cache. It may be removed at any time.

**IMGBACKUP_CACHE_SIZE**: how large it may become, as 10GiB, which is the default.

**TMPDIR**: where what does not fit into memory goes; else /var/tmp.

**AWS_ENDPOINT_URL_S3**, **AWS_ACCESS_KEY_ID**, **AWS_SECRET_ACCESS_KEY**, **AWS_PROFILE** and others: as the AWS
tools read them, for a repository in S3.`
