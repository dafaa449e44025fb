// SPDX-License-Identifier: Apache-2.0

// Package objstore is where the objects of a repository live: whole values
// under slash-separated keys, in a folder (package local), in a bucket of a
// server that speaks S3 (package s3), or in memory ([NewMem]). Package retry
// tries again what fails on the way to a server; package open opens a place by
// its name.
//
// What every [Store] promises, and what [objstoretest.Run] of the package
// below this one tests:
//
//   - An object is whole or absent. Nobody ever sees half of one under its
//     key, however the program that wrote it ended.
//   - When Put has returned nil, the object is durable; when it has returned
//     ErrExists, the one that stands there is.
//   - Of several concurrent Puts of one key in mode [Create], exactly one
//     succeeds; the others get [ErrExists] and have changed nothing.
//   - "Not there" is [ErrNotFound] and nothing else is: an outage, a missing
//     permission or a broken disk never looks like an absent object.
//   - What the store refuses for lack of a permission is fs.ErrPermission, so
//     that who can do without tells it from an outage.
//   - All methods may be called concurrently.
//   - A cancelled context is an error, never a success that was cut short.
//
// What only some stores can do beside that is an interface of its own: [Prober],
// [ListerAfter], [VersionGetter], [BatchDeleter], [Placed]. [As] finds it, also through
// wrappers.
//
// Keys, the two sentinel errors and the meaning of [Create] are part of what
// a repository relies on; they stay compatible.
//
// [objstoretest.Run]: https://pkg.go.dev/github.com/imgbackup/imgbackup/objstore/objstoretest#Run
package objstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"iter"
	"time"
)

// Mode says what Put does when an object stands under the key.
type Mode int

// The modes of Put.
const (
	Create  Mode = iota // fail with ErrExists and change nothing
	Replace             // put the new object in the old one's place, atomically
)

// PutOptions say how an object is stored. The zero value creates it.
type PutOptions struct {
	Mode Mode

	// Old, if not nil, are the bytes that must stand there for them to be
	// replaced; else nothing is changed, and the error is ErrChanged. At most
	// MaxOld bytes; with Replace only. A store that can't compare and replace in
	// one step says so by an *UnsupportedError. In S3 the server decides, by
	// If-Match; one that does not know it ignores it.
	Old []byte

	// RetainUntil, unless zero, is how long these bytes must be kept: till then
	// nobody may remove them, or only who may govern, as Retention says (S3's
	// object lock, to the second). A store without that gives an
	// *UnsupportedError; what it has stored all the same is not kept.
	RetainUntil time.Time
	Retention   Retention

	// SHA256, unless zero, is the body's, which the caller knows. A store that keeps
	// such sums is sent it, refuses other bytes, and says it in Info.
	SHA256 [sha256.Size]byte

	// Late, unless nil, is set where a request was repeated since its answer never came:
	// whatever Put returns then, the first one may still arrive, at any later moment.
	Late *bool
}

// MaxOld bounds PutOptions.Old, in bytes.
const MaxOld = 64 << 20

// Retention says who may shorten the time that an object is kept.
type Retention int

// The ways to keep an object.
const (
	Compliance Retention = iota // nobody
	Governance                  // who has a special permission
)

// Info describes one object.
type Info struct {
	Key  string
	Size int64 // bytes

	// Version is the store's own word for these bytes: the same only for the same
	// bytes under this key. "" where it has none. Listings give it (S3: the ETag).
	Version string
	// SHA256 is what the store has checked the bytes against when it took them, and
	// has kept; zero: nothing. Stat gives it, where PutOptions had it.
	SHA256 [sha256.Size]byte
	// Stored is when the store took the object, by its clock; zero: not known. Listings give it.
	Stored time.Time
}

// Store holds objects. See the package documentation for what it promises.
type Store interface {
	// Put stores body under key, as o says. It may be repeated: in mode Replace
	// with the same result; in mode Create with ErrExists, and with Old with
	// ErrChanged, once an earlier try had succeeded. Any error but these leaves
	// open whether the object is there; see InDoubt for whether it may yet
	// appear.
	Put(ctx context.Context, key string, body Body, o PutOptions) error

	// Get reads length bytes of an object from offset on; length -1 means to
	// the end. The caller closes the reader. An absent object is ErrNotFound
	// (from Get itself, not from the reader). A range that passes the object's
	// end gives the bytes that are there and then io.ErrUnexpectedEOF.
	Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)

	// Stat describes an object, or is ErrNotFound.
	Stat(ctx context.Context, key string) (Info, error)

	// List yields the objects whose keys begin with prefix, sorted by key
	// bytewise. The prefix need not end at a slash. An error is yielded once,
	// last; a listing without one is complete.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]

	// Delete removes an object; removing an absent one succeeds.
	Delete(ctx context.Context, key string) error
}

// ReadAll reads a whole object of at most limit bytes. A longer one is
// ErrTooLarge.
func ReadAll(ctx context.Context, s Store, key string, limit int64) ([]byte, error) {
	return readSized(ctx, s, key, 0, limit)
}

// readSized is ReadAll of an object that is most likely of a size.
func readSized(ctx context.Context, s Store, key string, size, limit int64) ([]byte, error) {
	r, err := s.Get(ctx, key, 0, -1)
	if err != nil {
		return nil, err
	}
	data, err := readUpTo(r, size, limit+1)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: it may have at most %d bytes: %w", key, limit, ErrTooLarge)
	}
	return data, nil
}

// readUpTo reads at most limit bytes. Where there are as many as is expected, they are
// allocated once.
func readUpTo(r io.Reader, expected, limit int64) ([]byte, error) {
	r = io.LimitReader(r, limit)
	var b bytes.Buffer
	// Its reader is asked for more until it says that there is none, with so much room.
	b.Grow(int(min(max(expected, 0), limit, 1<<20)) + bytes.MinRead)
	_, err := b.ReadFrom(r)
	return b.Bytes(), err
}
