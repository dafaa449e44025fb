// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
)

// What is signed with older keys counts only if it stood when they were rotated. So no writer is
// to be at work meanwhile. Both sides announce themselves by a lease, and then look: who
// rotates for other leases, a writer first for the lease of who rotates, then for newer keys.
// So of two that begin at once one sees the other, or both do.

// RotatingError says that somebody rotates the keys, so that what is stored now would not count.
type RotatingError struct{ Lease *Lease }

func (e *RotatingError) Error() string {
	return fmt.Sprintf("the keys of the repository are being rotated, on host %s (process %d, run %s): run it again when that is over (imgbackup leases tells whether it is)",
		e.Lease.Host.Name, e.Lease.PID, e.Lease.UUID)
}

// WritersError says that keys can't be rotated now, since somebody writes.
type WritersError struct{ Key string } // of a lease

func (e *WritersError) Error() string {
	return "somebody is at work in the repository, or was and left that behind (" + e.Key + "): wait, or see imgbackup leases"
}

// Rotating does something while nobody writes to the repository, and nobody begins to: else the
// error is a *WritersError or a *RotatingError, and nothing is done.
func (r *Repository) Rotating(ctx context.Context, do func(ctx context.Context) error) error {
	if err := r.settleRotations(ctx); err != nil {
		return err
	}
	h, err := r.newHold(ctx, "key rotate", nil)
	if err != nil {
		return err
	}
	h.lease.Rotates = true
	h.start()
	if h.putErr != nil {
		return h.putErr
	}
	if err = h.beginErr; err == nil {
		err = r.nobodyWrites(h.Context(), h.uuid)
	}
	if err == nil {
		err = h.Explain(do(h.Context()))
	}
	var unsettled interface{ Unsettled() bool }
	if errors.As(err, &unsettled) && unsettled.Unsettled() {
		// A request may still rotate them: until a person, or who breaks this lease, knows that
		// none can arrive any more nobody is to write.
		h.unknown = true
	}
	tidying, cancel := Tidying(ctx)
	defer cancel()
	return errors.Join(err, h.Release(tidying))
}

// unlessRotating does what needs no lease for a prune's sake, and is signed: where things are,
// a lease keeps others from rotating the keys meanwhile, and shows that nobody has.
func (r *Repository) unlessRotating(ctx context.Context, purpose string, do func(ctx context.Context) error) error {
	if r.authority() == nil {
		return do(ctx)
	}
	return r.Under(ctx, purpose, func(h *Hold) error { return do(h.Context()) })
}

// nobodyWrites returns a *WritersError if there is a lease but one. Those of writers that have
// certainly ended are broken first.
func (r *Repository) nobodyWrites(ctx context.Context, but string) error {
	if err := r.CleanLeases(ctx); err != nil {
		return err
	}
	keys, err := r.list(ctx, leasesPrefix, KeyLease)
	for _, k := range keys {
		if err == nil && k.Name != but {
			err = &WritersError{Key: leaseKey(k.Host, k.Name)}
		}
	}
	if err != nil {
		return err
	}
	// A prune changes its mark without a lease: nobody could read what it says then. It is made
	// under one.
	m, err := r.Mark(ctx)
	switch {
	case errors.Is(err, ErrNoMark):
		return nil
	case err == nil && m.Standing():
		return &MarkStandsError{Mark: m, Delay: objstore.MaxDelay(r.Store)}
	}
	return err
}

// checkKeys sees, once the lease stands, that nobody rotates the keys, given who else is at
// work; and only then that nobody has.
func (h *Hold) checkKeys(ctx context.Context, leases []*Lease) error {
	for _, l := range h.rotations(ctx, leases) {
		if err := h.repo.awaitRotation(ctx, l); err != nil {
			return err
		}
	}
	if !h.heedsRotations(ctx) {
		return nil
	}
	return h.repo.authority().CheckNotRotated(ctx)
}

// nobodyRotates is checkKeys as far as the leases tell: it asks the store nothing, so that what would
// be asked beside it is asked only when there is no rotation to end for.
func (h *Hold) nobodyRotates(ctx context.Context, leases []*Lease) error {
	for _, l := range h.rotations(ctx, leases) {
		if err := h.repo.mayRotate(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// rotations are those of the leases under which keys are rotated.
func (h *Hold) rotations(ctx context.Context, leases []*Lease) (all []*Lease) {
	for _, l := range leases {
		if l.Rotates && h.heedsRotations(ctx) {
			all = append(all, l)
		}
	}
	return all
}

func (h *Hold) heedsRotations(ctx context.Context) bool {
	return h.repo.authority() != nil && protocol.Keeps(ctx, protocol.Rotate)
}

// A rotation that was killed may have sent the request that rotates, which is still on its way to the
// store then. So its lease stays (see mayDelete) until that can't be any more: until the next
// rotation has taken the revision of the roster that it wanted, or until somebody has seen the lease
// unchanged for as long as a request may take.

// settleRotations ends the leases of rotations that were killed, where requests may arrive late: the next
// revision of the roster is taken by one that changes nothing, so that theirs can't be stored any more.
func (r *Repository) settleRotations(ctx context.Context) error {
	if r.authority() == nil || objstore.MaxDelay(r.Store) == 0 {
		return nil
	}
	leases, _, err := r.Leases(ctx)
	if err != nil {
		return err
	}
	self, err := r.Self()
	if err != nil {
		return err
	}
	leases = slices.DeleteFunc(leases, func(l *Lease) bool {
		return !l.Rotates || !l.Broken && !r.ended(ctx, self, l.Process, l.UUID)
	})
	if len(leases) == 0 {
		return nil
	}
	if err := r.spendRotation(ctx); err != nil {
		return err
	}
	for _, l := range leases {
		if err := r.breakLease(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// spendRotation sees to it that no rotation can succeed that was begun: the next revision of the roster is
// taken by one that changes nothing. So even who was only suspended, for however long, rotates nothing
// beside those who began to write when its lease had gone. An admin does it: for others the error is a
// *RoleError.
func (r *Repository) spendRotation(ctx context.Context) error {
	settler, ok := r.authority().(interface {
		SettleRoster(ctx context.Context) error
	})
	if !ok {
		return &RoleError{Name: r.authority().Self().AuthorName(), What: "end a rotation of the keys", Admin: true}
	}
	if err := settler.SettleRoster(ctx); err != nil {
		return fmt.Errorf("end a rotation of the keys that was cut off: %w", err)
	}
	return nil
}

// lookAgain is how long is waited before a lease is looked at again, and lateLeeway how much longer than
// a request may take.
const (
	lookAgain  = 30 * time.Second
	lateLeeway = time.Minute
)

// mayRotate returns a *RotatingError unless all that can be left of a rotation, given its lease, is a request
// on its way to the store.
func (r *Repository) mayRotate(ctx context.Context, l *Lease) error {
	self, err := r.Self()
	if err != nil {
		return err
	}
	if objstore.MaxDelay(r.Store) == 0 || !l.Broken && !r.ended(ctx, self, l.Process, l.UUID) {
		return &RotatingError{Lease: l}
	}
	return nil
}

// awaitRotation waits until no request can arrive any more of a rotation that was killed, given its
// lease. Of one that may be at work the error is a *RotatingError. Time is what this process has waited,
// by a clock that nobody sets.
func (r *Repository) awaitRotation(ctx context.Context, l *Lease) error {
	if err := r.mayRotate(ctx, l); err != nil {
		return err
	}
	delay := objstore.MaxDelay(r.Store)
	r.tell("a rotation of the keys was cut off (run %s, on host %s), and its last request may still arrive at the store:"+
		" this run waits until it can't any more, up to %s (key rotate, by an admin, ends that at once)", l.UUID, l.Host.Name, delay+lateLeeway)
	for waited := time.Duration(0); waited < delay+lateLeeway; waited += lookAgain {
		if err := protocol.Pause(ctx, lookAgain); err != nil {
			return err
		}
		now, err := r.readLease(ctx, l.Key())
		switch {
		case errors.Is(err, objstore.ErrNotFound):
			return nil // who ended it knew
		case err != nil:
			return err
		case now.Digest() != l.Digest():
			return &RotatingError{Lease: now}
		}
	}
	if err := r.breakLease(ctx, l); !errors.As(err, new(*RoleError)) {
		return err
	}
	// It stays for who manages.
	r.tell("the lease of that rotation stays until an admin or a manager has written something (as forget, prune or key rotate): until then each run waits as this one did")
	return nil
}
