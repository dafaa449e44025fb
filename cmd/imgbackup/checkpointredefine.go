// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/checkpoint"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/request"
)

func (a *app) checkpointRedefineCommand() *cobra.Command {
	var o redefineOptions
	cmd := &cobra.Command{
		Use:   "redefine {DOMAIN FILE | [DOMAIN] --adopt FILE… | [DOMAIN] --all-of DIR}",
		Short: "Put a checkpoint's definition on record from libvirt's XML",
		Long: `redefine reads a domaincheckpoint, as checkpoint dumpxml prints it, and puts the
definition back into the repository, after it was removed with --metadata. Every
bitmap that it names is looked for in the images: it must be there, sound, and
record. The images are those of --disk, or of --domain-xml, or those of the domain
in the XML, or else where other checkpoints found them. A FILE of - is standard input. A checkpoint
that is on record already is described anew, as libvirt does it, if its bitmaps are
the same and stand every check; of an archive only the description can be another.

With --adopt or --all-of the checkpoints are libvirt's (or virtnbdbackup's), made while
the VM ran: their bitmaps are taken as they are named. export, backup --target and
changes can be incremental since them, and say what vouches for them; no archive builds
on one, and no bitmap of theirs is ever removed unless that is asked for by name.

What was not recorded when a bitmap was made can't tell later that it lies: of what
happened before a definition was put on record, nothing testifies.`,
		Annotations: exits(exitDamage, exitInUse, exitTaken, exitInterrupted),
		Example: `  imgbackup checkpoint redefine web monday.xml --disk vda=/vm/web.qcow2,format=qcow2
  imgbackup checkpoint redefine --repo /backup web - <monday.xml
  imgbackup checkpoint redefine web --all-of /var/lib/libvirt/qemu/checkpoint/web --domain-xml web.xml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.adopts() {
				return a.adoptCheckpoints(cmd.Context(), o, args)
			}
			if err := takes(cobra.ExactArgs(2), "a DOMAIN and a FILE")(cmd, args); err != nil {
				return err
			}
			if o.xml.Domain != "" {
				return usage.Errorf("--domain-xml belongs to --adopt and --all-of: --disk says where an image is")
			}
			return a.redefineCheckpoint(cmd.Context(), args[0], args[1], o.images)
		},
	}
	o.addFlags(cmd.Flags())
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
