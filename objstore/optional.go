// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

// UnsupportedError says that a store can't do what a PutOptions asks for. It is
// errors.ErrUnsupported.
type UnsupportedError struct {
	Ability string // what it can't, after "the store can't"
	Err     error  // how that showed; may be nil
}

func (e *UnsupportedError) Error() string {
	text := "the store can't " + e.Ability
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Is reports whether target is errors.ErrUnsupported.
func (e *UnsupportedError) Is(target error) bool { return target == errors.ErrUnsupported }

func (e *UnsupportedError) Unwrap() error { return e.Err }

// Permanent says that to ask again is in vain.
func (e *UnsupportedError) Permanent() bool { return true }

// As returns what of a store can do what T says: the store itself, or one that
// it wraps. Wrappers have a method Unwrap() Store; one that keeps an ability
// from being used on what it wraps has it itself. What a [Renaming] store wraps
// is asked by that one's keys.
func As[T any](s Store) (T, bool) {
	for {
		if t, ok := s.(T); ok {
			return t, true
		}
		w, ok := s.(interface{ Unwrap() Store })
		if !ok {
			var none T
			return none, false
		}
		if r, is := s.(Renaming); is {
			t, ok := As[T](w.Unwrap())
			if ok {
				t, ok = r.Offer((*T)(nil), t).(T)
			}
			return t, ok
		}
		s = w.Unwrap()
	}
}

// Renaming is a store that knows the objects of the one that it wraps by other keys.
type Renaming interface {
	// Offer returns what an ability of the wrapped store is by this store's keys; nil: it is not
	// offered. want is a pointer to the ability's type, and nil.
	Offer(want, ability any) any
}

// Prober is a store whose abilities are not known beforehand.
type Prober interface {
	// Probe finds out, by objects of its own that it removes again, whether the
	// store keeps the promises of Store. The error is a *NoConditionsError when
	// only Create is not atomic there. It may be repeated.
	Probe(ctx context.Context) error
}

// Enclosed is a store that lies in others: under a longer prefix of the same bucket.
type Enclosed interface {
	// Enclosing returns the stores that this one lies in.
	Enclosing() []Store
}

// ProbePrefix is the prefix of the keys that Probe uses, and may leave behind
// when it is killed.
const ProbePrefix = "probe/"

// NoConditionsError says that a store creates objects over others.
type NoConditionsError struct {
	What string // how that showed
}

func (e *NoConditionsError) Error() string {
	return "the store can't create an object only where there is none: " + e.What
}

// Permanent says that to ask again is in vain.
func (e *NoConditionsError) Permanent() bool { return true }

// ListerAfter is a store that can begin a listing behind a key.
type ListerAfter interface {
	// ListAfter is List without the keys up to after; "" is none.
	ListAfter(ctx context.Context, prefix, after string) iter.Seq2[Info, error]
}

// Remembering is a store that answers by itself what another has told it before. It
// never does so by Stat and List.
type Remembering interface {
	// ReadListed is [ReadAll] of an object as a listing of this store described it: the
	// bytes that it had then, or those that it has now.
	ReadListed(ctx context.Context, info Info, limit int64) ([]byte, error)
	// Direct is the store without its memory.
	Direct() Store
}

// ReadListed reads a whole object that a listing has described, as [Remembering] says.
func ReadListed(ctx context.Context, s Store, info Info, limit int64) ([]byte, error) {
	if r, ok := As[listedReader](s); ok {
		return r.ReadListed(ctx, info, limit)
	}
	return readSized(ctx, s, info.Key, info.Size, limit)
}

// listedReader may have what a listing has described without being a [Remembering] store.
type listedReader interface {
	ReadListed(ctx context.Context, info Info, limit int64) ([]byte, error)
}

// Direct is the store to be asked where what it holds is to be proven.
func Direct(s Store) Store {
	if r, ok := As[Remembering](s); ok {
		return r.Direct()
	}
	return s
}

// VersionGetter is a store that can go on reading the very object that it began
// to read.
type VersionGetter interface {
	// GetVersion is Get of the object that has this version; "" is any. Where
	// another one stands by now the error is ErrReplaced.
	GetVersion(ctx context.Context, key string, offset, length int64, version string) (VersionReader, error)
}

// VersionReader reads one version of an object.
type VersionReader interface {
	io.ReadCloser
	// Version is the same only for the same bytes; "" when it can't be told.
	Version() string
}

// ErrReplaced says that another object stands under the key than the one that
// was being read. It may be read from its beginning.
var ErrReplaced = errors.New("the object was replaced while it was being read")

// Connected is a store that is asked over connections, several at once.
type Connected interface {
	// Connections is how many requests it is worth to have at work at once; at least 1.
	// More wait for one another. It is the same at all times.
	Connections() int
}

// Connections is that of a store; 0: it is as near as this machine's own disks, and how
// many requests it is worth to make at once is a matter of processors.
func Connections(s Store) int {
	if c, ok := As[Connected](s); ok {
		return c.Connections()
	}
	return 0
}

// Clocked is a store that has a clock of its own.
type Clocked interface {
	// Clock is what that showed when the store answered last, and what this machine's did
	// then; zero: it has not answered yet, or does not tell.
	Clock() (theirs, ours time.Time)
}

// Delayed is a store to which a request may still arrive when its client has given it up,
// or was killed: also one that deletes.
type Delayed interface {
	// MaxDelay bounds that.
	MaxDelay() time.Duration
}

// MaxDelay is that of a store; 0: what was given up never happens any more.
func MaxDelay(s Store) time.Duration {
	if d, ok := As[Delayed](s); ok {
		return d.MaxDelay()
	}
	return 0
}

// Versioned is a store that may keep what was replaced and removed, as older versions.
type Versioned interface {
	// KeepsVersions reports whether it is known to do so; what it answered to a Put tells.
	KeepsVersions() bool
}

// KeepsVersions reports whether what is removed from a store is known to take its space
// further on.
func KeepsVersions(s Store) bool {
	v, ok := As[Versioned](s)
	return ok && v.KeepsVersions()
}

// Doubter is a store that may have other bytes of an object than those that it gives.
type Doubter interface {
	// Doubt tells it that an object is not what its name says. It reports whether there is
	// one that is, which is given from now on.
	Doubt(ctx context.Context, key string) (bool, error)
}

// Doubted reports whether an object that proved to be wrong is to be read again: then other
// bytes are given, which are right.
func Doubted(ctx context.Context, s Store, key string) bool {
	d, ok := As[Doubter](s)
	if !ok || ctx.Err() != nil {
		return false
	}
	other, err := d.Doubt(ctx, key)
	return err == nil && other // else what was found wrong is
}
