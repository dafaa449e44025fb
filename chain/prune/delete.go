// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
)

// deleteTries is how often a batch is sent whose outcome is not known.
const deleteTries = 6

// deleter deletes what a mark lists, whose list is fixed.
type deleter struct {
	p       *pruner
	fence   *fence
	v       *inventory
	removed Amounts
	refused int64
	why     error // of the first that the store refused to delete
}

// delete deletes the objects of a mark that deletes, and ends it.
func (p *pruner) delete(ctx context.Context, m *chain.Mark, list *chain.MarkList, v *inventory) (Amounts, error) {
	d := &deleter{p: p, v: v, removed: Amounts{}, fence: &fence{repo: p.repo, mark: m, now: p.o.now}}
	keys := list.Objects
	total := int64(len(keys))
	for n := int64(0); len(keys) > 0; {
		p.progress("deleting", n, total)
		batch := keys[:min(len(keys), p.o.batch)]
		keys = keys[len(batch):]
		if err := d.batch(ctx, batch); err != nil {
			return d.removed, err
		}
		n += int64(len(batch))
		if d.refused == n && errors.Is(d.why, fs.ErrPermission) {
			break // nothing may be deleted here
		}
	}
	if err := d.probes(ctx); err != nil {
		return d.removed, err
	}
	if err := d.end(ctx); err != nil {
		return d.removed, err
	}
	if d.refused > 0 {
		return d.removed, fmt.Errorf("the store refuses to delete %d objects that no checkpoint needs: %w", d.refused, d.why)
	}
	p.progress("deleting", total, total)
	return d.removed, nil
}

// end ends the mark, which others may have suspected.
func (d *deleter) end(ctx context.Context) error {
	for {
		if err := d.fence.look(ctx); err != nil {
			return err
		}
		_, err := d.p.repo.EndMark(ctx, d.fence.mark)
		switch {
		case !errors.Is(err, chain.ErrMarkChanged):
			return err
		case !protocol.Keeps(ctx, protocol.Fence):
			return nil
		}
	}
}

// batch deletes some objects. Each time before it asks the store, also where it asks
// again, it looks at the mark.
func (d *deleter) batch(ctx context.Context, keys []string) error {
	wait := d.p.o.retry
	for try := 1; ; try++ {
		if err := d.fence.look(ctx); err != nil {
			return err
		}
		err := d.send(ctx, keys)
		var refused *objstore.BatchError
		switch {
		case err == nil, errors.As(err, &refused):
			d.count(keys, refused)
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case objstore.Permanent(err) && errors.Is(err, fs.ErrPermission):
			d.refuse(int64(len(keys)), err)
			return nil
		case errors.Is(err, errStale) && len(keys) > 1:
			half := len(keys) / 2 // fewer take less time
			if err := d.batch(ctx, keys[:half]); err != nil {
				return err
			}
			return d.batch(ctx, keys[half:])
		case objstore.Permanent(err), try == deleteTries:
			return fmt.Errorf("delete what no checkpoint needs: %w", err)
		}
		if err := protocol.Pause(ctx, wait); err != nil {
			return err
		}
		wait *= 2
	}
}

// send asks the store once.
func (d *deleter) send(ctx context.Context, keys []string) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTime)
	defer cancel()
	return objstore.DeleteBatch(fenced{ctx, d.fence}, d.p.repo.Store, keys)
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
		if err := d.p.repo.Store.Delete(ctx, info.Key); err != nil {
			return err
		}
		d.removed.add("probes", 1, info.Size)
	}
	return nil
}
