// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/internal/usage"
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
			if fi, err := os.Stat(args[0]); err != nil || !fi.IsDir() {
				return usage.Errorf("man: %s is no folder that is there", args[0])
			}
			// A fixed date keeps the generated files the same from day to day.
			date := time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)
			root.DisableAutoGenTag = true
			inFull(root)
			if err := writeConfigPage(args[0]); err != nil {
				return err
			}
			return writePages(root, args[0], doc.GenManHeader{Section: "1", Source: "imgbackup", Date: &date})
		},
	}
}

// writePages writes the page of a command, and those of the commands under it.
func writePages(cmd *cobra.Command, dir string, header doc.GenManHeader) error {
	header.Title = strings.ToUpper(strings.ReplaceAll(cmd.CommandPath(), " ", "-"))
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() && !c.IsAdditionalHelpTopicCommand() {
			if err := writePages(c, dir, header); err != nil {
				return err
			}
		}
	}
	var page bytes.Buffer
	if err := doc.GenMan(cmd, &header, &page); err != nil {
		return err
	}
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".1"
	return os.WriteFile(filepath.Join(dir, name), []byte(flagsInFull(cmd, page.String())), 0o644)
}

// flagLead is how a flag begins in a page: its names, and its default as a value.
var flagLead = regexp.MustCompile(`(?m)^(\\fB(?:-\w\\fP, \\fB)?--([a-z0-9-]+)\\fP)\[?=.*$`)

// flagsInFull names the values of flags in the place of their defaults.
func flagsInFull(cmd *cobra.Command, page string) string {
	return flagLead.ReplaceAllStringFunc(page, func(line string) string {
		m := flagLead.FindStringSubmatch(line)
		f := cmd.Flag(m[2])
		if f == nil || f.Value.Type() == "bool" {
			return m[1]
		}
		value, _ := pflag.UnquoteUsage(f)
		return m[1] + "=\\fI" + value + "\\fP"
	})
}

// inFull makes of each command's help the text of its man page.
func inFull(cmd *cobra.Command) {
	text := strings.TrimSpace(cmd.Long)
	if more := cmd.Annotations[manualKey]; more != "" {
		text += "\n\n" + more
	}
	text += "\n\n# EXIT STATUS\n\n" + exitTableOf(cmd)
	if !cmd.HasParent() {
		text += "\n\n# ENVIRONMENT\n\n" + environment
	}
	if !cmd.HasParent() || readsDomains(cmd) {
		text += "\n\n# FILES\n\n" + manFiles
	}
	cmd.Long = text
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.DefValue != "" && f.DefValue != "[]" && f.DefValue != "0" && f.DefValue != "0s" && f.Value.Type() != "bool" &&
			!strings.Contains(f.Usage, "default") {
			f.Usage += " (default: " + f.DefValue + ")"
		}
	})
	for _, c := range cmd.Commands() {
		inFull(c)
	}
}

// readsDomains reports whether a command reads the definitions of domains.
func readsDomains(cmd *cobra.Command) bool { return cmd.Flags().Lookup("domain-xml") != nil }

// manFiles is a part of the program's own man page, and of those of commands that read
// what libvirt keeps.
const manFiles = `**/etc/libvirt/qemu/DOMAIN.xml**: a domain's definition, where no disk is named.

**/etc/libvirt/storage/POOL.xml**: where the volumes of a storage pool lie (--pools).

**/var/lib/libvirt/swtpm/UUID**: the state of a domain's TPM (--tpm-state).

**/var/lib/libvirt/qemu/save/DOMAIN.save**: the memory of a saved domain (--save-dir).

**~/.lima/NAME/lima.yaml**, **~/.lima/_disks/DISK/datadisk**: of lima:NAME; LIMA_HOME is another folder than ~/.lima.

**/etc/pve/qemu-server/VMID.conf**, **/etc/pve/storage.cfg**: of pve:VMID.

**/etc/machine-id**: which host this is (--host-id).

**/etc/imgbackup/config.yaml**, **/etc/imgbackup/conf.d/*.yaml**: what is backed up to where, and when
(--config).

**~/.aws/config**, **~/.aws/credentials**: settings of a repository in S3.

**~/.cache/imgbackup**: what this host remembers of repositories.`

// environment is a part of the program's own man page.
const environment = `**IMGBACKUP_REPO**: the repository where no --repo names one.

**IMGBACKUP_CONFIG**: the configuration's file where no --config names one.

**IMGBACKUP_HOST_ID**: what this host is known by where no --host-id says so.

**IMGBACKUP_IDENTITY**: the file with the key of an encrypted repository, where no --identity names one.

**IMGBACKUP_CACHE**: the folder of what this host remembers of repositories, or **off**; else imgbackup in
**XDG_CACHE_HOME** or ~/.cache. It may be removed at any time.

**IMGBACKUP_CACHE_SIZE**: how large it may become, as 10GiB, which is the default.

**IMGBACKUP_CONFINE**: **off** lets qemu-img and qemu-nbd run unconfined; see docs/security.md.

**TMPDIR**: where what does not fit into memory goes; else /var/tmp.

**AWS_ENDPOINT_URL_S3**, **AWS_ACCESS_KEY_ID**, **AWS_SECRET_ACCESS_KEY**, **AWS_PROFILE** and others: as the AWS
tools read them, for a repository in S3.`
