// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
)

// remove marks what the plan found to be unneeded, and deletes it. more says that not all
// of it fitted into one mark.
func (p *pruner) remove(ctx context.Context, pl *plan) (more bool, err error) {
	list := &chain.MarkList{Census: pl.needs.census}
	list.Objects, more = unneededKeys(pl.inventory)
	if len(pl.summary.Remove) == 0 {
		return false, nil // older lists of marks wait until something else is to go
	}
	if err := p.checkReplaces(ctx); err != nil {
		return false, err
	}
	m, err := p.createMark(ctx, list)
	if errors.Is(err, chain.ErrMarkChanged) {
		return true, nil // another prune was faster, and is over: what there is to do is seen anew
	}
	if err != nil {
		return false, err
	}
	removed, err := p.finish(ctx, m, list, pl.inventory, pl.needs)
	for _, a := range removed {
		p.result.Removed.add(a.Kind, a.Objects, a.Bytes)
	}
	return more && len(p.result.Waiting) == 0 && !p.result.Unanswered, err
}

// createMark stores the mark. Where things are signed that is done under a lease, so that nobody
// rotates the keys meanwhile: who does looks for leases and then for a mark.
func (p *pruner) createMark(ctx context.Context, list *chain.MarkList) (m *chain.Mark, err error) {
	if p.repo.Access == nil {
		return p.repo.CreateMark(ctx, list)
	}
	err = p.repo.Under(ctx, "prune", func(h *chain.Hold) error {
		m, err = p.repo.CreateMark(h.Context(), list)
		return err
	})
	return m, err
}

// unneededKeys are the keys of what is unneeded, and older lists of marks, sorted; more
// says that there are more than one mark may have.
func unneededKeys(v *inventory) (keys []string, more bool) {
	for prefix, k := range v.kinds {
		for i := range k.objects {
			if !k.needed[i] {
				keys = append(keys, archive.ObjectKey(prefix, k.objects[i].name))
			}
		}
	}
	for _, l := range v.lists {
		keys = append(keys, l.Key)
	}
	// In this order, maps go before the packs that they name.
	slices.Sort(keys)
	if len(keys) > chain.MaxMarked {
		return keys[:chain.MaxMarked], true
	}
	return keys, false
}

// checkReplaces says why a store is not fit for a mark: it must replace an object only
// while certain bytes stand there.
func (p *pruner) checkReplaces(ctx context.Context) error {
	err := p.repo.Store.Put(ctx, chain.MarkKey, strings.NewReader(archive.NoObject),
		objstore.PutOptions{Mode: objstore.Replace, Old: []byte("no mark is like this")})
	switch {
	case errors.Is(err, objstore.ErrChanged):
		return nil
	case errors.Is(err, errors.ErrUnsupported):
		return fmt.Errorf("pruning needs a store that can replace an object only while it is unchanged: %w"+
			" (where one program at a time writes, init --single-writer makes a repository that does without)", err)
	case err == nil:
		// It stands where a mark does, and no writer could go on: where nothing can be pruned
		// no mark stands.
		if err := p.repo.Store.Delete(ctx, chain.MarkKey); err != nil {
			return fmt.Errorf("the store replaces objects without looking at the condition, and %s, which it has now, can't be removed: %w", chain.MarkKey, err)
		}
		return errors.New("the store replaces objects without looking at the condition: nothing can be pruned safely here")
	}
	return err
}

// finish goes on with a mark that is ours, from wherever it is: until all is deleted, or
// until it has to wait for writers. of is what of the list was found to be needed when it
// was made; nil: that is not known.
func (p *pruner) finish(
	ctx context.Context, m *chain.Mark, list *chain.MarkList, v *inventory, of *needs,
) (Amounts, error) {
	removed, err := p.goOn(ctx, m, list, v, of)
	if err == nil || errors.Is(err, ErrLostMark) {
		return removed, err
	}
	// Whoever comes next shall not have to find out whether this one has ended.
	ctx, cancel := chain.Tidying(ctx)
	defer cancel()
	if archive.IsDamage(err) {
		p.giveUp(ctx, m)
	}
	p.release(ctx, m)
	return removed, err
}

// giveUp ends a mark under which nothing was deleted yet, if it is still ours: what is
// damaged has to be repaired first, and no repair begins while a mark stands.
func (p *pruner) giveUp(ctx context.Context, of *chain.Mark) {
	m, err := p.repo.Mark(ctx)
	if err != nil || m.UUID != of.UUID || m.Owner != of.Owner || m.State != chain.MarkMarked {
		return
	}
	if _, err := p.repo.EndMark(ctx, m); err != nil && !errors.Is(err, chain.ErrMarkChanged) {
		p.note("the mark of this prune stays, and no repair begins before another prune has ended it: %v", err)
	}
}

// release says in the mark that its owner has ended, if it is still ours, also where somebody
// strikes from it at the same moment.
func (p *pruner) release(ctx context.Context, of *chain.Mark) {
	for {
		m, err := p.repo.Mark(ctx)
		if err != nil || m.UUID != of.UUID || m.Owner != of.Owner || !m.Standing() {
			return
		}
		_, err = p.repo.ChangeMark(ctx, m, func(m *chain.Mark) { m.Released = true })
		switch {
		case errors.Is(err, chain.ErrMarkChanged) && ctx.Err() == nil:
			continue
		case err != nil:
			p.note("the mark of this prune stays, and the next one on this host goes on with it: %v", err)
		}
		return
	}
}

func (p *pruner) goOn(
	ctx context.Context, m *chain.Mark, list *chain.MarkList, v *inventory, of *needs,
) (Amounts, error) {
	if m.State == chain.MarkMarked {
		var waiting []Waiting
		var err error
		m, waiting, err = p.waitForWriters(ctx, m)
		if err != nil || m == nil {
			return nil, err
		}
		if len(waiting) > 0 {
			p.result.Waiting = waiting
			p.result.Left = amountsOf(v, list.Objects)
			p.release(ctx, m)
			return nil, nil
		}
		needed := &rescued{list: list, has: make([]bool, len(list.Objects))}
		if protocol.Keeps(ctx, protocol.Second) {
			needed, err = p.readAgain(ctx, list, v, of)
		}
		if err != nil {
			return nil, err
		}
		if m, list, err = p.fix(ctx, m, list, needed); err != nil || m == nil {
			return nil, err
		}
	}
	return p.delete(ctx, m, list, v)
}

// waitForWriters lists the leases, which comes after the mark stood, notes them in it,
// and waits a little until each of them is gone. Those that are not are returned. No mark
// means that nothing is marked any more.
func (p *pruner) waitForWriters(ctx context.Context, m *chain.Mark) (*chain.Mark, []Waiting, error) {
	if !protocol.Keeps(ctx, protocol.Wait) {
		return m, nil, nil
	}
	if !m.Listed {
		var err error
		record := func(m *chain.Mark) (*chain.Mark, error) { return p.repo.ListLeases(ctx, m) }
		if m, err = p.change(ctx, m, record); err != nil || m == nil {
			return nil, nil, err
		}
	}
	end := time.Now().Add(p.o.Wait)
	for {
		var left []chain.AwaitedLease
		var err error
		m, err = p.change(ctx, m, func(m *chain.Mark) (next *chain.Mark, err error) {
			next, left, err = p.repo.AwaitLeases(ctx, m)
			return next, err
		})
		if err != nil || m == nil {
			return nil, nil, err
		}
		if len(left) == 0 || !time.Now().Before(end) {
			return m, waitingFor(left), nil
		}
		if err := protocol.Pause(ctx, min(p.o.Wait, pollLeases)); err != nil {
			return nil, nil, err
		}
	}
}

// pollLeases is how often leases are looked at.
const pollLeases = 500 * time.Millisecond

// waitingFor says whose leases these are.
func waitingFor(leases []chain.AwaitedLease) []Waiting {
	var all []Waiting
	for _, l := range leases {
		w := Waiting{UUID: chain.ParseKey(l.Key).Name, Purpose: "its lease can't be read"}
		if l.Lease != nil {
			w.Host, w.Purpose = l.Lease.Host.Name, l.Lease.Purpose
		}
		all = append(all, w)
	}
	return all
}

// change changes the mark; where somebody struck something from it meanwhile, it is read
// and changed again. nil: nothing is marked any more.
func (p *pruner) change(
	ctx context.Context, m *chain.Mark, do func(*chain.Mark) (*chain.Mark, error),
) (*chain.Mark, error) {
	for {
		next, err := do(m)
		if !errors.Is(err, chain.ErrMarkChanged) {
			return next, err
		}
		now, err := p.repo.Mark(ctx)
		switch {
		case errors.Is(err, chain.ErrNoMark):
			return nil, ErrLostMark
		case err != nil:
			return nil, err
		case now.UUID != m.UUID || now.Owner != m.Owner || now.State == chain.MarkDeleting:
			return nil, ErrLostMark
		case !now.Standing():
			return nil, nil // so much was needed that all of it was struck
		}
		m = now
	}
}

// fix makes the mark one that deletes, with what of the list nobody needs. It returns no
// mark if that is nothing.
func (p *pruner) fix(
	ctx context.Context, m *chain.Mark, list *chain.MarkList, needed *rescued,
) (*chain.Mark, *chain.MarkList, error) {
	var final *chain.MarkList
	m, err := p.change(ctx, m, func(m *chain.Mark) (*chain.Mark, error) {
		final = &chain.MarkList{Census: needed.census}
		for i, key := range list.Objects {
			if _, struck := slices.BinarySearch(m.Struck, key); !struck && !needed.has[i] {
				final.Objects = append(final.Objects, key)
			}
		}
		return p.repo.SetDeleting(ctx, m, final)
	})
	return m, final, err
}

// amountsOf counts objects that the inventory has.
func amountsOf(v *inventory, keys []string) Amounts {
	a := Amounts{}
	for _, key := range keys {
		if kind, size, ok := v.look(key); ok {
			a.add(kind, 1, size)
		}
	}
	return a
}
