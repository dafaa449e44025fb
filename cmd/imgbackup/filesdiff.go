// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/files"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// diffRequest is the command line of files diff.
type diffRequest struct {
	looking
	domain, from, to, at string
	content              string
}

func (a *app) filesDiffCommand() *cobra.Command {
	var r diffRequest
	cmd := &cobra.Command{
		Use:        "diff DOMAIN FROM TO [PATH]",
		Short:      "Show which files changed between two checkpoints",
		SuggestFor: []string{"compare", "changes"},
		Long: `diff shows what was added (+), removed (-) or changed (~) in the guest's file systems (or below PATH) between two
checkpoints, and what of it: type, size, content, mode, owner, link, mtime; ctime, if something else has, as
attributes. Each checkpoint has an appliance of its own.

Contents are read of files of the same size whose times differ, and shown last. --content all reads all of the same
size, also where times were set back; --content none reads none, and takes for changed what may have.`,
		Annotations: exits(exitDamage, exitInterrupted),
		Example: `  imgbackup files diff web monday tuesday /etc
  imgbackup files diff web monday latest --content none --json`,
		Args: takes(cobra.RangeArgs(3, 4), "a DOMAIN, the checkpoints FROM and TO, and perhaps a PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.domain, r.from, r.to, r.at = args[0], args[1], args[2], "/"
			if len(args) > 3 {
				r.at = absolute("/", args[3:])[0]
			}
			if err := notEmpty(cmd.Flags(), "disk", "volume"); err != nil {
				return err
			}
			switch files.Comparing(r.content) {
			case files.ContentNeeded, files.ContentAll, files.ContentNone:
			default:
				return usage.Errorf("--content %q: want needed, all or none", r.content)
			}
			return a.filesDiff(cmd.Context(), &r)
		},
	}
	r.addWhere(cmd.Flags())
	cmd.Flags().StringVar(&r.content, "content", string(files.ContentNeeded), "compare contents of `WHICH` files: needed, all or none")
	return cmd
}

func (a *app) filesDiff(ctx context.Context, r *diffRequest) (err error) {
	if r.from == "" || r.to == "" {
		return usage.Errorf("the checkpoint's name is empty")
	}
	repo, o, err := a.openForFiles(ctx, r.domain, &r.looking)
	if err != nil {
		return err
	}
	for _, name := range []string{r.from, r.to} { // before an appliance is started
		if _, err := find(ctx, repo, r.domain, name, withData); err != nil {
			return err
		}
	}
	var looks [2]*files.Look
	defer func() {
		for _, l := range looks {
			if l != nil {
				err = errors.Join(err, l.Close())
			}
		}
	}()
	// An appliance lives as long as its context, and the group's ends with the group.
	var both errgroup.Group
	for i, name := range []string{r.from, r.to} {
		both.Go(func() (err error) {
			one := r.looking
			one.checkpoint = name
			looks[i], err = a.openLook(ctx, repo, r.domain, &one, o)
			return err
		})
	}
	if err := both.Wait(); err != nil {
		return err
	}
	p := &entries{json: a.json, w: bufio.NewWriter(a.out)}
	if p.json {
		fmt.Fprintf(p.w, "{\n  \"domain\": %s,\n  \"from\": %s,\n  \"to\": %s,\n  \"path\": %s,\n  \"changes\": [",
			quoted(r.domain), quoted(looks[0].Manifest.Checkpoint), quoted(looks[1].Manifest.Checkpoint), quoted(r.at))
	}
	err = files.Diff(ctx, looks[0], looks[1], r.at, files.Comparing(r.content), func(c *files.Change) error { return p.change(c, r.at) })
	return p.endAfter(err)
}

// changeJSON is a path that has changed.
type changeJSON struct {
	Path    string     `json:"path"`
	PathRaw string     `json:"path_base64,omitempty"`
	Change  files.Kind `json:"change"`
	What    []string   `json:"what,omitempty"`
	From    *entryJSON `json:"from,omitempty"`
	To      *entryJSON `json:"to,omitempty"`
}

// change prints what became of a path.
func (p *entries) change(c *files.Change, at string) error {
	p.n++
	path := rooted(at, c.Path)
	if p.json {
		out := changeJSON{Change: c.Kind, What: c.What}
		out.Path, out.PathRaw = jsonName(path)
		if c.From != nil {
			v := viewEntry(c.From)
			out.From = &v
		}
		if c.To != nil {
			v := viewEntry(c.To)
			out.To = &v
		}
		return p.value(out)
	}
	sign := map[files.Kind]string{files.Added: "+", files.Removed: "-", files.Changed: "~"}[c.Kind]
	text := sign + " " + escaped(path)
	if len(c.What) > 0 {
		text += "  (" + strings.Join(c.What, ", ") + ")"
	}
	_, err := p.w.WriteString(text + "\n")
	return err
}
