// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"errors"
	"fmt"
	"iter"
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
			bring := c.bring
			if c.recode != nil {
				bring, err = c.bringAnew(ctx, left)
			}
			var n int
			if err == nil {
				n, err = c.to.TakeIn(ctx, left, c.standing[domain], bring)
			}
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

// bringAnew is bring where the objects are others in to. What to knows already of what
// forgotten checkpoints saw is taken out of left, whose objects have names of the source.
func (c *copier) bringAnew(ctx context.Context, left *chain.Forgotten) (func(context.Context, *chain.Forgotten) (bool, error), error) {
	own, err := c.to.Forgotten(ctx, left.Domain)
	if err != nil {
		return nil, fmt.Errorf("the destination: %w", err)
	}
	of := recordsOf(own)
	for record := range eachForgotten(left) {
		if have, ok := of[record.key]; ok {
			record.Object, record.Content = have, archive.Digest{}
		}
	}
	there := make(map[archive.Ref]bool)
	for ref := range own.References() {
		there[ref.Object] = true
	}
	return func(ctx context.Context, next *chain.Forgotten) (bool, error) {
		todo := make(map[archive.Ref]archive.Ref)
		for record := range eachForgotten(next) {
			if !there[record.Object] {
				todo[record.Object] = archive.Ref{}
			}
		}
		if c.o.DryRun {
			c.result.Objects += len(todo)
			return false, nil
		}
		if err := c.remake(ctx, todo); err != nil {
			return false, err
		}
		for record := range eachForgotten(next) {
			if made, ok := todo[record.Object]; ok {
				record.Object, record.Content = made, archive.Digest{}
				there[made] = true
			}
		}
		return true, nil
	}, nil
}

// remake makes bitmaps of the source in to, and notes what they became.
func (c *copier) remake(ctx context.Context, bitmaps map[archive.Ref]archive.Ref) error {
	if len(bitmaps) == 0 {
		return nil
	}
	w, err := c.writer(ctx, c.lease.Store())
	if err != nil {
		return err
	}
	defer w.Abort() // does nothing after Finish
	for ref := range bitmaps {
		made, ok := c.recode.known(ref.Name)
		if !ok {
			if made, err = w.RecodeObject(ctx, c.from.Store, archive.BitmapKey(ref.Name), ref); err != nil {
				return theSource(err)
			}
			c.recode.made[ref.Name], c.recode.refs[made.Name] = made.Name, made
			c.result.Objects++
			c.result.Bytes += made.Length
		}
		bitmaps[ref] = made
	}
	_, _, err = w.Finish(ctx)
	return err
}

// seen is what a forgotten checkpoint saw of a bitmap, and what tells it from all others.
type seen struct {
	*chain.BitmapRecord
	key seenKey
}

type seenKey struct {
	checkpoint, disk string
	record           chain.BitmapRecord // without its object and the digest of that
}

func eachForgotten(f *chain.Forgotten) iter.Seq[seen] {
	return func(yield func(seen) bool) {
		for i := range f.Checkpoints {
			p := &f.Checkpoints[i]
			for j := range p.Disks {
				d := &p.Disks[j]
				for k := range d.Witnesses {
					key := seenKey{p.UUID, d.Name, d.Witnesses[k]}
					key.record.Object, key.record.Content = archive.Ref{}, archive.Digest{}
					if !yield(seen{&d.Witnesses[k], key}) {
						return
					}
				}
			}
		}
	}
}

func recordsOf(f *chain.Forgotten) map[seenKey]archive.Ref {
	all := make(map[seenKey]archive.Ref)
	for record := range eachForgotten(f) {
		all[record.key] = record.Object
	}
	return all
}
