// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
)

// LeaseFormat is the value of a lease's field "format".
const LeaseFormat = "imgbackup-lease"

// Lease says that somebody is writing to the repository: it is put before the
// first object of a session and removed after the last. It announces the next
// commit, and is renewed while work goes on ([Hold]). What deletes objects waits for
// the leases that it finds after its mark stands. Its key is leases/HOST/UUID.json.
type Lease struct {
	Head
	UUID string `json:"uuid"`
	Process
	Started   time.Time  `json:"started"` // UTC
	Purpose   string     `json:"purpose"`
	MinWriter int        `json:"min_writer"` // the version of the writer
	Renewed   int64      `json:"renewed"`    // how often it has been replaced
	RenewedAt time.Time  `json:"renewed_at"` // by its writer\'s clock, UTC; for people
	Broken    bool       `json:"broken,omitempty"`
	Announces *Announced `json:"announces,omitempty"` // the next commit
	Rotates   bool       `json:"rotates,omitempty"`   // it makes new keys: nobody else is to write

	data   []byte // as it stands
	folder string // of its key; empty: its host's
}

// Announced is a commit that a lease announces: to which slot, and what stands there.
type Announced struct {
	Domain     string          `json:"domain"`
	Checkpoint string          `json:"checkpoint"`
	SHA256     *archive.Digest `json:"sha256,omitempty"` // of what stands there; nil: nothing
}

func (a *Announced) sameSlot(b *Announced) bool {
	return a != nil && b != nil && a.Domain == b.Domain && a.Checkpoint == b.Checkpoint
}

// NewLease returns a lease of this process, not stored yet.
func (r *Repository) NewLease(purpose string) (*Lease, error) {
	self, err := r.Self()
	if err != nil {
		return nil, err
	}
	sign, err := r.signer()
	if err != nil {
		return nil, err
	}
	folder := ""
	if sign != nil {
		folder = sign.States("").By
	}
	begun := now()
	return &Lease{
		folder: folder,
		Head:   Head{Format: LeaseFormat, Version: 1}, UUID: NewUUID(), Process: self,
		Started: begun, RenewedAt: begun, Purpose: readable(purpose, maxText), MinWriter: writerVersion,
	}, nil
}

// Validate says what is wrong with a lease, or nil.
func (l *Lease) Validate() error {
	var c checker
	c.nilErr("head", l.CheckHead(LeaseFormat))
	c.nilErr("uuid", validUUID(l.UUID))
	l.validate(&c)
	c.time("started", l.Started)
	c.text("purpose", l.Purpose, maxText)
	c.atLeast("min_writer", int64(l.MinWriter), 1)
	c.atLeast("renewed", l.Renewed, 0)
	c.time("renewed_at", l.RenewedAt)
	if a := l.Announces; a != nil {
		c.nilErr("announces", errors.Join(CheckDomain(a.Domain), CheckName(a.Checkpoint)))
	}
	if c.err != nil {
		return fmt.Errorf("invalid lease: %w", c.err)
	}
	return nil
}

// Key returns the key that the lease is stored under.
func (l *Lease) Key() string { return leaseKey(cmp.Or(l.folder, l.Host.folder()), l.UUID) }

// Digest is that of the lease as it stands: who sees the same one again has seen no
// sign of life.
func (l *Lease) Digest() archive.Digest { return archive.Sum(l.data) }

// PutLease stores a lease, durably, whatever stood there.
func (r *Repository) PutLease(ctx context.Context, l *Lease) error {
	if err := errors.Join(r.CheckWritable(), l.Validate()); err != nil {
		return err
	}
	data, err := r.seal(l.Key(), l)
	if err != nil {
		return fmt.Errorf("%s: %w", l.Key(), err)
	}
	err = r.Store.Put(ctx, l.Key(), bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace})
	if err == nil {
		l.data = data
	}
	return err
}

// createLease stores a lease of this process for the first time. A request that arrives late
// must not put it in the place of what it has become since. late is as that of create.
func (r *Repository) createLease(ctx context.Context, l *Lease, late *bool) error {
	if !protocol.Keeps(ctx, protocol.Late) {
		return r.PutLease(ctx, l)
	}
	if err := errors.Join(r.CheckWritable(), l.Validate()); err != nil {
		return err
	}
	data, err := r.seal(l.Key(), l)
	if err != nil {
		return fmt.Errorf("%s: %w", l.Key(), err)
	}
	err = r.putNew(ctx, l.Key(), data, late)
	if err != nil && !errors.Is(err, objstore.ErrExists) { // then it is ours: nobody else has its UUID
		return err
	}
	l.data = data
	return nil
}

// deleteLease removes a lease whose commits are all known or spent; one that is gone
// already is no error.
func (r *Repository) deleteLease(ctx context.Context, key string) error {
	if ParseKey(key).Kind != KeyLease {
		return fmt.Errorf("%.80q is no lease", key)
	}
	return r.Store.Delete(ctx, key)
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
	return r.leasesBut(ctx, "")
}

// leasesBut is Leases without that of one uuid, which is not read.
func (r *Repository) leasesBut(ctx context.Context, uuid string) ([]*Lease, []error, error) {
	keys, err := r.list(ctx, leasesPrefix, KeyLease)
	if err != nil {
		return nil, nil, err
	}
	keys = slices.DeleteFunc(keys, func(k Key) bool { return k.Name == uuid })
	leases, unusable, err := readEach(ctx, keys, func(ctx context.Context, k Key) (*Lease, error) {
		return r.readLease(ctx, leaseKey(k.Host, k.Name))
	})
	slices.SortStableFunc(leases, func(a, b *Lease) int { return a.Started.Compare(b.Started) })
	return leases, unusable, err
}

func (r *Repository) readLease(ctx context.Context, key string) (*Lease, error) {
	data, err := readSealed(ctx, r.Store, key)
	if err != nil {
		return nil, err
	}
	return r.parseLease(data, key)
}

func (r *Repository) parseLease(data []byte, key string) (*Lease, error) {
	var l Lease
	who, err := r.openBy(data, key, LeaseFormat, &l)
	if err != nil {
		return nil, err
	}
	if who != nil {
		l.folder = ParseKey(key).Host
	}
	err = l.Validate()
	switch {
	case err != nil:
	case l.Key() != key:
		err = errors.New("it is another lease's")
	case l.Rotates && who != nil && !who.Manages():
		err = fmt.Errorf("it does not count: %w", &RoleError{Name: who.AuthorName(), What: "rotate the keys"})
	}
	if err != nil {
		return nil, archive.Damaged(key, err)
	}
	l.data = data
	return &l, nil
}
