// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/checkpoint"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/request"
)

// changesOptions are the command line of changes.
type changesOptions struct {
	named []string // by --checkpoint

	domain string
	from   string // empty: the newest
	to     string // empty: what changed until now, in the images

	images  imageFlags
	extents bool
}

func (a *app) changesCommand() *cobra.Command {
	var o changesOptions
	cmd := &cobra.Command{
		Use:        "changes DOMAIN [FROM [TO]]",
		Short:      "Show what changed between two checkpoints, or since one",
		SuggestFor: []string{"diff"},
		Long: `changes tells where each disk may differ between two checkpoints, in bytes of the
virtual disk: between archives by what they hold, else by the bitmaps as they
were recorded. It never leaves out a change; it may name ranges that were written
with the same bytes.

Without TO it tells what changed since FROM (the newest by default) in the images, as an incremental
backup would take it: those of --disk, or else where the checkpoints found them.`,
		Annotations: exits(exitDamage, exitNotTrusted, exitInUse, exitInterrupted),
		Example: `  imgbackup changes web monday tuesday
  imgbackup changes web monday --map
  imgbackup changes web monday tuesday --map --json`,
		Args: takes(cobra.RangeArgs(1, 3), "a DOMAIN, perhaps a checkpoint FROM, and perhaps one TO"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.complete(args); err != nil {
				return err
			}
			if o.to == "" {
				return a.changesSince(cmd.Context(), o)
			}
			return a.changesBetween(cmd.Context(), o)
		},
	}
	cmd.Flags().StringArrayVar(&o.named, "checkpoint", nil, "`NAME` of FROM (default: the newest); given again, of TO")
	o.images.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.extents, "map", false, "list the ranges")
	return cmd
}

// complete takes the checkpoints, as arguments or by flag.
func (o *changesOptions) complete(args []string) error {
	o.domain = args[0]
	names := args[1:]
	switch {
	case len(o.named) > 0 && len(names) > 0:
		return usage.Errorf("the checkpoints are named as arguments or by --checkpoint")
	case len(o.named) > 2:
		return usage.Errorf("--checkpoint is given at most twice")
	case len(o.named) > 0:
		names = o.named
	}
	for i, to := range []*string{&o.from, &o.to} {
		if len(names) <= i {
			break
		}
		if *to = names[i]; *to == "" {
			return usage.Errorf("the checkpoint's name is empty")
		}
	}
	return nil
}

func (a *app) changesBetween(ctx context.Context, o changesOptions) error {
	if len(o.images.disks) > 0 {
		return usage.Errorf("--disk is for the changes until now: between two checkpoints no image is opened")
	}
	repo, from, err := a.openCheckpoint(ctx, o.domain, o.from)
	if err == nil {
		err = a.restrict(confine.Self{}, reads(repo))
	}
	if err != nil {
		return err
	}
	to, err := find(ctx, repo, o.domain, o.to, anyKind)
	if err != nil {
		return err
	}
	if err := a.noteAlone(ctx, repo, from, to); err != nil {
		return err
	}
	all, err := checkpoint.ChangesBetween(ctx, repo, o.domain, from.Checkpoint, to.Checkpoint)
	if err != nil {
		return err
	}
	return a.printChanges(all, o, from.Checkpoint, to.Checkpoint)
}

func (a *app) changesSince(ctx context.Context, o changesOptions) error {
	req, err := o.images.request(o.domain)
	if err != nil {
		return err
	}
	repo, from, err := a.openCheckpoint(ctx, o.domain, o.from)
	if err != nil {
		return err
	}
	if len(req.Disks) == 0 {
		ms, err := allManifests(ctx, repo, o.domain)
		if err != nil {
			return err
		}
		req.Disks = request.RecordedAt(from, ms)
	}
	return checkpoint.ChangesSince(ctx, repo, req, from.Checkpoint, backup.Hooks{Note: a.note}, func(all []checkpoint.Changes) error {
		return a.printChanges(all, o, from.Checkpoint, "")
	})
}

func (a *app) printChanges(all []checkpoint.Changes, o changesOptions, from, to string) error {
	p := changesPrinter{a: a, extents: o.extents, from: from}
	return p.print(all, to)
}

// noteAlone tells of the disks that one of two checkpoints has and the other has
// not: all of them is a change, and is not among those that are shown. A disk that
// was renamed is not alone.
func (a *app) noteAlone(ctx context.Context, repo *chain.Repository, from, to *chain.Manifest) error {
	var history []*chain.Manifest
	for _, pair := range [][2]*chain.Manifest{{from, to}, {to, from}} {
		has, not := pair[0], pair[1]
		for i := range has.Disks {
			disk := has.Disks[i].Name
			if _, both := not.Disk(disk); both {
				continue
			}
			if history == nil {
				var err error
				if history, _, err = repo.Manifests(ctx, has.Domain); err != nil {
					return err
				}
			}
			if _, both := chain.StatesOfBoth(history, has, disk, not); !both {
				a.note(fmt.Sprintf("disk %s: only checkpoint %s has it", disk, has.Checkpoint))
			}
		}
	}
	return nil
}

// changesPrinter writes changes as they are found: there may be very many.
type changesPrinter struct {
	a       *app
	extents bool
	from    string
}

func (p *changesPrinter) print(all []checkpoint.Changes, to string) error {
	buf := bufio.NewWriter(p.a.out)
	w := &checkedWriter{w: buf}
	print := p.text
	if p.a.json {
		print = p.jsonDisk
		w.printf("{\n  \"from\": %s,\n  \"to\": %s,\n  \"disks\": [", quoted(p.from), quoted(to))
	}
	for i, c := range all {
		if err := print(w, i, c); err != nil {
			return err
		}
	}
	if p.a.json {
		w.printf("\n  ]\n}\n")
	}
	if w.err != nil {
		return w.err
	}
	return buf.Flush()
}

// quoted is s as JSON; null if it is empty.
func quoted(s string) string {
	if s == "" {
		return "null"
	}
	text, err := json.Marshal(s)
	if err != nil {
		return "null" // no string fails
	}
	return string(text)
}

func (p *changesPrinter) text(w *checkedWriter, _ int, c checkpoint.Changes) error {
	if p.extents {
		err := eachRun(c.Runs, func(_ int, r bitmapstore.Run) {
			w.printf("%s\t%d\t%d\n", c.Disk, r.Start, r.Len())
		})
		if err != nil {
			return err
		}
		return w.err
	}
	bytes, err := c.Runs.Bytes()
	if err != nil {
		return err
	}
	w.printf("%s  %s changed of %s (%s)\n", c.Disk, size(bytes), size(c.Size), c.How)
	return w.err
}

func (p *changesPrinter) jsonDisk(w *checkedWriter, i int, c checkpoint.Changes) error {
	if i > 0 {
		w.printf(",")
	}
	w.printf("\n    {\n      \"disk\": %s,\n      \"target\": %s,\n      \"virtual_size\": %d,\n      \"by\": %s", quoted(c.Disk), quoted(c.Disk), c.Size, quoted(c.How))
	var total int64
	if p.extents {
		w.printf(",\n      \"extents\": [")
	}
	err := eachRun(c.Runs, func(i int, r bitmapstore.Run) {
		total += r.Len()
		if !p.extents {
			return
		}
		if i > 0 {
			w.printf(",")
		}
		w.printf("\n        {\"start\": %d, \"length\": %d}", r.Start, r.Len())
	})
	if p.extents {
		w.printf("\n      ]")
	}
	w.printf(",\n      \"changed_bytes\": %d\n    }", total)
	if err != nil {
		return err
	}
	return w.err
}

func eachRun(runs bitmapstore.Runs, f func(i int, r bitmapstore.Run)) error {
	i := 0
	for r, err := range runs {
		if err != nil {
			return err
		}
		f(i, r)
		i++
	}
	return nil
}
