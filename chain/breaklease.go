// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/objstore"
)

// unchangedFor is how long a lease must have been seen unchanged, by one and the same
// clock that nobody sets, to be taken for one that nobody holds any more. Who holds one
// renews it every [renewEvery].
const unchangedFor = 24 * time.Hour

// RenewedError says that a lease was renewed while it was being broken: its writer is
// at work.
type RenewedError struct{ Lease *Lease }

func (e *RenewedError) Error() string {
	return fmt.Sprintf("run %s is at work on %s: it has renewed its lease just now", e.Lease.UUID, e.Lease.Host.Name)
}

// BreakLease ends a lease, as it was read, whose writer has ended, or so it seems. Even
// when that is wrong no checkpoint is harmed: from the first of three steps on the lease
// can announce nothing more; the second spends the commit that it announces, so that
// none that was prepared under it can succeed; with the third it is gone. Who is
// interrupted in between, or another, does the same again. One that is gone already is
// no error.
//
// Who does not manage ends only leases of its own that need no slot to be spent, and who is no admin none by
// which keys are rotated, whose commit is the next revision of the roster: else the error is a *RoleError.
func (r *Repository) BreakLease(ctx context.Context, l *Lease) error {
	if l.Rotates && !l.Broken && r.authority() != nil {
		if err := r.spendRotation(ctx); err != nil {
			return fmt.Errorf("break the lease of run %s: %w", l.UUID, err)
		}
	}
	return r.breakLease(ctx, l)
}

// breakLease is BreakLease of a lease whose writer can rotate no keys any more.
func (r *Repository) breakLease(ctx context.Context, l *Lease) error {
	if err := r.manages(); err != nil {
		return r.endOwn(ctx, l)
	}
	l, err := r.markBroken(ctx, l)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if l.Announces != nil {
		if err := r.spendAnnounced(ctx, l.Announces); err != nil {
			return fmt.Errorf("break the lease of run %s: %w", l.UUID, err)
		}
	}
	return r.deleteLease(ctx, l.Key())
}

// endOwn removes the lease of a run of this host, which has certainly ended. What a host puts
// into a slot spends nothing; so where a request of that run may still arrive the lease stays
// for the next prune, and guards it until then.
func (r *Repository) endOwn(ctx context.Context, l *Lease) error {
	folder, err := r.Folder()
	if err != nil {
		return err
	}
	if l.folder != folder || l.Broken || l.Announces != nil && objstore.MaxDelay(r.Store) > 0 {
		return r.CheckManages("end run " + l.UUID + ", a request of which may still arrive at the store (the next prune does)")
	}
	return r.deleteLease(ctx, l.Key())
}

// markBroken returns the lease as it stands then. A store that can't compare and
// replace has nobody who prunes beside others: there it is left as it is.
func (r *Repository) markBroken(ctx context.Context, l *Lease) (*Lease, error) {
	if l.Broken {
		return l, nil
	}
	broken := *l
	broken.Broken = true
	data, err := r.seal(l.Key(), broken)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.Key(), err)
	}
	err = r.swap(ctx, l.Key(), l.data, data, nil)
	var stands *standsError
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return l, nil
	case errors.As(err, &stands) && stands.data == nil:
		return nil, objstore.ErrNotFound
	case errors.As(err, &stands):
		now, err := r.parseLease(stands.data, l.Key())
		if err == nil && !now.Broken {
			err = &RenewedError{Lease: now}
		}
		return now, err
	case err != nil:
		return nil, fmt.Errorf("break the lease of run %s: %w", l.UUID, err)
	}
	broken.data = data
	return &broken, nil
}

// spendAnnounced sees to it that what was announced can't be committed, now or ever: if
// what stands in the slot is what the commit was to take the place of, it is spent. It
// is also spent when it could be that again: a checkpoint that was forgotten may be
// copied there anew, with the same bytes.
func (r *Repository) spendAnnounced(ctx context.Context, a *Announced) error {
	slot, err := r.Slot(ctx, a.Domain, a.Checkpoint)
	if archive.IsDamage(err) {
		return nil // no commit takes its place
	}
	if err != nil {
		return err
	}
	digest := slot.Digest()
	same := digest == nil && a.SHA256 == nil || digest != nil && a.SHA256 != nil && *digest == *a.SHA256
	if !same && (slot.scarred() || !protocol.Keeps(ctx, protocol.Scar)) || !protocol.Keeps(ctx, protocol.Spend) {
		return nil
	}
	err = r.spend(ctx, slot)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// mayDelete reports whether a request of a run that has ended may still be on its way to the
// store, which deletes the void by which it has forgotten what its lease announces: then the
// name must not be taken yet; or which rotates the keys: then nobody must write yet.
func (r *Repository) mayDelete(ctx context.Context, l *Lease) (bool, error) {
	if l.Rotates && r.authority() != nil && objstore.MaxDelay(r.Store) > 0 {
		return true, nil
	}
	a := l.Announces
	if a == nil || a.SHA256 == nil || objstore.MaxDelay(r.Store) == 0 {
		return false, nil
	}
	slot, err := r.Slot(ctx, a.Domain, a.Checkpoint)
	if archive.IsDamage(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	digest := slot.Digest()
	return slot.Manifest == nil && (digest == nil || *digest != *a.SHA256), nil
}

// ended reports whether the writer of a lease or a mark has certainly ended.
func (r *Repository) ended(ctx context.Context, self, other Process, run string) bool {
	return protocol.Ended(ctx, run, func() bool { return self.Fate(other) == FateEnded })
}

// CleanLeases breaks the leases whose writers have certainly ended, as seen from
// this process: see [Process.Fate]; and ends what others began to break. A lease that
// can't be judged stays, and so do all where nobody may remove any: they do no harm.
func (r *Repository) CleanLeases(ctx context.Context) error {
	leases, _, err := r.Leases(ctx)
	if err != nil || len(leases) == 0 {
		return err
	}
	_, err = r.cleanLeases(ctx, leases)
	return err
}

// cleanLeases returns those that are left.
func (r *Repository) cleanLeases(ctx context.Context, leases []*Lease) ([]*Lease, error) {
	self, err := r.Self()
	if err != nil {
		return nil, err
	}
	var left []*Lease
	for i, l := range leases {
		if !l.Broken && !r.ended(ctx, self, l.Process, l.UUID) {
			left = append(left, l)
			continue
		}
		may, err := r.mayDelete(ctx, l)
		if may {
			left = append(left, l) // for a prune to break, which counts the time
			continue
		}
		if err == nil {
			err = r.breakLease(ctx, l)
		}
		switch {
		case errors.As(err, new(*RoleError)): // it has ended, and is a manager's to break
		case errors.Is(err, fs.ErrPermission):
			return append(left, leases[i:]...), nil
		case errors.As(err, new(*RenewedError)):
			left = append(left, l)
		case err != nil:
			return nil, fmt.Errorf("remove the lease of a writer that has ended: %w", err)
		}
	}
	return left, nil
}

// BreakLeaseOf breaks the lease of the run that has left an intent; one that is gone,
// another's, too new or damaged is left, and is no error.
func (r *Repository) BreakLeaseOf(ctx context.Context, in *Intent) error {
	if err := validUUID(in.UUID); err != nil {
		return err
	}
	l, err := r.readLease(ctx, leaseKey(cmp.Or(in.By, in.Host.folder()), in.UUID))
	switch {
	case errors.Is(err, objstore.ErrNotFound), unusable(err):
		return nil
	case err != nil:
		return err
	case l.Process != in.Process:
		return nil
	}
	err = r.BreakLease(ctx, l)
	if errors.As(err, new(*RoleError)) {
		return nil // if its commit arrives after all the checkpoint is whole: it stands for all that it needs
	}
	return err
}

// ListLeases lists the leases once more, and records in the mark those that there are:
// nothing of it may be deleted before they have gone. It is to be called after the mark
// stands, once in its life.
func (r *Repository) ListLeases(ctx context.Context, m *Mark) (*Mark, error) {
	leases, err := r.seeLeases(ctx)
	if err != nil {
		return nil, err
	}
	return r.ChangeMark(ctx, m, func(m *Mark) { m.Listed, m.Leases = true, leases })
}

// seeLeases looks at all leases.
func (r *Repository) seeLeases(ctx context.Context) ([]SeenLease, error) {
	keys, err := r.LeaseKeys(ctx)
	if err != nil {
		return nil, err
	}
	boot, since, err := bootClock(ctx)
	if err != nil {
		return nil, err
	}
	seen, err := r.lookAtLeases(ctx, keys)
	var all []SeenLease
	for _, s := range seen {
		all = append(all, SeenLease{Key: s.key, SHA256: s.digest, BootID: boot, Since: since})
	}
	return all, err
}

// AwaitLeases looks once at the leases that a mark waits for, and returns the mark with
// those that are left; none: all have gone. Those whose writers have certainly ended it
// breaks, and those that were seen unchanged for a day by this machine's clock.
func (r *Repository) AwaitLeases(ctx context.Context, m *Mark) (*Mark, []AwaitedLease, error) {
	var keys []string
	before := make(map[string]SeenLease)
	for _, s := range m.Leases {
		keys = append(keys, s.Key)
		before[s.Key] = s
	}
	boot, since, err := bootClock(ctx)
	if err != nil {
		return m, nil, err
	}
	seen, err := r.lookAtLeases(ctx, keys)
	if err != nil {
		return m, nil, err
	}
	var still []AwaitedLease
	var left []SeenLease
	changed := len(seen) < len(keys)
	for _, s := range seen {
		was := before[s.key]
		same := was.SHA256 == s.digest && was.BootID == boot && boot != ""
		unchanged := time.Duration(since-was.Since) * time.Second
		if !same || s.digest.IsZero() {
			unchanged = 0
		}
		gone, err := r.breakIfEnded(ctx, s.lease, unchanged)
		if err != nil {
			return m, nil, err
		}
		if gone {
			changed = true
			continue
		}
		if !same {
			was, changed = SeenLease{Key: s.key, SHA256: s.digest, BootID: boot, Since: since}, true
		}
		left, still = append(left, was), append(still, AwaitedLease{s.key, s.lease})
	}
	if changed && len(left) > 0 {
		// What is left is remembered; that none is need not be.
		m, err = r.ChangeMark(ctx, m, func(m *Mark) { m.Leases = left })
	}
	return m, still, err
}

// AwaitedLease is one that a prune waits for.
type AwaitedLease struct {
	Key   string
	Lease *Lease // nil: it can't be read
}

// breakIfEnded breaks a lease whose writer has certainly ended, or that was seen unchanged
// for a day.
func (r *Repository) breakIfEnded(ctx context.Context, l *Lease, unchanged time.Duration) (gone bool, err error) {
	if l == nil {
		return false, nil
	}
	self, err := r.Self()
	if err != nil {
		return false, err
	}
	ended := l.Broken || r.ended(ctx, self, l.Process, l.UUID)
	if unchanged < unchangedFor && !ended {
		return false, nil
	}
	if unchanged < objstore.MaxDelay(r.Store) {
		if may, err := r.mayDelete(ctx, l); may || err != nil {
			return false, err
		}
	}
	end := r.BreakLease
	if ended {
		end = r.breakLease
	}
	err = end(ctx, l)
	if errors.As(err, new(*RenewedError)) || errors.As(err, new(*RoleError)) { // an admin has to end it
		return false, nil
	}
	return err == nil, err
}

// leaseLook is what was seen of one lease.
type leaseLook struct {
	key    string
	lease  *Lease         // nil: it can't be read
	digest archive.Digest // zero then
}

// lookAtLeases reads leases by their keys; those that are gone are left out.
func (r *Repository) lookAtLeases(ctx context.Context, keys []string) ([]leaseLook, error) {
	found, _, err := readEach(ctx, keys, func(ctx context.Context, key string) (*leaseLook, error) {
		l, err := r.readLease(ctx, key)
		switch {
		case err == nil:
			return &leaseLook{key, l, l.Digest()}, nil
		case unusable(err):
			return &leaseLook{key: key}, nil
		}
		return nil, err
	})
	var all []leaseLook
	for _, l := range found {
		all = append(all, *l)
	}
	return all, err
}

// Unchanged says of the leases that a prune waits for, by their keys, for how long they
// have been seen unchanged by this machine's clock; what this machine has not seen is left
// out.
func (r *Repository) Unchanged(ctx context.Context, leases []*Lease) (map[string]time.Duration, error) {
	m, err := r.Mark(ctx)
	if errors.Is(err, ErrNoMark) || unusable(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	boot, since, err := bootClock(ctx)
	if err != nil {
		return nil, err
	}
	unchanged := make(map[string]time.Duration)
	for _, l := range leases {
		for _, s := range m.Leases {
			if s.Key == l.Key() && s.SHA256 == l.Digest() && s.BootID == boot && boot != "" {
				unchanged[l.Key()] = time.Duration(since-s.Since) * time.Second
			}
		}
	}
	return unchanged, nil
}

// sinceBoot is how long ago the machine was started.
func sinceBoot(ctx context.Context) time.Duration {
	_, since, _ := protocol.Boot(ctx, func() (string, time.Duration, error) { return "", sys.SinceBoot(), nil })
	return since
}

// bootClock is the present boot's id and the seconds since it began.
func bootClock(ctx context.Context) (string, int64, error) {
	boot, since, err := protocol.Boot(ctx, func() (string, time.Duration, error) {
		boot, err := bootID(thisRoot())
		return boot, sys.SinceBoot(), err
	})
	return boot, int64(since / time.Second), err
}
