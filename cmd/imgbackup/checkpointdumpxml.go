// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/checkpoint"
	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/request"
)

// checkpointDumpXMLOptions are the command line of checkpoint dumpxml.
type checkpointDumpXMLOptions struct {
	domain, checkpoint string

	images   imageFlags
	size     bool
	noDomain bool
}

func (a *app) checkpointDumpXMLCommand() *cobra.Command {
	var o checkpointDumpXMLOptions
	cmd := &cobra.Command{
		Use:        "dumpxml DOMAIN [CHECKPOINT]",
		Short:      "Print a checkpoint's definition as libvirt's XML",
		SuggestFor: []string{"show", "dump", "xml"},
		Long: `dumpxml prints a checkpoint (the newest by default) as a domaincheckpoint of libvirt. With --size it looks
into the images and tells for each disk how many bytes changed since, where that
can be told. The domain's definition is part of it, if the checkpoint was made with
one. checkpoint redefine reads it again, and so does virsh checkpoint-create --redefine,
if the checkpoint was made with --libvirt-name.`,
		Annotations: exits(exitDamage, exitInUse, exitInterrupted),
		Example: `  imgbackup checkpoint dumpxml web monday
  imgbackup checkpoint dumpxml web monday --size`,
		Args: takes(cobra.RangeArgs(1, 2), "a DOMAIN and perhaps a CHECKPOINT"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if err := notEmpty(cmd.Flags(), "checkpoint"); err != nil {
				return err
			}
			o.domain = args[0]
			if o.checkpoint, err = checkpointArg(args, 1, o.checkpoint); err != nil {
				return err
			}
			return a.dumpCheckpoint(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.checkpoint, "checkpoint", "", checkpointUsage)
	o.images.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.size, "size", false, "tell how much changed in each disk since")
	cmd.Flags().BoolVar(&o.noDomain, "no-domain", false, "leave the domain's definition out")
	return cmd
}

func (a *app) dumpCheckpoint(ctx context.Context, o checkpointDumpXMLOptions) error {
	req, err := o.images.request(o.domain)
	if err != nil {
		return err
	}
	repo, m, err := a.openCheckpoint(ctx, o.domain, o.checkpoint)
	if err != nil {
		return err
	}
	ms, err := allManifests(ctx, repo, o.domain)
	if err != nil {
		return err
	}
	c := viewCheckpointXML(m, chain.BuildTree(ms).Find(m.UUID))
	if o.size || len(req.Disks) > 0 {
		if len(req.Disks) == 0 {
			req.Disks = request.RecordedAt(m, ms)
		}
		sizes, err := checkpoint.Sizes(ctx, repo, req, backup.Hooks{Note: a.note})
		if err != nil {
			return err
		}
		a.fillSizes(c, m, sizes)
	}
	if f, ok := m.File(chain.RoleDomainXML); ok && !o.noDomain {
		var xml bytes.Buffer
		if err := archive.CopyFile(ctx, repo.Store, f.FileRef, &xml); err != nil {
			return err
		}
		if err := c.SetDomain(xml.Bytes()); err != nil {
			return fmt.Errorf("the domain's definition: %w", err)
		}
	}
	_, err = a.out.Write(c.Format())
	return err
}

// viewCheckpointXML describes a checkpoint in libvirt's terms.
func viewCheckpointXML(m *chain.Manifest, node *chain.Node) *dom.Checkpoint {
	c := &dom.Checkpoint{Name: m.Checkpoint, Description: m.Description, Created: m.Created.Unix()}
	if node != nil {
		node = node.Parent
	}
	for node != nil && forLibvirt(m) && !forLibvirt(node.Manifest) {
		node = node.Parent // which libvirt can't have
	}
	if node != nil {
		c.Parent = node.Manifest.Checkpoint
	}
	for i := range m.Disks {
		d := &m.Disks[i]
		c.Disks = append(c.Disks, dom.CheckpointDisk{Name: d.Name, Record: d.Bitmap != "", Bitmap: cmp.Or(d.LibvirtBitmap, d.Bitmap)})
	}
	return c
}

// forLibvirt reports whether libvirt can have the checkpoint: its bitmaps have its name.
func forLibvirt(m *chain.Manifest) bool {
	return slices.ContainsFunc(m.Disks, func(d chain.Disk) bool { return cmp.Or(d.LibvirtBitmap, d.Bitmap) == m.Checkpoint })
}

func (a *app) fillSizes(c *dom.Checkpoint, m *chain.Manifest, sizes []checkpoint.Size) {
	for i := range c.Disks {
		d := &c.Disks[i]
		for _, s := range sizes {
			if s.Checkpoint.UUID != m.UUID || s.Disk != d.Name || !d.Record {
				continue
			}
			if s.Problem != "" {
				a.note(fmt.Sprintf("what changed in %s since %s cannot be determined: %s", s.Disk, m.Checkpoint, s.Problem))
				continue
			}
			d.Size = &s.Bytes
		}
	}
}
