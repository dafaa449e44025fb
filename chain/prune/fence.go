// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/protocol"
)

// ErrLostMark says that another prune has the mark by now, and goes on with it.
var ErrLostMark = errors.New("another prune has taken over what this one had marked, and goes on with it: this one sends no further delete")

// A fence keeps a prune that was taken for dead from sending one more delete: only
// somebody who has just seen that the mark is still its own may. Nothing else here rests
// on time.
type fence struct {
	repo *chain.Repository
	mark *chain.Mark
	now  func() time.Duration // goes on while the machine is suspended

	mu   sync.Mutex
	last time.Duration // when the mark was looked at
}

const (
	// freshLook is for how long a look at the mark is good: far less than the day after
	// which others may take a prune for dead.
	freshLook = 3 * time.Minute
	// deleteTime bounds one batch of deletes.
	deleteTime = 2 * time.Minute
)

// look sees that the mark is still ours, and nothing has changed it.
func (f *fence) look(ctx context.Context) error {
	if !protocol.Keeps(ctx, protocol.Fence) {
		return nil
	}
	at := f.now()
	m, err := f.repo.Mark(ctx)
	switch {
	case errors.Is(err, chain.ErrNoMark):
		return ErrLostMark
	case err != nil:
		return err
	case m.UUID != f.mark.UUID || m.Owner != f.mark.Owner || m.State != chain.MarkDeleting:
		return ErrLostMark
	}
	if m.Suspected != nil { // so that nobody takes it for dead
		m, err = f.repo.ChangeMark(ctx, m, func(*chain.Mark) {})
		if errors.Is(err, chain.ErrMarkChanged) {
			return f.look(ctx)
		}
		if err != nil {
			return err
		}
	}
	f.mark = m
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = at
	return nil
}

// stale reports whether the last look was too long ago.
func (f *fence) stale() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now()-f.last > freshLook
}

var errStale = errors.New("it has taken so long that the mark has to be looked at again")

// fenced is a context that ends, for those who ask before each step, when the last look
// at the mark was too long ago, also by time in which the machine was suspended.
type fenced struct {
	context.Context
	fence *fence
}

// Err is that of the context, or errStale.
func (c fenced) Err() error {
	if err := c.Context.Err(); err != nil {
		return err
	}
	if protocol.Keeps(c.Context, protocol.Fence) && c.fence.stale() {
		return errStale
	}
	return nil
}
