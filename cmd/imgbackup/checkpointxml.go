// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/qcow2"
)

func (a *app) checkpointDumpXMLCommand() *cobra.Command {
	var images imageFlags
	var withSize, noDomain bool
	cmd := &cobra.Command{
		Use:   "dumpxml DOMAIN NAME",
		Short: "Print a checkpoint's definition as libvirt's XML",
		Long: `dumpxml prints a checkpoint as a domaincheckpoint of libvirt. With --size it looks
into the images and tells for each disk how many bytes changed since, where that
can be told. The domain's definition is part of it, if the checkpoint was made with
one. checkpoint redefine reads it again.` + exitHelp(exitDamage, exitInUse, exitInterrupted),
		Example: `  imgbackup checkpoint dumpxml web monday
  imgbackup checkpoint dumpxml web monday --size`,
		Args: exactArgs(2, "a DOMAIN and a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, repo, m, err := images.open(a, cmd, args[0], args[1])
			if err != nil {
				return err
			}
			ms, err := a.allManifests(cmd, repo, args[0])
			if err != nil {
				return err
			}
			c := checkpointXML(m, chain.BuildTree(ms).Find(m.UUID))
			if withSize || len(req.Disks) > 0 {
				if len(req.Disks) == 0 {
					req.Disks = disksOf(m, recordedDisks(ms))
				}
				sizes, err := backup.Sizes(cmd.Context(), repo, req, backup.Hooks{Note: a.note})
				if err != nil {
					return err
				}
				a.fillSizes(c, m, sizes)
			}
			if f, ok := m.File(chain.RoleDomainXML); ok && !noDomain {
				var xml bytes.Buffer
				if err := archive.CopyFile(cmd.Context(), repo.Store, f.FileRef, &xml); err != nil {
					return err
				}
				if err := c.SetDomain(xml.Bytes()); err != nil {
					return fmt.Errorf("the domain's definition: %w", err)
				}
			}
			_, err = a.out.Write(c.Format())
			return err
		},
	}
	images.add(cmd)
	cmd.Flags().BoolVar(&withSize, "size", false, "tell how much changed in each disk since")
	cmd.Flags().BoolVar(&noDomain, "no-domain", false, "leave the domain's definition out")
	return cmd
}

// disksOf are those of the requests that the checkpoint has, too.
func disksOf(m *chain.Manifest, all []backup.DiskRequest) []backup.DiskRequest {
	var of []backup.DiskRequest
	for _, d := range all {
		if _, ok := m.Disk(d.Disk); ok {
			of = append(of, d)
		}
	}
	return of
}

// checkpointXML describes a checkpoint in libvirt's terms.
func checkpointXML(m *chain.Manifest, node *chain.Node) *dom.Checkpoint {
	c := &dom.Checkpoint{Name: m.Checkpoint, Description: m.Description, Created: m.Created.Unix()}
	if node != nil && node.Parent != nil {
		c.Parent = node.Parent.Manifest.Checkpoint
	}
	for i := range m.Disks {
		d := &m.Disks[i]
		c.Disks = append(c.Disks, dom.CheckpointDisk{Name: d.Name, Record: d.Bitmap != "", Bitmap: d.Bitmap})
	}
	return c
}

func (a *app) fillSizes(c *dom.Checkpoint, m *chain.Manifest, sizes []backup.CheckpointSize) {
	for i := range c.Disks {
		d := &c.Disks[i]
		for _, s := range sizes {
			if s.Checkpoint.UUID != m.UUID || s.Disk != d.Name || !d.Record {
				continue
			}
			if s.Problem != "" {
				a.note(fmt.Sprintf("what changed in %s since %s cannot be told: %s", s.Disk, m.Checkpoint, s.Problem))
				continue
			}
			d.Size = &s.Bytes
		}
	}
}

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
trusted does not come back.` + exitHelp(exitDamage, exitInUse, exitTaken, exitInterrupted),
		Example: `  imgbackup checkpoint redefine web monday.xml --disk vda=/vm/web.qcow2,format=qcow2
  imgbackup checkpoint redefine --repo /backup web - <monday.xml`,
		Args: exactArgs(2, "a DOMAIN and a FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := images.request(args[0])
			if err != nil {
				return err
			}
			data, err := a.readXMLFile(args[1])
			if err != nil {
				return usageError{err}
			}
			c, err := dom.ParseCheckpoint(data)
			if err != nil {
				return usageError{fmt.Errorf("%s: %w", args[1], err)}
			}
			repo, err := a.openRepo(cmd.Context())
			if err != nil {
				return err
			}
			def, err := definition(c)
			if err != nil {
				return err
			}
			if c.Domain != nil {
				req.DomainUUID = c.Domain.UUID
				req.Files = append(req.Files, backup.FileRequest{Role: chain.RoleDomainXML, Data: c.DomainXML()})
			}
			ms, _, err := repo.Manifests(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if req.Disks, err = disksDefined(c, req.Disks, recordedDisks(ms)); err != nil {
				return err
			}
			m, err := backup.Redefine(cmd.Context(), repo, req, def, backup.Hooks{Note: a.note})
			if err != nil {
				return err
			}
			return a.printCheckpoint(m, "redefined")
		},
	}
	images.add(cmd)
	return cmd
}

// definition is what the XML says of the checkpoint itself.
func definition(c *dom.Checkpoint) (backup.Definition, error) {
	def := backup.Definition{
		Name: c.Name, Description: c.Description, Created: time.Unix(c.Created, 0), Parent: c.Parent,
		Bitmaps: make(map[string]string),
	}
	switch {
	case c.Name == "":
		return def, usageError{errors.New("the XML does not name the checkpoint")}
	case c.Created == 0:
		return def, usageError{errors.New("the XML does not say when the checkpoint was created (creationTime)")}
	}
	for _, d := range c.Disks {
		if d.Record {
			def.Bitmaps[d.Name] = d.Bitmap
		}
	}
	if len(def.Bitmaps) == 0 {
		return def, usageError{errors.New("the XML names no disk with a bitmap")}
	}
	return def, nil
}

// disksDefined finds the image of every disk that has a bitmap in the XML: among
// those that were named, in the domain's definition, or where it was last.
func disksDefined(c *dom.Checkpoint, named, last []backup.DiskRequest) ([]backup.DiskRequest, error) {
	var defined []backup.DiskRequest
	if c.Domain != nil {
		for i := range c.Domain.Disks {
			if d := &c.Domain.Disks[i]; d.Path != "" {
				defined = append(defined, backup.DiskRequest{Disk: d.Target, Path: d.Path, Format: qcow2.Format(d.Format)})
			}
		}
	}
	known := slices.Concat(named, defined, last)
	var all []backup.DiskRequest
	for _, d := range c.Disks {
		if !d.Record {
			continue
		}
		r := backup.DiskRequest{Disk: d.Name}
		if at := slices.IndexFunc(known, func(k backup.DiskRequest) bool { return k.Disk == d.Name }); at >= 0 {
			r = known[at]
		}
		if r.Path == "" {
			return nil, usageError{fmt.Errorf("where is the image of disk %s? give --disk %s=PATH,format=qcow2", d.Name, d.Name)}
		}
		all = append(all, r)
	}
	return all, nil
}
