// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/objstore"
)

const (
	// freshLook is for how long a look at the mark is good: far less than the day after
	// which others may take a prune for dead.
	freshLook = 3 * time.Minute
	// deleteTime bounds one batch of deletes.
	deleteTime = 2 * time.Minute
	// deleteTries is how often a batch is sent whose outcome is not known.
	deleteTries = 6
)

var errStale = errors.New("it has taken so long that the mark has to be looked at again")

// Deleting deletes what a mark lists that is deleting, and is this process's. A prune that
// was taken for dead must not send one more delete: so the mark is looked at before each
// batch, and before a batch is sent again, and a batch that takes long, also while the
// machine is suspended, ends. Nothing else in a repository rests on time. Delete requests
// are never repeated by anything below.
type Deleting struct {
	Repo *Repository
	Mark *Mark // as it was seen last

	Now   func() time.Duration // goes on while the machine is suspended; nil: CLOCK_BOOTTIME
	Retry time.Duration        // the first pause before a batch is sent again; 0: a second

	doubt bool // of some request nobody knows whether it may still arrive

	mu   sync.Mutex
	last time.Duration // when the mark was looked at
}

// Batch deletes at most [objstore.MaxBatch] objects of the mark's list. What the store
// refuses to delete, for lack of rights too, is in the BatchError. The error is
// ErrMarkChanged where the mark is another's by now: then nothing more is deleted.
func (d *Deleting) Batch(ctx context.Context, keys []string) (*objstore.BatchError, error) {
	wait := d.Retry
	if wait == 0 {
		wait = time.Second
	}
	for try := 1; ; try++ {
		if err := d.look(ctx); err != nil {
			return nil, err
		}
		err := d.send(ctx, keys)
		var refused *objstore.BatchError
		switch {
		case err == nil:
			return nil, nil
		case errors.As(err, &refused):
			d.doubt = d.doubt || slices.ContainsFunc(refused.Errs, func(err error) bool { return !objstore.Permanent(err) })
			return refused, nil
		case objstore.Permanent(err) && errors.Is(err, fs.ErrPermission):
			return refusedAll(keys, err), nil
		case errors.Is(err, errStale) && len(keys) > 1:
			d.doubt = true             // of what was sent before it was too late
			return d.halves(ctx, keys) // fewer take less time
		case objstore.Permanent(err):
			return nil, fmt.Errorf("delete what no checkpoint needs: %w", err)
		}
		d.doubt = true
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case try == deleteTries:
			return nil, fmt.Errorf("delete what no checkpoint needs: %w", err)
		}
		if err := protocol.Pause(ctx, wait); err != nil {
			return nil, err
		}
		wait *= 2
	}
}

// halves deletes a batch in two.
func (d *Deleting) halves(ctx context.Context, keys []string) (*objstore.BatchError, error) {
	all := &objstore.BatchError{}
	for _, half := range [][]string{keys[:len(keys)/2], keys[len(keys)/2:]} {
		refused, err := d.Batch(ctx, half)
		if err != nil {
			return nil, err
		}
		if refused != nil {
			all.Keys, all.Errs = append(all.Keys, refused.Keys...), append(all.Errs, refused.Errs...)
		}
	}
	if len(all.Keys) == 0 {
		return nil, nil
	}
	return all, nil
}

func refusedAll(keys []string, err error) *objstore.BatchError {
	all := &objstore.BatchError{Keys: keys}
	for range keys {
		all.Errs = append(all.Errs, err)
	}
	return all
}

// send asks the store once.
func (d *Deleting) send(ctx context.Context, keys []string) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTime)
	defer cancel()
	return objstore.DeleteBatch(fenced{ctx, d}, d.Repo.Store, keys)
}

// End ends the mark. Where the answer to a delete never came the request may still arrive,
// at any moment, and what it deletes must not have been stored again by then: so the mark
// stays as it is, released, and settled is false; the next prune ends it.
func (d *Deleting) End(ctx context.Context) (settled bool, err error) {
	for {
		if err := d.look(ctx); err != nil {
			return false, err
		}
		settled = !d.doubt || objstore.MaxDelay(d.Repo.Store) == 0
		if settled {
			_, err = d.Repo.EndMark(ctx, d.Mark)
		} else {
			_, err = d.Repo.ChangeMark(ctx, d.Mark, func(m *Mark) { m.Released = true })
		}
		switch {
		case !errors.Is(err, ErrMarkChanged):
			return settled && err == nil, err
		case !protocol.Keeps(ctx, protocol.Fence):
			return settled, nil
		}
	}
}

// look sees that the mark is still ours and deletes, and takes away others' suspicion.
func (d *Deleting) look(ctx context.Context) error {
	if !protocol.Keeps(ctx, protocol.Fence) {
		return nil
	}
	at := d.now()
	m, err := d.Repo.Mark(ctx)
	switch {
	case errors.Is(err, ErrNoMark):
		return ErrMarkChanged
	case err != nil:
		return err
	case m.UUID != d.Mark.UUID || m.Owner != d.Mark.Owner || m.State != MarkDeleting:
		return ErrMarkChanged
	}
	if m.Suspected != nil { // so that nobody takes it for dead
		m, err = d.Repo.ChangeMark(ctx, m, func(*Mark) {})
		if errors.Is(err, ErrMarkChanged) {
			return d.look(ctx)
		}
		if err != nil {
			return err
		}
	}
	d.Mark = m
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = at
	return nil
}

func (d *Deleting) now() time.Duration {
	if d.Now != nil {
		return d.Now()
	}
	return sys.SinceBoot()
}

// stale reports whether the last look was too long ago.
func (d *Deleting) stale() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now()-d.last > freshLook
}

// fenced is a context that ends, for those who ask before each step, when the last look
// at the mark was too long ago, also by time in which the machine was suspended.
type fenced struct {
	context.Context
	deleting *Deleting
}

// Err is that of the context, or errStale.
func (c fenced) Err() error {
	if err := c.Context.Err(); err != nil {
		return err
	}
	if protocol.Keeps(c.Context, protocol.Fence) && c.deleting.stale() {
		return errStale
	}
	return nil
}
