// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/checkpoint"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/request"
)

// listedCheckpoint is one checkpoint as checkpoint list --json shows it.
type listedCheckpoint struct {
	checkpointNames
	UUID        string       `json:"uuid"`
	Kind        string       `json:"kind"`
	Parent      string       `json:"parent,omitempty"` // the nearest that is still there
	Created     time.Time    `json:"created"`
	Current     bool         `json:"current"` // the newest
	Description string       `json:"description,omitempty"`
	Disks       []listedDisk `json:"disks"`
}

// listedDisk is one disk of it. Size is in bytes.
type listedDisk struct {
	diskNames
	Bitmap string `json:"bitmap,omitempty"`
	Size   *int64 `json:"size,omitempty"` // what changed since
	// Problem says why the size cannot be told.
	Problem string `json:"problem,omitempty"`
}

// checkpointListOptions are the command line of checkpoint list.
type checkpointListOptions struct {
	images imageFlags
	tree   bool
	size   bool
}

func (a *app) checkpointListCommand() *cobra.Command {
	var o checkpointListOptions
	cmd := &cobra.Command{
		Use:        "list DOMAIN",
		Short:      "List checkpoints and how much changed since",
		SuggestFor: []string{"ls"},
		Long: `list shows the checkpoints of a domain, oldest first; the current one, which the
next will follow, is marked with *. With --size it looks into the images and tells, disk
by disk, how much was written since each checkpoint, as an incremental backup
would take it (?: that is not known). The images are those of --disk, or else where the checkpoints
found them.`,
		Annotations: exits(exitDamage, exitInUse, exitInterrupted),
		Example: `  imgbackup checkpoint list web
  imgbackup checkpoint list web --tree
  imgbackup checkpoint list web --size`,
		Args: takes(cobra.ExactArgs(1), "one DOMAIN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.checkpointList(cmd.Context(), args[0], o)
		},
	}
	o.images.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.tree, "tree", false, "show how checkpoints follow one another")
	cmd.Flags().BoolVar(&o.size, "size", false, "show how much changed since each checkpoint")
	return cmd
}

func (a *app) checkpointList(ctx context.Context, domain string, o checkpointListOptions) error {
	req, err := o.images.request(domain)
	if err != nil {
		return err
	}
	repo, err := a.openCached(ctx)
	if err != nil {
		return err
	}
	ms, err := allManifests(ctx, repo, domain)
	if err != nil {
		return err
	}
	forest := chain.BuildTree(ms)
	if o.tree && !a.json {
		w := &checkedWriter{w: a.out}
		printTree(w, forest)
		return w.err
	}
	var sizes []checkpoint.Size
	if o.size || len(req.Disks) > 0 {
		if len(req.Disks) == 0 {
			req.Disks = request.Recorded(ms)
		}
		if sizes, err = checkpoint.Sizes(ctx, repo, req, backup.Hooks{Note: a.note}); err != nil {
			return err
		}
	}
	all := viewListed(ms, forest, sizes)
	if a.json {
		return a.printJSON(map[string]any{"checkpoints": all})
	}
	return a.printListed(all)
}

// viewListed are the checkpoints as --json shows them.
func viewListed(ms []*chain.Manifest, forest *chain.Tree, sizes []checkpoint.Size) []listedCheckpoint {
	all := []listedCheckpoint{}
	current := chain.Newest(ms)
	for _, m := range ms {
		c := listedCheckpoint{
			checkpointNames: checkpointNamed(m.Checkpoint), UUID: m.UUID, Kind: m.Kind, Created: m.Created,
			Current: m == current, Description: m.Description,
		}
		if n := forest.Find(m.UUID); n != nil && n.Parent != nil {
			c.Parent = n.Parent.Manifest.Checkpoint
		}
		for i := range m.Disks {
			c.Disks = append(c.Disks, viewListedDisk(m, &m.Disks[i], sizes))
		}
		all = append(all, c)
	}
	return all
}

func viewListedDisk(m *chain.Manifest, d *chain.Disk, sizes []checkpoint.Size) listedDisk {
	out := listedDisk{diskNames: diskNamed(d.Name), Bitmap: d.Bitmap}
	for _, s := range sizes {
		if s.Checkpoint.UUID == m.UUID && s.Disk == d.Name {
			if out.Problem = s.Problem; s.Problem == "" {
				out.Size = &s.Bytes
			}
		}
	}
	return out
}

func (a *app) printListed(all []listedCheckpoint) error {
	t := &table{out: a.out}
	t.row("", "CHECKPOINT", "PARENT", "CREATED", "KIND", "DISKS", "DESCRIPTION")
	for _, c := range all {
		mark, parent := " ", "-"
		if c.Current {
			mark = "*"
		}
		if c.Parent != "" {
			parent = c.Parent
		}
		t.row(mark, c.Name, parent, shortTime(c.Created), c.Kind, listedDisks(c.Disks), oneLine(c.Description))
	}
	if len(all) > 0 {
		t.legend("* the current checkpoint, which the next one follows")
	}
	if slices.ContainsFunc(all, unknownSize) {
		t.legend("? what changed since cannot be determined: the notes say why")
	}
	err := t.print()
	for _, c := range all {
		for _, d := range c.Disks {
			if d.Problem != "" {
				a.note(fmt.Sprintf("what changed in %s since %s cannot be determined: %s", d.Target, c.Name, d.Problem))
			}
		}
	}
	return err
}

func unknownSize(c listedCheckpoint) bool {
	return slices.ContainsFunc(c.Disks, func(d listedDisk) bool { return d.Problem != "" })
}

// listedDisks are the disks of a checkpoint in one column.
func listedDisks(disks []listedDisk) string {
	var all []string
	for _, d := range disks {
		text := d.Target
		switch {
		case d.Size != nil:
			text += " " + size(*d.Size)
		case d.Problem != "":
			text += " ?"
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}
