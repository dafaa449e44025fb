// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/request"
)

// takes is one of cobra's checks of the number of arguments, whose error counts as
// wrong usage and says in words what the command takes.
func takes(check cobra.PositionalArgs, names string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if check(cmd, args) != nil {
			return usage.Errorf("%s takes %s, and got %s", strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" "), names, count(len(args), "argument"))
		}
		return nil
	}
}

// count is a number of things.
func count(n int, thing string) string { return plural(n, thing, thing+"s") }

// plural is count of a thing whose plural has another end.
func plural(n int, thing, things string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %s", n, things)
}

// givenDomain is the DOMAIN of a command that may do without; empty: none.
func givenDomain(args []string) (string, error) {
	if len(args) == 0 {
		return "", nil
	}
	if args[0] == "" {
		return "", usage.Errorf("the domain's name is empty")
	}
	return args[0], nil
}

// exclude refuses a flag beside others that say the same in another way.
func exclude(f *pflag.FlagSet, flag string, others ...string) error {
	for _, other := range others {
		if f.Changed(flag) && f.Changed(other) {
			return usage.Errorf("--%s and --%s exclude each other", flag, other)
		}
	}
	return nil
}

// notEmpty refuses flags that are given without a name in them, as by an unset
// variable of a script.
func notEmpty(f *pflag.FlagSet, names ...string) error {
	for _, name := range names {
		if f.Changed(name) && f.Lookup(name).Value.String() == "" {
			return usage.Errorf("--%s: the name is empty", name)
		}
	}
	return nil
}

// checkpointUsage describes a flag that names a checkpoint, which may be an argument.
const checkpointUsage = "`NAME` of the checkpoint (default, and latest: the newest)"

// addXMLFlags adds those that name files of libvirt's XML.
func addXMLFlags(f *pflag.FlagSet, files *request.Files) {
	addDomainXMLFlag(f, files)
	f.StringVar(&files.Backup, "backup-xml", "", "what to do, as a domainbackup in this `FILE` (-: stdin)")
	addCheckpointXMLFlag(f, files)
}

func addDomainXMLFlag(f *pflag.FlagSet, files *request.Files) {
	f.StringVar(&files.Domain, "domain-xml", "", "the domain's definition in this `FILE` (-: stdin)")
	f.StringVar(&files.Pools, "pools", request.Pools, "definitions of storage pools in this `DIR`")
	f.StringVar(&files.TPMState, "tpm-state", "", "the state of the domain's TPM is in this `PATH` (default: where libvirt has it)")
	f.StringVar(&files.Saved, "save-dir", request.Saved, "memory that libvirt has saved is in this `DIR`")
	f.BoolVar(&files.AllowSaved, "allow-managed-save", false, "archive the saved memory of a domain with it; else such a domain is refused")
}

func addCheckpointXMLFlag(f *pflag.FlagSet, files *request.Files) {
	f.StringVar(&files.Checkpoint, "checkpoint-xml", "", "the checkpoint, as a domaincheckpoint in this `FILE` (-: stdin)")
}

// addImageFlags adds those of all commands that open images of a domain.
func addImageFlags(f *pflag.FlagSet, req *backup.Request) {
	f.BoolVar(&req.NoLock, "no-lock", false, "go without QEMU's image locks, where the file system has none")
	f.BoolVar(&req.TrustRawData, "trust-raw-data-file", false, "nothing but QEMU writes to raw data files of qcow2 images: go by their bitmaps")
	f.StringArrayVar(&req.AllowDirs, "allow-dir", nil, "allow backing and data files in this `DIR`, too; may be repeated")
}

func addAdoptFlag(f *pflag.FlagSet, req *backup.Request) {
	f.BoolVar(&req.Adopt, "adopt", false, "take over a domain that another host began")
}

// imageFlags are those of commands that look into the images of a checkpoint.
type imageFlags struct {
	disks  []string
	engine backup.Request
}

func (i *imageFlags) add(f *pflag.FlagSet) {
	f.StringArrayVar(&i.disks, "disk", nil, "`TARGET=PATH`,format=qcow2; may be repeated")
	addImageFlags(f, &i.engine)
}

// request returns the request for the disks that were named.
func (i *imageFlags) request(domain string) (req backup.Request, err error) {
	req = i.engine
	req.Domain, req.Tool, req.TempDir = domain, tool(), spool.TempDir()
	req.Disks, err = request.Images(i.disks)
	return req, err
}
