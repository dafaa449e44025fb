// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"context"
	"fmt"
	"io"
	"iter"
	"time"
)

// ObjectVersion is one of the values that stood, or stands, under a key.
type ObjectVersion struct {
	Key    string
	ID     string    // the store's name for it, which no other version of the key has
	Size   int64     // bytes; 0 of a marker
	Stored time.Time // by the store's clock
	Latest bool      // it is what the key gives now: nothing, if it is a marker
	Marker bool      // it says that the object was removed
	Tag    string    // the same only for the same bytes; "" when it can't be told
}

// Versions is a store that may keep what was replaced and removed, each under an ID of its
// own. Where it does not, there is one version of each object.
type Versions interface {
	// ListVersions yields all versions of the objects whose keys begin with prefix and come
	// after after, of a key the newest first. An error is yielded once, last. Most servers
	// sort by key bytewise; versitygw lists what was removed by itself.
	ListVersions(ctx context.Context, prefix, after string) iter.Seq2[ObjectVersion, error]
	// GetOld is Get of the version with this ID.
	GetOld(ctx context.Context, key, id string, offset, length int64) (io.ReadCloser, error)
	// DeleteVersion removes a version for good, or a marker, with which the version below
	// it is on top again. Removing an absent one succeeds.
	DeleteVersion(ctx context.Context, key, id string) error
}

// LockRule is how a store keeps what is stored from now on, unless a PutOptions says
// otherwise.
type LockRule struct {
	Days int // each version, from when it was stored; 0: not by itself
	How  Retention
}

// Locker is a store that can keep a version from being removed for a time (S3's object
// lock). Where it can't, all of it is an *UnsupportedError.
type Locker interface {
	// LockRule is the rule of all that lies beside the store, too: in S3 that of its bucket.
	LockRule(ctx context.Context) (LockRule, error)
	// SetLockRule makes it so.
	SetLockRule(ctx context.Context, r LockRule) error
	// Retained is until when a version is kept, and how, as the store tells it; the zero
	// time: it is not, or not but by the rule (versitygw does not tell of that).
	Retained(ctx context.Context, key, id string) (until time.Time, how Retention, err error)
	// Retain keeps a version until a time, to the second. Whether a time that is earlier
	// than the one it is kept till is refused or obeyed is up to the store and How.
	Retain(ctx context.Context, key, id string, until time.Time, how Retention) error
}

// String is the word for it that S3 has.
func (r Retention) String() string {
	switch r {
	case Compliance:
		return "compliance"
	case Governance:
		return "governance"
	}
	return fmt.Sprintf("retention %d", int(r))
}

// ParseRetention reads what String writes.
func ParseRetention(s string) (Retention, error) {
	for _, r := range []Retention{Compliance, Governance} {
		if s == r.String() {
			return r, nil
		}
	}
	return 0, fmt.Errorf("there is no way %q to keep an object: compliance or governance", s)
}
