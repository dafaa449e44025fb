// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// listOptions are the command line of list.
type listOptions struct {
	tree      bool
	revisions bool
	tags      []string
	host      string // its name or id

	hosts map[string]bool // the names of those that were met
}

func (a *app) listCommand() *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use:        "list [DOMAIN]",
		Short:      "List domains and checkpoints",
		SuggestFor: []string{"ls", "snapshots", "dir"},
		Long: `list shows the checkpoints of a domain, or of all, oldest first; with --tree how
they follow one another: the trunk goes straight down, each after the one above it, and a branch, which a
restored disk makes that goes on, is indented below the checkpoint that it began at.

ADDED is what a checkpoint added to the repository when it was made. It needs what older ones have added,
too, which stays when these are forgotten: what all of them take only the repository's size tells.

--revisions shows, in a bucket with versions, all versions of a domain's checkpoints that are still
there: those that were removed or described anew, and what somebody has put on top.
restore --revision gives them back.`,
		Annotations: exits(exitDamage, exitInterrupted),
		Example: `  imgbackup list
  imgbackup list web
  imgbackup list web --tree
  imgbackup list --tag keep
  imgbackup list --host node7
  imgbackup list web --revisions`,
		Args: takes(cobra.MaximumNArgs(1), "at most one DOMAIN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(exclude(cmd.Flags(), "tag", "tree"), exclude(cmd.Flags(), "host", "tree"), exclude(cmd.Flags(), "revisions", "tag", "host", "tree"),
				notEmpty(cmd.Flags(), "host"), checkTags(o.tags)); err != nil {
				return err
			}
			repo, err := a.openReading(cmd.Context())
			if err == nil {
				err = a.restrict(confine.Self{}, reads(repo))
			}
			if err != nil {
				return err
			}
			domains := args
			if len(args) == 0 && !o.revisions {
				if domains, err = repo.Domains(cmd.Context()); err != nil {
					return err
				}
			} else if err := chain.CheckDomain(strings.Join(args, "")); len(args) > 0 && err != nil {
				return usage.Wrap(err)
			}
			if o.revisions {
				if len(args) == 0 {
					return usage.Errorf("--revisions is of one DOMAIN")
				}
				return a.listRevisions(cmd.Context(), repo, args[0])
			}
			return a.list(cmd.Context(), repo, domains, len(args) == 1, o)
		},
	}
	cmd.Flags().StringArrayVar(&o.tags, "tag", nil, "only those that have this `TAG`, and all if it is repeated")
	cmd.Flags().StringVar(&o.host, "host", "", "only those that this host made (`NAME|ID`)")
	cmd.Flags().BoolVar(&o.revisions, "revisions", false, "show all versions of a domain's checkpoints that a bucket keeps")
	cmd.Flags().BoolVar(&o.tree, "tree", false, "show how checkpoints follow one another")
	return cmd
}

func (a *app) list(ctx context.Context, repo *chain.Repository, domains []string, named bool, o listOptions) error {
	all := []checkpointJSON{}
	var damage []error
	o.hosts = make(map[string]bool)
	w := &checkedWriter{w: a.out}
	t := &table{out: a.out}
	t.row("DOMAIN", "CHECKPOINT", "PARENT", "CREATED", "DISKS", "ADDED", "DESCRIPTION")
	drills, err := a.drillsOf(ctx, repo, domains)
	if err != nil {
		return err
	}
	for _, domain := range domains {
		ms, broken, seen, err := a.checkpointsOf(ctx, repo, domain)
		if err != nil {
			return err
		}
		damage = append(damage, broken...)
		if named && len(ms) == 0 && len(broken) == 0 {
			return noDomain(ctx, repo, domain)
		}
		if o.tree && !a.json {
			w.printf("%s\n", domain)
			printTree(w, chain.BuildTree(ms))
			continue
		}
		for _, m := range ms {
			if !o.wants(m) {
				continue
			}
			v, row := viewCheckpoint(m), listRow(m)
			if seen != nil && seen.Checkpoint.UUID == m.UUID {
				v.Unchanged = &seen.Time
				row[len(row)-1] = strings.TrimSpace(row[len(row)-1] + " (unchanged until " + shortTime(seen.Time) + ")")
			}
			if v.Drill = lastDrill(drills[domain], m.UUID); v.Drill != nil {
				row[len(row)-1] = strings.TrimSpace(row[len(row)-1] + " (" + v.Drill.String() + ")")
			}
			if s := v.signedJSON; s.By != "" {
				text := "signed " + s.String()
				if s.Doubt != "" {
					text += ", TIME IN DOUBT: " + s.Doubt
				}
				row[len(row)-1] = strings.TrimSpace(row[len(row)-1] + " (" + text + ")")
			}
			all = append(all, v)
			t.row(row...)
		}
	}
	if o.host != "" && !o.hosts[o.host] && len(damage) == 0 {
		return usage.Errorf("no checkpoint was made by a host %s%s", o.host, thereIs(o.host, slices.Sorted(maps.Keys(o.hosts))))
	}
	err = w.err
	switch {
	case a.json:
		err = a.printJSON(map[string]any{"checkpoints": all})
	case !o.tree:
		err = t.print()
	}
	if len(domains) == 0 && !a.json {
		a.note("there are no checkpoints in the repository")
	}
	return errors.Join(append([]error{err}, damage...)...)
}

// wants reports whether a checkpoint is to be listed.
func (o *listOptions) wants(m *chain.Manifest) bool {
	o.hosts[m.Host.Name] = true
	if o.host != "" && o.host == m.Host.ID {
		o.hosts[o.host] = true
	}
	return hasTags(m, o.tags) && (o.host == "" || o.host == m.Host.Name || o.host == m.Host.ID)
}

// drillsOf lists the records of drills of some domains, by one listing, and those that are proven.
func (a *app) drillsOf(ctx context.Context, repo *chain.Repository, domains []string) (map[string][]record.Name, error) {
	of := ""
	switch len(domains) {
	case 0:
		return nil, nil
	case 1:
		of = domains[0]
	}
	names, err := record.List(ctx, repo, of)
	if err != nil {
		return nil, err
	}
	return record.Proven(ctx, repo, names)
}

// checkpointsOf reads a domain's manifests, those that cannot be, and when it was last seen to be
// unchanged.
func (a *app) checkpointsOf(ctx context.Context, repo *chain.Repository, domain string) (ms []*chain.Manifest, broken []error, seen *chain.Seen, err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		seen, err = a.seen(ctx, repo, domain)
		return err
	})
	g.Go(func() (err error) {
		ms, broken, err = repo.Manifests(ctx, domain)
		return err
	})
	err = g.Wait()
	return ms, broken, seen, err
}

// seen is when a domain was last seen to be unchanged; nil: never, or that cannot be known, which
// is told.
func (a *app) seen(ctx context.Context, repo *chain.Repository, domain string) (*chain.Seen, error) {
	seen, err := repo.Seen(ctx, domain)
	var newer *chain.NewerError
	if archive.IsDamage(err) || errors.As(err, &newer) {
		a.note(err.Error())
		return nil, nil
	}
	return seen, err
}

// shortTime is a time as tables show it: in this host's zone, which may be another one in winter.
func shortTime(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05 -0700") }

// listRow is a checkpoint as list shows it.
func listRow(m *chain.Manifest) []string {
	parent := "-"
	if m.Parent != nil {
		parent = m.Parent.Name
	}
	var disks []string
	var stored int64
	for i := range m.Disks {
		d := &m.Disks[i]
		mode := d.Mode
		if m.Kind == chain.KindCheckpoint {
			mode = "checkpoint"
		}
		disks = append(disks, d.Name+":"+mode)
		stored += d.StoredBytes
	}
	return []string{
		m.Domain, m.Checkpoint, parent, shortTime(m.Created),
		strings.Join(disks, " "), size(stored), strings.TrimSpace(lostNote(m) + " " + importNote(m) + tagNote(m) + oneLine(m.Description)),
	}
}

// importNote says of a checkpoint that it was imported, before its tags.
func importNote(m *chain.Manifest) string {
	if m.Imported == nil {
		return ""
	}
	return "(imported) "
}

// tagNote is a checkpoint's tags as they stand before its description.
func tagNote(m *chain.Manifest) string {
	if len(m.Tags) == 0 {
		return ""
	}
	return "[" + strings.Join(m.Tags, " ") + "] "
}
