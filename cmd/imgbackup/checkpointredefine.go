// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/checkpoint"
	"github.com/imgbackup/imgbackup/request"
)

func (a *app) checkpointRedefineCommand() *cobra.Command {
	var images imageFlags
	cmd := &cobra.Command{
		Use:   "redefine DOMAIN FILE",
		Short: "Put back a checkpoint's definition from libvirt's XML",
		Long: `redefine reads a domaincheckpoint, as checkpoint dumpxml prints it, and puts the
definition back into the repository, after it was removed with --metadata. Every
bitmap that it names is looked for in the images: it must be there, sound, and
record. The images are those of --disk, or those of the domain in the XML, or
else where other checkpoints found them. A FILE of - is standard input.

What the first definition had recorded to tell later whether the bitmaps can be
trusted does not come back.`,
		Annotations: exits(exitDamage, exitInUse, exitTaken, exitInterrupted),
		Example: `  imgbackup checkpoint redefine web monday.xml --disk vda=/vm/web.qcow2,format=qcow2
  imgbackup checkpoint redefine --repo /backup web - <monday.xml`,
		Args: takes(cobra.ExactArgs(2), "a DOMAIN and a FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.redefineCheckpoint(cmd.Context(), args[0], args[1], images)
		},
	}
	images.add(cmd.Flags())
	return cmd
}

func (a *app) redefineCheckpoint(ctx context.Context, domain, file string, images imageFlags) error {
	req, err := images.request(domain)
	if err != nil {
		return err
	}
	r, err := request.Redefine(req, file, a.in)
	if err != nil {
		return err
	}
	repo, err := a.openRepo(ctx)
	if err != nil {
		return err
	}
	ms, _, err := repo.Manifests(ctx, domain)
	if err != nil {
		return err
	}
	if err := r.FindDisks(request.Recorded(ms)); err != nil {
		return err
	}
	m, err := checkpoint.Redefine(ctx, repo, r.Request, r.Definition, backup.Hooks{Note: a.note})
	if err != nil {
		return err
	}
	return a.printCheckpoint(m, "redefined")
}
