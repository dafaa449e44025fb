// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"

	"github.com/imgbackup/imgbackup/chain"
)

// lookAgain finds checkpoints that others have made since the history was read, and sees to it that
// ours comes after them: they were planned before it, or are older states that somebody imports. It
// is called when the lease has begun. Who announces a commit later sees our lease; who did before
// stands among the leases that we have seen, or has committed by now.
func (s *session) lookAgain(ctx context.Context) error {
	s.behind = 0
	names, err := s.repo.Checkpoints(ctx, s.req.Domain)
	if err != nil {
		return err
	}
	for _, name := range names {
		if s.listed[name] {
			continue
		}
		m, err := s.repo.Manifest(ctx, s.req.Domain, name)
		switch {
		case errors.Is(err, chain.ErrNoCheckpoint), chain.Unusable(err):
			continue
		case err != nil:
			return err
		}
		if s.req.Import == nil { // which ends with an error of its own
			s.hooks.note("checkpoint %s was made meanwhile, and this one comes after it", name)
		}
		s.behind = max(s.behind, m.Sequence)
	}
	return nil
}

// sequence is the number of the checkpoint that is made: higher than any other's. One that others
// are about to make has the next number at most, by what they and we know: then ours is the one after.
func (s *session) sequence() int64 {
	n := max(chain.NextSequence(s.withGone()), s.behind+1)
	// What is described without a lease has its own number. An import ends where others make a checkpoint, and has
	// to stay below those that see it.
	if s.lease != nil && s.req.Import == nil && s.lease.OthersAnnounce() {
		n++
	}
	return n
}
