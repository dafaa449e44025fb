// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
)

// What a copy carries beside checkpoints: the tags that they got after they were copied,
// and what forgotten ones left for others.

// tagging are tags that a checkpoint of to lacks.
type tagging struct {
	domain, checkpoint string
	add                []string
}

// lackTags notes which tags of the source's a checkpoint of to lacks. Those that it has more
// stay: to delete less is the safe side.
func (c *copier) lackTags(m *chain.Manifest, theirs []string) {
	add := slices.DeleteFunc(slices.Clone(theirs), func(tag string) bool { return slices.Contains(m.Tags, tag) })
	if len(add) > 0 {
		c.retag = append(c.retag, tagging{m.Domain, m.Checkpoint, add})
	}
}

func (c *copier) carryTags(ctx context.Context) error {
	for _, t := range c.retag {
		if !c.o.DryRun {
			_, err := c.to.Retag(ctx, t.domain, t.checkpoint, t.add, nil)
			switch {
			case errors.Is(err, chain.ErrNoCheckpoint):
				continue // forgotten there just now
			case err != nil:
				return fmt.Errorf("tags of checkpoint %s of %s: %w", t.checkpoint, t.domain, err)
			}
		}
		c.result.Tagged++
	}
	return nil
}

// carryForgotten copies what forgotten checkpoints of the source left for those that stand in
// to. Where that is damaged, it is told of, and the checkpoints are copied all the same.
func (c *copier) carryForgotten(ctx context.Context) error {
	for _, domain := range c.o.Domains {
		left, err := c.from.Forgotten(ctx, domain)
		if err == nil && len(left.Checkpoints) > 0 {
			var n int
			n, err = c.to.TakeIn(ctx, left, c.standing[domain], c.bring)
			c.result.Forgotten += max(0, n)
		}
		if archive.IsDamage(err) {
			c.damaged = append(c.damaged, fmt.Errorf("what forgotten checkpoints of domain %s left: %w", domain, err))
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bring copies the objects that a list of forgotten checkpoints names, and to lacks.
func (c *copier) bring(ctx context.Context, f *chain.Forgotten) (goOn bool, err error) {
	var todo []chain.Object
	var keys []string
	for ref := range f.References() {
		if !c.have[ref.Key] && !slices.Contains(keys, ref.Key) {
			todo, keys = append(todo, chain.Object{Key: ref.Key, Ref: ref.Object}), append(keys, ref.Key)
		}
	}
	if !c.o.DryRun {
		if err := c.lease.Rely(ctx, keys...); err != nil {
			return false, err
		}
	}
	var done Checkpoint
	err = c.each(ctx, todo, func(ctx context.Context, o chain.Object) error { return c.object(ctx, o, &done) })
	c.result.Objects += done.Objects
	c.result.Bytes += done.Bytes
	return !c.o.DryRun, err
}
