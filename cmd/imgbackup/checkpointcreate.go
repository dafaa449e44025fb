// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/checkpoint"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/request"
)

const checkpointCreateHelp = `create adds a bitmap to every disk, all of them for the same instant, and
records the checkpoint in the repository. Nothing of the disks is stored:
backups to files and over NBD can be incremental since it.

A disk that can hold no bitmap fails it.

--domain-xml and --checkpoint-xml take libvirt's XML: the disks are then those of
the definition that can be written to, as far as the checkpoint's XML lists them;
--disk vdb,backup=no leaves one out. Where no disk is named, they are found as backup
finds them.`

// checkpointCreateOptions are the command line of checkpoint create.
type checkpointCreateOptions struct{ request.Checkpoint }

func (a *app) checkpointCreateCommand() *cobra.Command {
	var o checkpointCreateOptions
	cmd := &cobra.Command{
		Use:         "create [DOMAIN] [NAME] [--disk TARGET=PATH,format=qcow2 … | --domain-xml FILE]",
		Short:       "Create a checkpoint without data",
		SuggestFor:  []string{"add", "new"},
		Long:        checkpointCreateHelp,
		Annotations: exits(exitDamage, exitInUse, exitTaken, exitInterrupted),
		Example: `  imgbackup checkpoint create web monday --disk vda=/vm/web.qcow2,format=qcow2
  imgbackup checkpoint create --domain-xml web.xml --checkpoint-xml monday.xml`,
		Args: takes(cobra.MaximumNArgs(2), "a DOMAIN and perhaps a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.complete(cmd.Flags(), args); err != nil {
				return err
			}
			return a.createCheckpoint(cmd.Context(), o)
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *checkpointCreateOptions) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.Disks, "disk", nil, "`TARGET=PATH`,format=qcow2; may be repeated")
	addDomainXMLFlag(f, &o.XML)
	addCheckpointXMLFlag(f, &o.XML)
	f.StringVar(&o.Engine.Checkpoint, "checkpoint", "", "`NAME` of the checkpoint (default: made from the time)")
	f.StringVar(&o.Engine.Description, "description", "", "`TEXT` to keep with the checkpoint")
	f.BoolVar(&o.Engine.LibvirtNames, "libvirt-name", false, "add bitmaps, too, of the checkpoint's name alone, for libvirt")
	addImageFlags(f, &o.Engine)
	addAdoptFlag(f, &o.Engine)
}

// complete takes what is no flag.
func (o *checkpointCreateOptions) complete(f *pflag.FlagSet, args []string) (err error) {
	if err := notEmpty(f, "checkpoint"); err != nil {
		return err
	}
	if o.Domain, err = givenDomain(args); err != nil || len(args) < 2 {
		return err
	}
	o.Engine.Checkpoint, err = checkpointArg(args, 1, o.Engine.Checkpoint)
	return err
}

func (a *app) createCheckpoint(ctx context.Context, o checkpointCreateOptions) error {
	if err := a.takeLast(ctx, &o.Checkpoint, o.Domain); err != nil {
		return err
	}
	o.XML.Managers.Root = a.managersRoot
	req, notes, err := o.Request(a.in)
	a.noteAll(notes)
	if err != nil {
		return err
	}
	req.Tool, req.TempDir = tool(), spool.TempDir()
	repo, err := a.openCached(ctx)
	if err != nil {
		return err
	}
	m, err := checkpoint.Create(ctx, repo, req, backup.Hooks{Note: a.note, Step: a.step})
	if err != nil {
		return err
	}
	return a.printCheckpoint(m, "created")
}
