// SPDX-License-Identifier: Apache-2.0

// Package objstore is where the objects of a repository live: whole values
// under slash-separated keys, in a local directory or in memory.
//
// What every [Store] promises, and what [objstoretest.Run] of the package
// beside this one tests:
//
//   - An object is whole or absent. Nobody ever sees half of one under its
//     key, however the program that wrote it ended.
//   - When Put has returned nil, the object is durable; when it has returned
//     ErrExists, the one that stands there is.
//   - Of several concurrent Puts of one key in mode [Create], exactly one
//     succeeds; the others get [ErrExists] and have changed nothing.
//   - "Not there" is [ErrNotFound] and nothing else is: an outage, a missing
//     permission or a broken disk never looks like an absent object.
//   - All methods may be called concurrently.
//   - A cancelled context is an error, never a success that was cut short.
//
// Keys, the two sentinel errors and the meaning of [Create] are part of what
// a repository relies on; they stay compatible.
//
// [objstoretest.Run]: https://pkg.go.dev/github.com/imgbackup/imgbackup/objstore/objstoretest#Run
package objstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
)

// The answers that callers decide by. They are matched with errors.Is.
var (
	// ErrNotFound says that the store answered, and that there is no such object.
	ErrNotFound = errors.New("no such object")
	// ErrExists says that an object stands under the key already.
	ErrExists = errors.New("object exists already")
	// ErrTooLarge is ReadAll's: the object is larger than the caller takes.
	ErrTooLarge = errors.New("object is too large")
)

// MaxKeyLength bounds a key, in bytes: what S3 allows.
const MaxKeyLength = 1024

// maxPartLength bounds one part of a key, in bytes: what file systems allow.
const maxPartLength = 255

// Names that no key may begin with: a local store has them in its root.
const (
	tempDir   = "tmp"        // what is being written
	lostFound = "lost+found" // what fsck of ext file systems makes
)

// Mode says what Put does when an object stands under the key.
type Mode int

// The modes of Put.
const (
	Create  Mode = iota // fail with ErrExists and change nothing
	Replace             // put the new object in the old one's place, atomically
)

// Info describes one object.
type Info struct {
	Key  string
	Size int64 // bytes
}

// Store holds objects. See the package documentation for what it promises.
type Store interface {
	// Put stores body under key. It may be repeated: in mode Replace with the
	// same result, in mode Create with ErrExists once an earlier try had
	// succeeded. Any error but ErrExists leaves open whether the object is
	// there; see InDoubt for whether it may yet appear.
	Put(ctx context.Context, key string, body Body, mode Mode) error

	// Get reads length bytes of an object from offset on; length -1 means to
	// the end. The caller closes the reader. An absent object is ErrNotFound
	// (from Get itself, not from the reader). A range that passes the object's
	// end gives the bytes that are there and then io.ErrUnexpectedEOF.
	Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)

	// Stat returns the size of an object, or ErrNotFound.
	Stat(ctx context.Context, key string) (Info, error)

	// List yields the objects whose keys begin with prefix, sorted by key
	// bytewise. The prefix need not end at a slash. An error is yielded once,
	// last; a listing without one is complete.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]

	// Delete removes an object; removing an absent one succeeds.
	Delete(ctx context.Context, key string) error
}

// InDoubt says whether a Put that failed with err may store its object yet, at
// any later moment: the whole of it was sent to a server, and what became of it
// was never heard. Then that there is no such object does not prove that there
// will be none.
func InDoubt(err error) bool {
	var doubt *doubtError
	return errors.As(err, &doubt)
}

// doubtError marks the errors that InDoubt tells.
type doubtError struct{ err error }

func (e *doubtError) Error() string { return e.err.Error() }
func (e *doubtError) Unwrap() error { return e.err }

// ReadAll reads a whole object of at most limit bytes. A longer one is
// ErrTooLarge.
func ReadAll(ctx context.Context, s Store, key string, limit int64) ([]byte, error) {
	r, err := s.Get(ctx, key, 0, -1)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
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

// ValidKey says why a string can't be a key. A key is relative, at most
// MaxKeyLength bytes of [A-Za-z0-9_.%~+/-], and has no part that is empty,
// "." or "..", or longer than 255 bytes. The first part is not "tmp" or
// "lost+found".
func ValidKey(key string) error {
	if len(key) > MaxKeyLength {
		return fmt.Errorf("invalid key: %d bytes is more than %d", len(key), MaxKeyLength)
	}
	if err := validBytes(key); err != nil {
		return err
	}
	if first, _, _ := strings.Cut(key, "/"); first == tempDir || first == lostFound {
		return fmt.Errorf("invalid key %q: %s is reserved", key, first)
	}
	for part := range strings.SplitSeq(key, "/") {
		switch {
		case part == "" || part == "." || part == "..":
			return fmt.Errorf("invalid key %q: part %q", key, part)
		case len(part) > maxPartLength:
			return fmt.Errorf("invalid key %q: a part of %d bytes is longer than %d", key, len(part), maxPartLength)
		}
	}
	return nil
}

// validPrefix says why a string can't be the beginning of a key.
func validPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	// Whatever is cut off in the middle of a part can be completed by a letter.
	return ValidKey(prefix + "a")
}

func validBytes(key string) error {
	for i := range len(key) {
		c := key[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("_.%~+-/", c) >= 0:
		default:
			return fmt.Errorf("invalid key %q: byte 0x%02x", key, c)
		}
	}
	return nil
}

// validRange says why a range can't be read.
func validRange(key string, offset, length int64) error {
	if offset < 0 || length < -1 {
		return fmt.Errorf("%s: invalid range: offset %d, length %d", key, offset, length)
	}
	return nil
}
