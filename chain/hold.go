// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/protocol"
)

const (
	// renewEvery is how often a lease is replaced while work goes on.
	renewEvery = 10 * time.Minute
	// aloneTries is how often others are waited for, each time twice as long, who are about
	// to leave the slot.
	aloneTries = 4
	alonePause = 250 * time.Millisecond
)

// Hold is a lease that this process holds: who writes to a repository does it under one.
//
// What makes it safe beside a prune is an order, which its methods keep: the lease
// stands, and announces the commit; no other announces the same; the slot is as it was
// announced; the mark has been read; and only then is anything that is in the
// repository relied upon ([Hold.Rely], [Hold.Marked]). The commit is conditional on the
// slot. A Hold is safe for concurrent use, but for Announce, Commit and Revise with each
// other.
type Hold struct {
	repo   *Repository
	uuid   string
	key    string
	ctx    context.Context
	cancel context.CancelCauseFunc
	live   context.Context    // while it is begun and renewed
	stop   context.CancelFunc // of that
	done   chan struct{}      // closed when it is renewed no more

	standing chan struct{} // closed when the lease stands, or could not be put there
	begun    chan struct{} // closed when what has to be looked at first was
	putErr   error         // why it does not stand; set before standing is closed
	beginErr error         // that, or what was wrong; set before begun is closed

	mu     sync.Mutex    // guards both
	lease  *Lease        // as it stands
	looked time.Duration // since boot, when it was put there

	others   bool  // commits of the same domain were announced when it began; set before begun is closed
	slot     *Slot // announced; nil: none is
	unknown  bool  // the outcome of a commit: the lease stays
	released bool  // it is removed

	marks marks
}

// BrokenError says that a lease was broken: by a person, or by others who took its
// writer for dead. What was committed before stands; nothing more can be.
type BrokenError struct{ UUID string }

func (e *BrokenError) Error() string {
	return fmt.Sprintf("the lease of this run, %s, was broken: another host took this run for ended; nothing was committed since", e.UUID)
}

// AtWorkError says that another run is about to commit to the same name. It is a
// TakenError, too.
type AtWorkError struct {
	Domain, Checkpoint string
	Lease              *Lease // the other's
}

func (e *AtWorkError) Error() string {
	return fmt.Sprintf("another run is at work on checkpoint %s of domain %s, on host %s (process %d, run %s)",
		e.Checkpoint, e.Domain, e.Lease.Host.Name, e.Lease.PID, e.Lease.UUID)
}

// Unwrap returns the TakenError that it is.
func (e *AtWorkError) Unwrap() error {
	return &TakenError{Domain: e.Domain, Checkpoint: e.Checkpoint}
}

// Hold takes a lease that announces nothing yet, and reads the mark. It first breaks
// those of writers on this host that have certainly ended. Its context ends when the
// lease is found to be broken.
func (r *Repository) Hold(ctx context.Context, purpose string) (*Hold, error) {
	return r.hold(ctx, purpose, nil)
}

// Under does something under a lease, which it releases in the end.
func (r *Repository) Under(ctx context.Context, purpose string, do func(h *Hold) error) error {
	h, err := r.Hold(ctx, purpose)
	if err != nil {
		return err
	}
	err = h.Explain(do(h))
	tidying, cancel := Tidying(ctx)
	defer cancel()
	return errors.Join(err, h.Release(tidying))
}

// HoldFor is Hold and Announce in one step, for who will make one checkpoint, whose name
// was seen to be free.
func (r *Repository) HoldFor(ctx context.Context, purpose, domain, checkpoint string) (*Hold, error) {
	return r.hold(ctx, purpose, &Slot{Domain: domain, Checkpoint: checkpoint})
}

// HoldBeside is HoldFor that does not wait: the lease is taken, and others are looked at,
// beside what the caller does next. Whatever relies on the repository waits for that by
// itself; [Hold.Stands] and [Hold.Begun] tell what came of it. It must be released.
func (r *Repository) HoldBeside(ctx context.Context, purpose, domain, checkpoint string) (*Hold, error) {
	h, err := r.newHold(ctx, purpose, &Slot{Domain: domain, Checkpoint: checkpoint})
	if err == nil {
		go h.start()
	}
	return h, err
}

func (r *Repository) hold(ctx context.Context, purpose string, slot *Slot) (*Hold, error) {
	h, err := r.newHold(ctx, purpose, slot)
	if err != nil {
		return nil, err
	}
	h.start()
	if h.putErr != nil {
		return nil, h.putErr
	}
	if h.beginErr != nil {
		tidying, cancel := Tidying(ctx)
		defer cancel()
		return nil, errors.Join(h.beginErr, h.Release(tidying))
	}
	return h, nil
}

func (r *Repository) newHold(ctx context.Context, purpose string, slot *Slot) (*Hold, error) {
	l, err := r.NewLease(purpose)
	if err != nil {
		return nil, err
	}
	if slot != nil {
		l.Announces = slot.announced()
	}
	h := &Hold{
		repo: r, uuid: l.UUID, key: l.Key(), lease: l, slot: slot,
		done: make(chan struct{}), standing: make(chan struct{}), begun: make(chan struct{}),
	}
	h.marks.repo, h.marks.run, h.marks.change = r, l.UUID, make(chan struct{}, 1)
	h.ctx, h.cancel = context.WithCancelCause(ctx)
	h.live, h.stop = context.WithCancel(h.ctx)
	return h, nil
}

// start takes the lease, and looks at what has to be looked at before anything is relied on.
func (h *Hold) start() {
	defer close(h.begun)
	h.putErr = h.put(h.ctx)
	close(h.standing)
	if h.putErr != nil {
		h.beginErr = h.putErr
		h.stop()
		close(h.done)
		return
	}
	go h.renew()
	h.beginErr = h.begin(h.live)
}

// put stores the lease; only after that the mark is read.
func (h *Hold) put(ctx context.Context) error {
	if !protocol.Keeps(ctx, protocol.Lease) {
		if err := h.marks.read(ctx); err != nil {
			return err
		}
	}
	return h.create(ctx)
}

// Stands waits until the lease stands, and returns why it does not.
func (h *Hold) Stands(ctx context.Context) error {
	return waitFor(ctx, h.standing, &h.putErr)
}

// Begun waits until others have been looked at and the mark was read. Its error is an
// *AtWorkError, a *TakenError, or the store's.
func (h *Hold) Begun(ctx context.Context) error {
	return waitFor(ctx, h.begun, &h.beginErr)
}

// OthersAnnounce reports whether others had announced to change or make a checkpoint of the same
// domain when the lease began, which it has to have.
func (h *Hold) OthersAnnounce() bool { return h.others }

func waitFor(ctx context.Context, done <-chan struct{}, err *error) error {
	select {
	case <-done:
		return *err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// create stores the lease. Where a request may still arrive that was repeated, and bring the
// lease back when it was broken and is gone, the lease is replaced: then what comes back is
// not as this process takes its lease to stand, and can't be changed by it.
func (h *Hold) create(ctx context.Context) error {
	var late bool
	at := sinceBoot(ctx)
	if err := h.repo.createLease(ctx, h.lease, &late); err != nil {
		return err
	}
	h.looked = at
	for late && protocol.Keeps(ctx, protocol.Late) {
		late = false
		if err := h.replace(ctx, func(*Lease) {}, &late); err != nil {
			return err
		}
	}
	return nil
}

// begin sees who else is at work, and reads the mark.
func (h *Hold) begin(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	if protocol.Keeps(ctx, protocol.Lease) {
		g.Go(func() error { return h.marks.read(gctx) })
	}
	g.Go(func() error {
		leases, err := h.otherLeases(gctx)
		if err == nil {
			leases, err = h.repo.cleanLeases(gctx, leases)
		}
		if err != nil {
			return err
		}
		if err := h.nobodyRotates(gctx, leases); err != nil {
			return err
		}
		g.Go(func() error { return h.checkKeys(gctx, leases) })
		if h.slot == nil {
			return nil
		}
		h.others = slices.ContainsFunc(leases, func(l *Lease) bool {
			return l.Announces != nil && l.Announces.Domain == h.slot.Domain
		})
		return h.settleSlot(gctx, leases)
	})
	return g.Wait()
}

// otherLeases reads the leases that are not ours.
func (h *Hold) otherLeases(ctx context.Context) ([]*Lease, error) {
	leases, _, err := h.repo.leasesBut(ctx, h.uuid)
	return leases, err
}

func (s *Slot) announced() *Announced {
	return &Announced{Domain: s.Domain, Checkpoint: s.Checkpoint, SHA256: s.Digest()}
}

// settleSlot sees to it that nobody else announces the slot, given who else is at work,
// and that it is as announced. A void that stands there is announced then.
func (h *Hold) settleSlot(ctx context.Context, leases []*Lease) error {
	for {
		if err := h.alone(ctx, leases); err != nil {
			return err
		}
		now, err := h.repo.Slot(ctx, h.slot.Domain, h.slot.Checkpoint)
		if err != nil {
			return err
		}
		announced := h.slot
		h.slot = now // with what stands there, also where only its digest was known
		if now.sameAs(announced) {
			return nil
		}
		if announced.Manifest != nil {
			if err := now.check(announced.Manifest); err != nil {
				return err
			}
		}
		if now.Manifest != nil {
			return &TakenError{Domain: now.Domain, Checkpoint: now.Checkpoint}
		}
		if err := h.replace(ctx, func(l *Lease) { l.Announces = now.announced() }, nil); err != nil {
			return err
		}
		if leases, err = h.otherLeases(ctx); err != nil {
			return err
		}
	}
}

func (s *Slot) sameAs(o *Slot) bool {
	a, b := s.Digest(), o.Digest()
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

// alone waits a moment for who announces the same slot; of two that see each other one
// leaves at once. Nothing would be lost if both went on: one of the commits fails. But it
// would do so after all the work.
func (h *Hold) alone(ctx context.Context, leases []*Lease) error {
	pause := alonePause
	for try := 0; ; try++ {
		var other *Lease
		for _, l := range leases {
			if l.Announces.sameSlot(h.slot.announced()) {
				other = l
			}
		}
		if other == nil {
			return nil
		}
		if other.UUID < h.uuid || try == aloneTries {
			return &AtWorkError{Domain: h.slot.Domain, Checkpoint: h.slot.Checkpoint, Lease: other}
		}
		if err := protocol.Pause(ctx, pause); err != nil {
			return err
		}
		pause *= 2
		all, err := h.otherLeases(ctx)
		if err != nil {
			return err
		}
		if leases, err = h.repo.cleanLeases(ctx, all); err != nil {
			return err
		}
	}
}

// Announce says which slot is committed to next, as it was looked at. It fails with a
// *BrokenError, an *AtWorkError, or as Revise does when the slot is not as it was. While a
// request about the slot that was announced before may still arrive the lease has to guard
// that one, and nothing else is announced.
func (h *Hold) Announce(ctx context.Context, slot *Slot) error {
	if err := h.Begun(ctx); err != nil {
		return err
	}
	h.slot = nil
	if h.unknown && protocol.Keeps(ctx, protocol.Late) {
		return fmt.Errorf("a request of this run may still arrive at the store, and its lease, %s, guards the name that it is about: run it again", h.uuid)
	}
	if err := h.replace(ctx, func(l *Lease) { l.Announces = slot.announced() }, nil); err != nil {
		return err
	}
	h.slot = slot
	leases, err := h.otherLeases(ctx)
	if err != nil {
		return err
	}
	return h.settleSlot(ctx, leases)
}

// replace puts the lease's next state in its place. late is as that of [Repository.create].
func (h *Hold) replace(ctx context.Context, change func(*Lease), late *bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	at := sinceBoot(ctx)
	next := *h.lease
	change(&next)
	next.Renewed++
	next.RenewedAt = now()
	if !protocol.Keeps(ctx, protocol.Renew) {
		if err := h.repo.PutLease(ctx, &next); err != nil {
			return err
		}
		h.lease, h.looked = &next, at
		return nil
	}
	data, err := h.repo.seal(next.Key(), next)
	if err != nil {
		return fmt.Errorf("%s: %w", next.Key(), err)
	}
	err = h.repo.swap(ctx, next.Key(), h.lease.data, data, late)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		// Nobody breaks a lease there.
		err = h.repo.PutLease(ctx, &next)
	case errors.As(err, new(*standsError)):
		err = &BrokenError{UUID: next.UUID}
		h.cancel(err)
	}
	if err != nil {
		return err
	}
	next.data = data
	h.lease, h.looked = &next, at
	return nil
}

// renew replaces the lease from time to time. An outage is waited for: the next time
// will do.
func (h *Hold) renew() {
	defer close(h.done)
	ctx := h.live
	ticker := time.NewTicker(renewEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			_ = h.replace(ctx, func(*Lease) {}, nil) // broken, it has cancelled
		case <-ctx.Done():
			return
		}
	}
}

// UUID is the lease's, which names the run.
func (h *Hold) UUID() string { return h.uuid }

// Context is the one that Hold was called with, and ends when the lease is found to be
// broken, with a *BrokenError as its cause. It outlasts Release.
func (h *Hold) Context() context.Context { return h.ctx }

// Explain puts before an error that the lease was broken, if that is what led to it.
func (h *Hold) Explain(err error) error {
	var broken *BrokenError
	if err == nil || errors.As(err, &broken) || errors.As(err, new(*UnknownOutcomeError)) || !errors.As(context.Cause(h.ctx), &broken) {
		return err
	}
	return errors.Join(broken, err)
}

// Release removes the lease; it does nothing when that was done, or when none could be put
// there. While the outcome of a commit is not known the lease stays: who breaks it decides it.
func (h *Hold) Release(ctx context.Context) error {
	h.stop()
	select {
	case <-h.begun:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	<-h.done
	if h.unknown || h.putErr != nil || h.released {
		return nil
	}
	err := h.repo.deleteLease(ctx, h.key)
	h.released = err == nil
	return err
}

// CheckStands returns nil when a checkpoint stands as it was read, and else a
// *GoneError, a *RevisedError or a *TakenError: who builds on one that was read before
// the lease stood asks once it does.
func (h *Hold) CheckStands(ctx context.Context, m *Manifest) error {
	if !protocol.Keeps(ctx, protocol.Bases) {
		return nil
	}
	if err := h.Begun(ctx); err != nil {
		return err
	}
	_, err := h.repo.standing(ctx, m)
	return err
}

// Rely returns when none of the objects is marked to be deleted: they are struck from
// a mark, or waited for while they are being deleted. Whether they are there is to be
// seen after that.
func (h *Hold) Rely(ctx context.Context, keys ...string) error {
	if err := h.Begun(ctx); err != nil {
		return err
	}
	return h.marks.rely(ctx, keys)
}

// Marked reports whether an object is marked to be deleted: then it is better not used. It
// may be asked once Begun has returned nil.
func (h *Hold) Marked(key string) bool { return h.marks.has(key) }

// RelyOn is Rely for all that a checkpoint needs. It reads its maps only while there is
// a mark.
func (h *Hold) RelyOn(ctx context.Context, m *Manifest) error {
	if err := h.Begun(ctx); err != nil {
		return err
	}
	if h.marks.stands() == nil {
		return nil
	}
	objects, err := h.repo.Needs(ctx, m, nil)
	if archive.IsDamage(err) {
		err = h.asBroken(ctx, err)
	}
	if err != nil {
		return err
	}
	var keys []string
	for _, o := range objects {
		if h.marks.has(o.Key) {
			keys = append(keys, o.Key)
		}
	}
	if err := h.Rely(ctx, keys...); err != nil {
		return err
	}
	for _, o := range objects {
		if len(keys) == 0 || o.Key != keys[0] {
			continue
		}
		keys = keys[1:]
		stands, err := archive.Stands(ctx, h.repo.Store, o.Key, o.Ref.Length)
		if err != nil {
			return err
		}
		if !stands {
			return h.asBroken(ctx, fmt.Errorf("%s was pruned before this run could rely on it: run it again", o.Key))
		}
	}
	return nil
}
