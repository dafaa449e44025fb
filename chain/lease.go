// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

// LeaseFormat is the value of a lease's field "format".
const LeaseFormat = "imgbackup-lease"

// Lease says that somebody is writing to the repository: it is put before the
// first object of a session and removed after the last. What deletes objects
// waits for the leases that are older than its own marks. Its key is
// leases/UUID.json.
type Lease struct {
	Format   string   `json:"format"`  // LeaseFormat
	Version  int      `json:"version"` // 1
	Requires []string `json:"requires,omitempty"`
	UUID     string   `json:"uuid"`
	Process
	Started   time.Time `json:"started"` // UTC
	Purpose   string    `json:"purpose"`
	MinWriter int       `json:"min_writer"` // the version of the writer
}

// NewLease returns a lease of this process, not stored yet.
func (r *Repository) NewLease(purpose string) (*Lease, error) {
	self, err := r.Self()
	if err != nil {
		return nil, err
	}
	return &Lease{
		Format: LeaseFormat, Version: 1, UUID: NewUUID(), Process: self,
		Started: now(), Purpose: readable(purpose, maxText), MinWriter: writerVersion,
	}, nil
}

// TakeLease removes the leases of writers that have certainly ended, and stores
// one of this process. The caller deletes it when it has written its last object.
func (r *Repository) TakeLease(ctx context.Context, purpose string) (*Lease, error) {
	l, err := r.NewLease(purpose)
	if err != nil {
		return nil, err
	}
	if err := r.CleanLeases(ctx); err != nil {
		return nil, err
	}
	return l, r.PutLease(ctx, l)
}

// Validate says what is wrong with a lease, or nil.
func (l *Lease) Validate() error {
	var c checker
	c.that(l.Format == LeaseFormat && l.Version == 1, "format %.80q, version %d", l.Format, l.Version)
	c.that(len(l.Requires) == 0, "it requires %.200q, which is not known", l.Requires)
	c.nilErr("uuid", validUUID(l.UUID))
	l.validate(&c)
	c.time("started", l.Started)
	c.text("purpose", l.Purpose, maxText)
	c.atLeast("min_writer", int64(l.MinWriter), 1)
	if c.err != nil {
		return fmt.Errorf("invalid lease: %w", c.err)
	}
	return nil
}

// Key returns the key that the lease is stored under.
func (l *Lease) Key() string { return leaseKey(l.UUID) }

// PutLease stores a lease, durably.
func (r *Repository) PutLease(ctx context.Context, l *Lease) error {
	if err := l.Validate(); err != nil {
		return err
	}
	return r.replace(ctx, leaseKey(l.UUID), l)
}

// DeleteLease removes a lease; one that is gone already is no error.
func (r *Repository) DeleteLease(ctx context.Context, id string) error {
	if err := validUUID(id); err != nil {
		return err
	}
	return r.Store.Delete(ctx, leaseKey(id))
}

// DeleteLeaseOf removes a lease if it is one of that process; one that is gone, another's,
// too new or damaged is left, and is no error.
func (r *Repository) DeleteLeaseOf(ctx context.Context, id string, writer Process) error {
	if err := validUUID(id); err != nil {
		return err
	}
	l, err := r.readLease(ctx, id)
	var newer *NewerError
	switch {
	case errors.Is(err, objstore.ErrNotFound), archive.IsDamage(err), errors.As(err, &newer):
		return nil
	case err != nil:
		return err
	case l.Process != writer:
		return nil
	}
	return r.DeleteLease(ctx, id)
}

// tidyTime bounds what is done about a session's end once it has ended.
const tidyTime = 5 * time.Second

// Tidying returns the context in which a session removes its lease and its
// intent. It is not ctx, which may have been cancelled, and does not last: when
// the store is away, nobody shall wait long for what the next session does, too.
func Tidying(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), tidyTime)
}

// LeaseKeys returns the keys of all leases, whatever is in them.
func (r *Repository) LeaseKeys(ctx context.Context) ([]string, error) {
	var keys []string
	for info, err := range r.Store.List(ctx, leasesPrefix) {
		if err != nil {
			return nil, fmt.Errorf("list the leases: %w", err)
		}
		if ParseKey(info.Key).Kind == KeyLease {
			keys = append(keys, info.Key)
		}
	}
	if len(keys) == 0 {
		return nil, r.confirmListing(ctx)
	}
	return keys, nil
}

// Leases returns the leases, oldest first. For each one that is damaged or too
// new there is an error among the second result; the last one is the store's
// failure.
func (r *Repository) Leases(ctx context.Context) ([]*Lease, []error, error) {
	keys, err := r.list(ctx, leasesPrefix, KeyLease)
	if err != nil {
		return nil, nil, err
	}
	leases, unusable, err := readEach(ctx, keys, func(ctx context.Context, k Key) (*Lease, error) {
		return r.readLease(ctx, k.Name)
	})
	slices.SortStableFunc(leases, func(a, b *Lease) int { return a.Started.Compare(b.Started) })
	return leases, unusable, err
}

func (r *Repository) readLease(ctx context.Context, id string) (*Lease, error) {
	key := leaseKey(id)
	data, err := readSealed(ctx, r.Store, key)
	if err != nil {
		return nil, err
	}
	var l Lease
	if err := unsealAs(data, key, LeaseFormat, &l); err != nil {
		return nil, err
	}
	if err = l.Validate(); err == nil && l.UUID != id {
		err = errors.New("it is another lease's")
	}
	if err != nil {
		return nil, archive.Damaged(key, err)
	}
	return &l, nil
}

// CleanLeases removes the leases whose writers have certainly ended, as seen from
// this process: see [Process.Fate]. A lease that can't be judged stays, and so do all
// where nobody may remove any: they do no harm.
func (r *Repository) CleanLeases(ctx context.Context) error {
	leases, _, err := r.Leases(ctx)
	if err != nil || len(leases) == 0 {
		return err
	}
	self, err := r.Self()
	if err != nil {
		return err
	}
	for _, l := range leases {
		if self.Fate(l.Process) != FateEnded {
			continue
		}
		err := r.DeleteLease(ctx, l.UUID)
		if errors.Is(err, fs.ErrPermission) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("remove the lease of a writer that has ended: %w", err)
		}
	}
	return nil
}
