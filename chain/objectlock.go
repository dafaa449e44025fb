// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

// ObjectLock says how a repository's store keeps what checkpoints need from being removed:
// by S3's object lock. What is stored is kept by the bucket's own rule, so that a host needs
// no right to lock anything; what older objects the checkpoints go on to need is kept on by
// package chain/lock, some of them each day.
type ObjectLock struct {
	Mode string `json:"mode"` // as [objstore.Retention] is written
	Days int    `json:"days"` // for which no checkpoint can be removed, from when it was made; 1 to MaxLockDays
}

// MaxLockDays bounds ObjectLock.Days.
const MaxLockDays = 3650

// LockGap is how many days may pass between two runs of chain/lock.
const LockGap = 7

// Retention is the mode.
func (l *ObjectLock) Retention() (objstore.Retention, error) { return objstore.ParseRetention(l.Mode) }

// Slices is into how many parts the objects are divided, of which each day has one: a third
// of the days, so that each object has its time extended some times a year.
func (l *ObjectLock) Slices() int { return min(max(1, l.Days/3), 30) }

// KeptDays is how long an object is kept from when it is stored or extended: the days, those
// until its turn comes again, and a gap between runs.
func (l *ObjectLock) KeptDays() int { return l.Days + l.Slices() + LockGap }

// Young is for how long rules about which checkpoints stay are not asked about one, by the times in
// manifests: for the days, and as much more as a host's clock may be off in either direction before
// it is not believed. nil: not at all.
func (l *ObjectLock) Young() time.Duration {
	if l == nil {
		return 0
	}
	return time.Duration(l.Days)*24*time.Hour + 2*clockTrust
}

func (l *ObjectLock) validate() error {
	if l.Days < 1 || l.Days > MaxLockDays {
		return fmt.Errorf("%d days: 1 to %d", l.Days, MaxLockDays)
	}
	_, err := l.Retention()
	return err
}

// setLock has the store keep what is stored from now on, at least as long as is asked for.
func (o *InitOptions) setLock(ctx context.Context, store objstore.Store) (*ObjectLock, error) {
	if o.Lock == nil {
		return nil, nil
	}
	if err := o.Lock.validate(); err != nil {
		return nil, err
	}
	locker, ok := objstore.As[objstore.Locker](store)
	if !ok {
		return nil, &objstore.UnsupportedError{Ability: "keep an object for a time: object lock is of buckets"}
	}
	rule, err := locker.LockRule(ctx)
	if err != nil {
		return nil, err
	}
	how, _ := o.Lock.Retention() // it is valid
	want := objstore.LockRule{Days: o.Lock.KeptDays(), How: how}
	if rule.Days >= want.Days && (rule.How == how || rule.How == objstore.Compliance) {
		return o.Lock, nil
	}
	if rule.Days > want.Days || rule.How == objstore.Compliance && rule.Days > 0 {
		want = objstore.LockRule{Days: max(rule.Days, want.Days), How: objstore.Compliance} // never less than it was
	}
	if err := locker.SetLockRule(ctx, want); err != nil {
		return nil, fmt.Errorf("have the bucket keep what is stored for %d days: %w", want.Days, err)
	}
	if rule, err = locker.LockRule(ctx); err == nil && rule != want {
		err = fmt.Errorf("the store was told to keep what is stored for %d days (%s), and says that it keeps it for %d (%s)", want.Days, want.How, rule.Days, rule.How)
	}
	if err != nil {
		return nil, err
	}
	return o.Lock, nil
}

// LockedFormat is the value of the field "format" of what was locked when.
const LockedFormat = "imgbackup-locked"

const lockedKey = "proofs/locked.json"

// Locked says when what checkpoints need was last kept on. It is believed only as far as what
// the store says of some objects bears it out: where it says too much, more is done.
type Locked struct {
	Head
	RepositoryID string    `json:"repository_id"`
	At           time.Time `json:"at"` // when the last run that came to its end began, UTC
}

// LastLocked is when the last run of chain/lock began; the zero time: nobody knows of any.
func (r *Repository) LastLocked(ctx context.Context) (time.Time, error) {
	data, err := readSealed(ctx, objstore.Direct(r.Store), lockedKey)
	if errors.Is(err, objstore.ErrNotFound) || archive.IsDamage(err) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	var l Locked
	err = r.openAs(data, lockedKey, LockedFormat, &l)
	if err != nil && !unusable(err) {
		return time.Time{}, err
	}
	if err != nil || l.RepositoryID != r.Config.ID {
		return time.Time{}, nil
	}
	return l.At, nil
}

// PutLocked records it.
func (r *Repository) PutLocked(ctx context.Context, at time.Time) error {
	return r.replace(ctx, lockedKey, &Locked{Head: Head{Format: LockedFormat, Version: 1}, RepositoryID: r.Config.ID, At: at.UTC().Truncate(time.Second)})
}
