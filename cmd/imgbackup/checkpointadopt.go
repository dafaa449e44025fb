// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/checkpoint"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/request"
)

// redefineOptions are the command line of checkpoint redefine.
type redefineOptions struct {
	images imageFlags
	adopt  []string // files
	folder string
	xml    request.Files
}

// adopts reports whether checkpoints of another program are put on record.
func (o *redefineOptions) adopts() bool { return len(o.adopt) > 0 || o.folder != "" }

func (o *redefineOptions) addFlags(f *pflag.FlagSet) {
	o.images.add(f)
	f.StringArrayVar(&o.adopt, "adopt", nil, "put a checkpoint on record that libvirt made, as in this `FILE`; more may follow")
	f.StringVar(&o.folder, "all-of", "", "put all on record that libvirt has in this `DIR`")
	f.StringVar(&o.xml.Domain, "domain-xml", "", "the domain's definition in this `FILE` (-: stdin), which tells where the images are")
	f.StringVar(&o.xml.Pools, "pools", request.Pools, "definitions of storage pools in this `DIR`")
}

// adoption is what the command line says; args are DOMAIN and perhaps more files.
func (o *redefineOptions) adoption(args []string) (request.Adoption, error) {
	a := request.Adoption{Files: o.adopt, Folder: o.folder, XML: o.xml, Disks: o.images.disks, Engine: o.images.engine}
	a.Engine.Tool, a.Engine.TempDir = tool(), spool.TempDir()
	var err error
	if a.Domain, err = givenDomain(args); err != nil {
		return a, err
	}
	if len(args) > 1 {
		if len(o.adopt) == 0 {
			return a, usage.Errorf("--all-of takes the files of its folder: name others with --adopt FILE")
		}
		a.Files = append(a.Files, args[1:]...)
	}
	return a, nil
}

// adoptCheckpoints puts one checkpoint after the other on record. One that can't be does
// not keep others back: those that followed it follow what it followed.
func (a *app) adoptCheckpoints(ctx context.Context, o redefineOptions, args []string) error {
	adoption, err := o.adoption(args)
	if err != nil {
		return err
	}
	all, err := adoption.Read(a.in)
	if err != nil {
		return err
	}
	repo, err := a.openRepo(ctx)
	if err != nil {
		return err
	}
	var made []*chain.Manifest
	var failed []error
	instead := make(map[string]string) // of a checkpoint that could not be adopted: what it followed
	for _, r := range all {
		def := &r.Definition
		for gone, ok := instead[def.Parent]; ok; gone, ok = instead[def.Parent] {
			a.note(fmt.Sprintf("checkpoint %s followed %s, which is not adopted", def.Name, def.Parent))
			def.Parent = gone
		}
		m, err := a.adopt(ctx, repo, r)
		if ctx.Err() != nil {
			return errors.Join(a.printAdopted(made), err)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("checkpoint %s: %w", def.Name, err))
			instead[def.Name] = def.Parent
			continue
		}
		made = append(made, m)
	}
	return errors.Join(append([]error{a.printAdopted(made)}, failed...)...)
}

func (a *app) adopt(ctx context.Context, repo *chain.Repository, r *request.Redefinition) (*chain.Manifest, error) {
	ms, _, err := repo.Manifests(ctx, r.Request.Domain)
	if err != nil {
		return nil, err
	}
	if err := r.FindDisks(request.Recorded(ms)); err != nil {
		return nil, err
	}
	return checkpoint.Adopt(ctx, repo, r.Request, r.Definition, backup.Hooks{Note: a.note})
}

// printAdopted tells what was put on record.
func (a *app) printAdopted(all []*chain.Manifest) error {
	if a.json {
		out := []checkpointJSON{}
		for _, m := range all {
			out = append(out, viewCheckpoint(m))
		}
		return a.printJSON(map[string]any{"adopted": out})
	}
	for _, m := range all {
		if err := a.printCheckpoint(m, "adopted"); err != nil {
			return err
		}
	}
	return nil
}

// describeRecorded is a checkpoint's bitmap in a disk, for people.
func describeRecorded(d *chain.Disk) string {
	text := fmt.Sprintf("%s (granularity %s)", oneLine(d.Bitmap), size(d.Granularity))
	if d.LibvirtBitmap != "" {
		text += ", and " + d.LibvirtBitmap + " for libvirt"
	}
	if d.Adopted != nil {
		text += ", another program's, adopted " + d.Adopted.Format(time.RFC3339)
	}
	return text
}
