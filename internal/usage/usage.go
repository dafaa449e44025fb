// SPDX-License-Identifier: Apache-2.0

// Package usage has the one error that says that a person, or a program, has asked for
// what makes no sense: it contradicts itself or what it is asked of, and trying again
// is in vain. Nothing has been written when it is returned.
package usage

import (
	"errors"
	"fmt"
)

// ErrWrong is what every [Error] is, for errors.Is.
var ErrWrong = errors.New("wrong usage")

// Error is wrong usage.
type Error struct{ Err error }

func (e *Error) Error() string        { return e.Err.Error() }
func (e *Error) Unwrap() error        { return e.Err }
func (e *Error) Is(target error) bool { return target == ErrWrong }

// Errorf is [fmt.Errorf] for wrong usage.
func Errorf(format string, args ...any) error { return &Error{fmt.Errorf(format, args...)} }

// Wrap makes err one of wrong usage; nil stays nil.
func Wrap(err error) error {
	if err == nil {
		return nil
	}
	return &Error{err}
}
