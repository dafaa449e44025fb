// SPDX-License-Identifier: Apache-2.0

package objstore

import "errors"

// The answers that callers decide by. They are matched with errors.Is.
var (
	// ErrNotFound says that the store answered, and that there is no such object.
	ErrNotFound = errors.New("no such object")
	// ErrExists says that an object stands under the key already.
	ErrExists = errors.New("object exists already")
	// ErrChanged says that another object stands under the key than the one that
	// was to be replaced, or none.
	ErrChanged = errors.New("the object is not the one that was to be replaced")
	// ErrTooLarge is ReadAll's: the object is larger than the caller takes.
	ErrTooLarge = errors.New("object is too large")
)

// MarkNotFound makes err one that is [ErrNotFound]: the store's own word that
// there is no such object, in its own words.
func MarkNotFound(err error) error { return &notFoundError{err} }

type notFoundError struct{ err error }

func (e *notFoundError) Error() string   { return e.err.Error() }
func (e *notFoundError) Unwrap() []error { return []error{ErrNotFound, e.err} }

// InDoubt reports whether a Put that failed with err may store its object yet,
// at any later moment: the whole of it was sent to a server, and what became of
// it was never heard. Then that there is no such object does not prove that
// there will be none.
func InDoubt(err error) bool {
	var doubt *doubtError
	return errors.As(err, &doubt)
}

// MarkInDoubt makes err one that [InDoubt] reports.
func MarkInDoubt(err error) error { return &doubtError{err} }

type doubtError struct{ err error }

func (e *doubtError) Error() string { return e.err.Error() }
func (e *doubtError) Unwrap() error { return e.err }

// Permanent reports whether trying again what failed with err is in vain. What
// nothing is known about is not. An error knows it itself that has a method
// Permanent() bool.
func Permanent(err error) bool {
	var own interface{ Permanent() bool }
	switch {
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrExists), errors.Is(err, ErrChanged), errors.Is(err, ErrTooLarge):
		return true
	case errors.As(err, &own):
		return own.Permanent()
	}
	return false
}

// Busy reports whether err is a store's word that it is asked for too much at once: then
// it is there, and what failed will be done in its turn.
func Busy(err error) bool {
	var own interface{ Busy() bool }
	return errors.As(err, &own) && own.Busy()
}

// MarkPermanent makes err one that [Permanent] reports.
func MarkPermanent(err error) error { return &permanentError{err} }

type permanentError struct{ err error }

func (e *permanentError) Error() string   { return e.err.Error() }
func (e *permanentError) Permanent() bool { return true }
func (e *permanentError) Unwrap() error   { return e.err }
