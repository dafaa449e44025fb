// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// deleter deletes what a mark lists, whose list is fixed.
type deleter struct {
	*chain.Deleting
	v       *inventory
	removed Amounts
	refused int64
	why     error // of the first that the store refused to delete
}

// delete deletes the objects of a mark that deletes, and ends it.
func (p *pruner) delete(ctx context.Context, m *chain.Mark, list *chain.MarkList, v *inventory) (Amounts, error) {
	d := &deleter{
		Deleting: &chain.Deleting{Repo: p.repo, Mark: m, Now: p.o.now, Retry: p.o.retry},
		v:        v, removed: Amounts{},
	}
	keys, err := p.unstruck(ctx, m, list)
	if err != nil {
		return nil, err
	}
	total := int64(len(keys))
	for n := int64(0); len(keys) > 0; {
		p.progress("deleting", n, total)
		batch := keys[:min(len(keys), p.o.batch)]
		keys = keys[len(batch):]
		refused, err := d.Batch(ctx, batch)
		if err != nil {
			return d.removed, lost(err)
		}
		d.count(batch, refused)
		n += int64(len(batch))
		if d.refused == n && errors.Is(d.why, fs.ErrPermission) {
			break // nothing may be deleted here
		}
	}
	if err := d.probes(ctx); err != nil {
		return d.removed, err
	}
	settled, err := d.End(ctx)
	if err != nil {
		return d.removed, lost(err)
	}
	if !settled {
		p.result.Unanswered = true
		p.note("the store did not answer all that was to be deleted, and a request may still be on its way: until the next prune has seen to that, these objects count as being deleted")
	}
	if settled {
		if err := p.repo.RemoveStrikes(ctx, m); err != nil {
			p.note("what hosts have struck from the mark stays, and counts for nothing any more: %v", err)
		}
	}
	if d.refused > 0 {
		return d.removed, fmt.Errorf("the store refuses to delete %d objects that no checkpoint needs: %w", d.refused, d.why)
	}
	p.progress("deleting", total, total)
	return d.removed, nil
}

// unstruck is what of a list no host has struck: see [chain.Strike].
func (p *pruner) unstruck(ctx context.Context, m *chain.Mark, list *chain.MarkList) ([]string, error) {
	struck, err := p.repo.Struck(ctx, m)
	if err != nil || len(struck) == 0 {
		return list.Objects, err
	}
	hosts := make(map[string]bool)
	keys := slices.DeleteFunc(slices.Clone(list.Objects), func(key string) bool {
		host, is := struck[key]
		if is {
			hosts[host] = true
		}
		return is
	})
	if n := len(list.Objects) - len(keys); n > 0 {
		p.note("%d objects stay, since runs of %s need them", n, strings.Join(slices.Sorted(maps.Keys(hosts)), ", "))
	}
	return keys, nil
}

func (d *deleter) refuse(n int64, err error) {
	d.refused += n
	if d.why == nil {
		d.why = err
	}
}

// count counts what was deleted.
func (d *deleter) count(keys []string, refused *objstore.BatchError) {
	stay := make(map[string]bool)
	if refused != nil {
		d.refuse(int64(len(refused.Keys)), refused.Errs[0])
		for _, key := range refused.Keys {
			stay[key] = true
		}
	}
	for _, key := range keys {
		if kind, size, ok := d.v.look(key); ok && !stay[key] {
			d.removed.add(kind, 1, size)
		}
	}
}

// probes deletes what an init that was killed has left: it is nobody's.
func (d *deleter) probes(ctx context.Context) error {
	for _, info := range d.v.probes {
		if err := d.Repo.Store.Delete(ctx, info.Key); err != nil {
			return err
		}
		d.removed.add("probes", 1, info.Size)
	}
	return nil
}
