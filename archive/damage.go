// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"errors"
	"fmt"
)

// DamageError says that what is stored is not what was written: an object is
// missing, has the wrong length, or its content contradicts a digest or the
// format. It is never used for a store that does not answer.
type DamageError struct {
	Object string // key of the object
	Offset int64  // where in the object, bytes
	Length int64  // of the damaged part, bytes; 0 when unknown
	Err    error  // what is wrong; wraps objstore.ErrNotFound when the object is missing
}

func (e *DamageError) Error() string {
	if errors.As(e.Err, new(*missingError)) {
		return e.Object + " is missing"
	}
	if e.Length > 0 {
		return fmt.Sprintf("%s is damaged (bytes %d to %d): %v", e.Object, e.Offset, e.Offset+e.Length-1, e.Err)
	}
	return fmt.Sprintf("%s is damaged: %v", e.Object, e.Err)
}

func (e *DamageError) Unwrap() error { return e.Err }

// missingError says of an object that it is missing, and not in how many words the store
// said so.
type missingError struct{ err error }

func (*missingError) Error() string   { return "it is missing" }
func (e *missingError) Unwrap() error { return e.err }

// Damaged returns a [DamageError] about a whole object.
func Damaged(object string, err error) error { return &DamageError{Object: object, Err: err} }

// IsDamage reports whether err is or wraps a [DamageError].
func IsDamage(err error) bool {
	var d *DamageError
	return errors.As(err, &d)
}

func damagef(object string, offset, length int64, format string, args ...any) error {
	return &DamageError{Object: object, Offset: offset, Length: length, Err: fmt.Errorf(format, args...)}
}
