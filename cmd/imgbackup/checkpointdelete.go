// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/backup/checkpoint"
	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/request"
)

// checkpointDeleteOptions are the command line of checkpoint delete.
type checkpointDeleteOptions struct {
	domain, checkpoint string

	images       imageFlags
	children     bool
	childrenOnly bool
	metadata     bool
	adopted      bool
	dryRun       bool
}

func (a *app) checkpointDeleteCommand() *cobra.Command {
	var o checkpointDeleteOptions
	cmd := &cobra.Command{
		Use:        "delete DOMAIN CHECKPOINT",
		Short:      "Delete a checkpoint and its bitmaps",
		SuggestFor: []string{"rm", "remove", "del"},
		Long: `delete takes a checkpoint's bitmaps out of the images and removes its
definition. No change is lost: every other checkpoint's bitmap records all
writes since it was made. Those that followed the checkpoint follow its parent.

The archive of a checkpoint that a backup made stays and can be restored; only
its bitmaps go, so that no later backup can be incremental since it by bitmap.

The images are looked for where the checkpoint found them, or where --disk says.
All of them are looked at before anything is removed; --dry-run does only that,
and shows what would be. --metadata removes the definition alone and leaves the
bitmaps; checkpoint redefine brings it back. Bitmaps that were adopted from another
program stay in the images, too, unless --adopted-bitmaps says that they go.`,
		Annotations: exits(exitDamage, exitInUse, exitInterrupted),
		Example: `  imgbackup checkpoint delete web monday
  imgbackup checkpoint delete web monday --children --dry-run
  imgbackup checkpoint delete web monday --metadata`,
		Args: takes(cobra.RangeArgs(1, 2), "a DOMAIN and a CHECKPOINT"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			o.domain = args[0]
			if o.checkpoint, err = checkpointArg(args, 1, o.checkpoint); err != nil {
				return err
			}
			if o.checkpoint == "" {
				return usage.Errorf("which checkpoint? give its name, or latest")
			}
			err = errors.Join(exclude(cmd.Flags(), "children", "children-only"), exclude(cmd.Flags(), "metadata", "adopted-bitmaps"))
			if err != nil {
				return err
			}
			return a.deleteCheckpoints(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.checkpoint, "checkpoint", "", "`NAME` of the checkpoint (latest: the newest)")
	o.images.add(cmd.Flags())
	f := cmd.Flags()
	f.BoolVar(&o.children, "children", false, "delete all that follow it, too")
	f.BoolVar(&o.childrenOnly, "children-only", false, "delete all that follow it, and keep it")
	f.BoolVar(&o.metadata, "metadata", false, "remove the definition only; the bitmaps stay in the images")
	f.BoolVar(&o.adopted, "adopted-bitmaps", false, "remove bitmaps, too, that another program made (checkpoint redefine --adopt)")
	f.BoolVar(&o.dryRun, "dry-run", false, "show what would be deleted, and delete nothing")
	return cmd
}

// request is what the engine is asked for.
func (o *checkpointDeleteOptions) request() (checkpoint.DeleteRequest, error) {
	del := checkpoint.DeleteRequest{Domain: o.domain, Checkpoint: o.checkpoint, MetadataOnly: o.metadata, Adopted: o.adopted, Paths: make(map[string]string)}
	switch {
	case o.children:
		del.Scope = checkpoint.WithChildren
	case o.childrenOnly:
		del.Scope = checkpoint.ChildrenOnly
	}
	req, err := o.images.request(o.domain)
	if err != nil {
		return del, err
	}
	del.NoLock = req.NoLock
	for _, d := range req.Disks {
		del.Paths[d.Disk] = d.Path
	}
	return del, checkNames(o.domain, o.checkpoint)
}

func (a *app) deleteCheckpoints(ctx context.Context, o checkpointDeleteOptions) error {
	del, err := o.request()
	if err != nil {
		return err
	}
	repo, err := a.openCached(ctx)
	if err != nil {
		return err
	}
	if del.Checkpoint == request.Latest {
		m, err := find(ctx, repo, del.Domain, del.Checkpoint, anyKind)
		if err != nil {
			return err
		}
		del.Checkpoint = m.Checkpoint
	}
	plan, err := checkpoint.PlanDelete(ctx, repo, del)
	if errors.Is(err, chain.ErrNoCheckpoint) {
		return noCheckpoint(ctx, repo, del.Domain, del.Checkpoint)
	}
	if err != nil {
		return err
	}
	defer plan.Close()
	if err := checkComesBack(plan); err != nil {
		return err
	}
	if o.dryRun {
		return a.printDeletion(plan)
	}
	done, err := plan.Run(ctx, a.note)
	if perr := a.printDeleted(done, del.MetadataOnly); err == nil {
		err = perr
	}
	return err
}

// checkComesBack refuses to delete definitions alone that checkpoint redefine could not
// put back: its bitmaps would stay, and nothing would know them.
func checkComesBack(plan *checkpoint.Deletion) error {
	if !plan.MetadataOnly {
		return nil
	}
	for _, d := range plan.Checkpoints {
		for _, disk := range d.Disks() {
			if err := dom.CheckTarget(disk); err != nil {
				return usage.Errorf("the definition of checkpoint %s could not be put back: %w; without --metadata its bitmaps go, too", d.Checkpoint.Name, err)
			}
		}
	}
	return nil
}

// deletionJSON is what checkpoint delete --dry-run --json prints.
type deletionJSON struct {
	Domain      string       `json:"domain"`
	DryRun      bool         `json:"dry_run"`
	Checkpoints []doomedJSON `json:"checkpoints"` // in the order in which they would go
}

type doomedJSON struct {
	checkpointNames
	UUID    string             `json:"uuid"`
	Kept    bool               `json:"archive_kept"` // only its bitmaps go
	Bitmaps []doomedBitmapJSON `json:"bitmaps"`
	Left    []string           `json:"bitmaps_left,omitempty"`
}

type doomedBitmapJSON struct {
	Disk   string `json:"disk"`
	Path   string `json:"path"`
	Bitmap string `json:"bitmap"`
	Held   bool   `json:"held"` // the image holds it
}

// printDeletion shows what would be deleted.
func (a *app) printDeletion(p *checkpoint.Deletion) error {
	if a.json {
		out := deletionJSON{Domain: p.Domain, DryRun: true, Checkpoints: []doomedJSON{}}
		for _, d := range p.Checkpoints {
			view := doomedJSON{checkpointNames: checkpointNamed(d.Checkpoint.Name), UUID: d.Checkpoint.UUID, Kept: d.KeepsData, Bitmaps: []doomedBitmapJSON{}, Left: d.Left}
			for _, b := range d.Bitmaps {
				view.Bitmaps = append(view.Bitmaps, doomedBitmapJSON{Disk: b.Disk, Path: b.Path, Bitmap: b.Name, Held: b.Held})
			}
			out.Checkpoints = append(out.Checkpoints, view)
		}
		return a.printJSON(out)
	}
	w := &checkedWriter{w: a.out}
	w.printf("Plan for %s (nothing has been deleted)\n", p.Domain)
	if len(p.Checkpoints) == 0 {
		w.printf("  no checkpoint follows\n")
	}
	for _, d := range p.Checkpoints {
		switch {
		case p.MetadataOnly:
			w.printf("  checkpoint %s: its definition would be deleted; its bitmaps stay in the images\n", d.Checkpoint.Name)
		case d.KeepsData:
			w.printf("  checkpoint %s: its bitmaps would be removed; its archive stays\n", d.Checkpoint.Name)
		case len(d.Left) > 0:
			w.printf("  checkpoint %s: its definition would be deleted; its bitmaps, which another program made, stay in the images (--adopted-bitmaps)\n", d.Checkpoint.Name)
		default:
			w.printf("  checkpoint %s would be deleted with its bitmaps\n", d.Checkpoint.Name)
		}
		for _, b := range d.Bitmaps {
			missing := ""
			if !b.Held {
				missing = ", which holds none of this name"
			}
			w.printf("    %s  bitmap %s in %s%s\n", b.Disk, b.Name, oneLine(b.Path), missing)
		}
	}
	return w.err
}

// deletedJSON is one checkpoint as checkpoint delete --json shows it.
type deletedJSON struct {
	checkpointNames
	UUID    string   `json:"uuid"`
	Bitmaps []string `json:"bitmaps_removed_from"`
	Kept    bool     `json:"archive_kept"`
	Left    []string `json:"bitmaps_left,omitempty"` // names: another program made them
}

func (a *app) printDeleted(all []checkpoint.Deleted, metadata bool) error {
	out := []deletedJSON{}
	w := &checkedWriter{w: a.out}
	for _, d := range all {
		out = append(out, deletedJSON{checkpointNamed(d.Checkpoint.Name), d.Checkpoint.UUID, append([]string{}, d.Bitmaps...), d.Kept, d.Left})
		if a.json {
			continue
		}
		switch {
		case metadata:
			w.printf("checkpoint %s deleted; its bitmaps stay in the images\n", d.Checkpoint.Name)
		case len(d.Left) > 0:
			w.printf("checkpoint %s deleted; its bitmaps, which another program made, stay in the images\n", d.Checkpoint.Name)
		case d.Kept:
			w.printf("checkpoint %s: %s removed; its archive stays\n", d.Checkpoint.Name, count(len(d.Bitmaps), "bitmap"))
		default:
			w.printf("checkpoint %s deleted, %s removed\n", d.Checkpoint.Name, count(len(d.Bitmaps), "bitmap"))
		}
	}
	if a.json {
		return a.printJSON(map[string]any{"deleted": out})
	}
	return w.err
}
