// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// tagOptions are the command line of tag.
type tagOptions struct {
	domain, checkpoint string
	add, remove        []string
}

func (a *app) tagCommand() *cobra.Command {
	var o tagOptions
	cmd := &cobra.Command{
		Use:        "tag DOMAIN CHECKPOINT {--add TAG | --remove TAG}…",
		Short:      "Change a checkpoint's tags",
		SuggestFor: []string{"label", "pin", "protect"},
		Long: `tag adds tags to a checkpoint, and removes others. A checkpoint with the tag "keep" is never
forgotten; others are kept by forget --keep-tag TAG, and found by list --tag TAG. A tag has letters,
digits, and the characters _ . - : = / @ +.`,
		Annotations: exits(exitDamage, exitTaken, exitInterrupted),
		Example: `  imgbackup tag web monday --add keep
  imgbackup tag web latest --add before-upgrade --remove keep`,
		Args: takes(cobra.RangeArgs(1, 2), "a DOMAIN and a CHECKPOINT"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			o.domain = args[0]
			if o.checkpoint, err = checkpointArg(args, 1, o.checkpoint); err != nil {
				return err
			}
			if err := o.check(); err != nil {
				return err
			}
			return a.tag(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.checkpoint, "checkpoint", "", "`NAME` of the checkpoint (latest: the newest)")
	f.StringArrayVar(&o.add, "add", nil, "add this `TAG`; may be repeated")
	f.StringArrayVar(&o.remove, "remove", nil, "remove this `TAG`; may be repeated")
	return cmd
}

func (o *tagOptions) check() error {
	switch {
	case o.checkpoint == "":
		return usage.Errorf("which checkpoint? give its name, or latest")
	case len(o.add)+len(o.remove) == 0:
		return usage.Errorf("which tags? give --add TAG or --remove TAG")
	}
	for _, tag := range slices.Concat(o.add, o.remove) {
		if err := chain.CheckTag(tag); err != nil {
			return usage.Wrap(err)
		}
		if slices.Contains(o.add, tag) && slices.Contains(o.remove, tag) {
			return usage.Errorf("the tag %s is to be added, and removed", tag)
		}
	}
	return checkNames(o.domain, o.checkpoint)
}

func (a *app) tag(ctx context.Context, o tagOptions) error {
	repo, err := a.openCached(ctx)
	if err == nil {
		err = a.restrict(confine.Self{}, writes(repo))
	}
	if err != nil {
		return err
	}
	m, err := find(ctx, repo, o.domain, o.checkpoint, anyKind)
	if err != nil {
		return err
	}
	m, err = repo.Retag(ctx, o.domain, m.Checkpoint, o.add, o.remove)
	if errors.Is(err, chain.ErrNoCheckpoint) {
		return noCheckpoint(ctx, repo, o.domain, o.checkpoint)
	}
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(viewCheckpoint(m))
	}
	w := &checkedWriter{w: a.out}
	tags := "no tags"
	if len(m.Tags) > 0 {
		tags = strings.Join(m.Tags, ", ")
	}
	w.printf("checkpoint %s of %s: %s\n", m.Checkpoint, m.Domain, tags)
	return w.err
}

// hasTags reports whether a checkpoint has all of some tags.
func hasTags(m *chain.Manifest, tags []string) bool {
	return !slices.ContainsFunc(tags, func(tag string) bool { return !slices.Contains(m.Tags, tag) })
}

// checkTags refuses what can be no tags.
func checkTags(tags []string) error {
	for _, tag := range tags {
		if err := chain.CheckTag(tag); err != nil {
			return usage.Wrap(err)
		}
	}
	return nil
}
