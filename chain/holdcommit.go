// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
)

// What a lease is held for: a manifest comes, changes or goes.

// Commit makes a checkpoint, as [Repository.Commit] does. Its slot is announced first,
// unless that was done; it has to be free. All that the manifest needs is struck from
// the mark.
func (h *Hold) Commit(ctx context.Context, m *Manifest) error {
	if err := h.repo.CheckWritable(); err != nil {
		return err
	}
	if err := h.Begun(ctx); err != nil {
		return err
	}
	if h.slot == nil || h.slot.Key() != ManifestKey(m.Domain, m.Checkpoint) {
		slot, err := h.repo.Slot(ctx, m.Domain, m.Checkpoint)
		if err != nil {
			return err
		}
		if slot.Manifest != nil {
			return &TakenError{Domain: m.Domain, Checkpoint: m.Checkpoint}
		}
		if err := h.Announce(ctx, slot); err != nil {
			return err
		}
	}
	if err := h.RelyOn(ctx, m); err != nil {
		return err
	}
	if h.slot.Manifest != nil {
		return &TakenError{Domain: m.Domain, Checkpoint: m.Checkpoint}
	}
	var late bool
	err := h.repo.commitTo(ctx, h.slot, m, &late)
	return h.committed(ctx, m, late, err)
}

// Revise is [Repository.Revise] for a revision that needs what the one before did not.
// Where the slot was not announced as it is, it is.
func (h *Hold) Revise(ctx context.Context, m *Manifest) error {
	if err := h.repo.CheckWritable(); err != nil {
		return err
	}
	if err := h.Begun(ctx); err != nil {
		return err
	}
	if h.slot == nil || h.slot.Key() != ManifestKey(m.Domain, m.Checkpoint) {
		slot, err := h.repo.standing(ctx, m)
		if err != nil {
			return err
		}
		if err := h.Announce(ctx, slot); err != nil {
			return err
		}
	}
	if err := h.slot.check(m); err != nil {
		return err
	}
	if err := h.RelyOn(ctx, m); err != nil {
		return err
	}
	var late bool
	err := h.repo.reviseSlot(ctx, h.slot, m, &late)
	return h.committed(ctx, m, late, err)
}

// Forget removes a checkpoint if it still stands as it was read. One that is gone already is
// no error; other errors are those of [Repository.Revise]. What it needed stays, for a prune
// to remove. It is safe beside who forgets the same checkpoint, describes it anew, or takes
// its name again: while the lease announces the slot nobody else commits to it, and what
// stands there is first replaced conditionally, by a void, which stays where the manifest had
// taken a void's place.
func (h *Hold) Forget(ctx context.Context, m *Manifest) error {
	if err := h.repo.CheckWritable(); err != nil {
		return err
	}
	slot, err := h.repo.standing(ctx, m)
	if err == nil {
		err = h.Announce(ctx, slot)
	}
	if errors.As(err, new(*GoneError)) {
		return nil
	}
	if err != nil {
		return err
	}
	slot, h.slot = h.slot, nil
	var late bool
	err = h.repo.empty(ctx, slot, m, &late)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return h.repo.Store.Delete(ctx, slot.Key()) // nobody else writes there
	case errors.As(err, new(*unknownError)):
		h.unknown = true
		return err
	case err != nil || slot.Manifest.OverVoid != "" && protocol.Keeps(ctx, protocol.Scar):
		return err
	case late && protocol.Keeps(ctx, protocol.Late):
		return nil // the void stays: see committed
	}
	if err := h.removeVoid(ctx, slot.Key()); err != nil {
		return fmt.Errorf("checkpoint %s of domain %s is forgotten, but what stands in its place can't be removed: %w", m.Checkpoint, m.Domain, err)
	}
	return nil
}

// removeVoid deletes the void by which this run has forgotten a checkpoint. Nobody takes the
// name while the lease announces it. But a delete has no condition: who was taken for dead
// must not send it, and so it rests on time as those of [Deleting] do. Where the lease was
// broken the void stays; where some answer never came the lease does, until no request can
// arrive any more.
func (h *Hold) removeVoid(ctx context.Context, key string) error {
	wait := time.Second
	for try := 1; ; try++ {
		if h.stale(ctx) || try > 1 {
			err := h.replace(ctx, func(*Lease) {}, nil)
			if errors.As(err, new(*BrokenError)) {
				return nil
			}
			if err != nil {
				return err
			}
		}
		err := h.deleteOnce(ctx, key)
		if err == nil {
			return nil
		}
		h.unknown = true
		if objstore.Permanent(err) || ctx.Err() != nil || try == deleteTries {
			return err
		}
		if err := protocol.Pause(ctx, wait); err != nil {
			return err
		}
		wait *= 2
	}
}

// deleteOnce asks the store once, for a bounded time.
func (h *Hold) deleteOnce(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTime)
	defer cancel()
	return objstore.DeleteBatch(ctx, h.repo.Store, []string{key})
}

// stale reports whether the lease was seen to be ours too long ago to delete anything.
func (h *Hold) stale(ctx context.Context) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return sinceBoot(ctx)-h.looked > freshLook
}

// committed notes what became of a commit. Where it was sent more than once, so that one of
// the requests may arrive late, the slot must never again be as it was before. Where that
// can't be seen to, the lease stays: who breaks it does.
func (h *Hold) committed(ctx context.Context, m *Manifest, late bool, err error) error {
	h.slot = nil
	var unknown *UnknownOutcomeError
	switch {
	case err == nil && late && protocol.Keeps(ctx, protocol.Late):
		if h.repo.scar(ctx, m) != nil {
			h.unknown = true
		}
	case err == nil:
	case errors.As(err, &unknown):
		h.unknown = true
	case errors.As(err, new(*TakenError)), errors.As(err, new(*RevisedError)), errors.As(err, new(*GoneError)):
		err = h.asBroken(ctx, err) // the slot was spent, if we were taken for dead
	}
	return err
}

// asBroken puts before an error that the lease was broken, if it was: what is missing then
// was pruned, and is no damage.
func (h *Hold) asBroken(ctx context.Context, err error) error {
	l, rerr := h.repo.readLease(ctx, h.key)
	if !errors.Is(rerr, objstore.ErrNotFound) && (rerr != nil || !l.Broken) {
		return err
	}
	if archive.IsDamage(err) {
		err = errors.New(err.Error())
	}
	return errors.Join(&BrokenError{UUID: h.uuid}, err)
}
