// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"fmt"
	"strconv"
)

// DamageError says that an image holds something that the format forbids, or
// names something that lies beyond the end of its file. It is never used for a
// failing read: that is an error of the operating system's.
type DamageError struct {
	Path   string // of the file
	Offset int64  // in the file, bytes; of what is wrong or of what refers to it
	What   string // one phrase
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("%s: damaged at offset %d: %s", e.Path, e.Offset, e.What)
}

// UnsupportedError says that an image is in order, as far as can be seen, but
// uses something that this package does not read.
type UnsupportedError struct {
	Path string
	What string // a sentence, with what to do instead where there is something
}

func (e *UnsupportedError) Error() string { return e.Path + ": " + e.What }

// PolicyError says that an image names another file that is not to be
// followed, or that a file is of a kind that is not to be opened.
type PolicyError struct {
	Path string // of the image that names the file, or of the file itself
	What string // a sentence, with what to do instead where there is something
}

func (e *PolicyError) Error() string { return e.Path + ": " + e.What }

// maxQuoted is the number of bytes of a string out of an image that a message
// shows.
const maxQuoted = 256

// quote makes a string that comes out of an image fit for a message: control
// characters are escaped and the length is capped.
func quote(s string) string {
	if len(s) > maxQuoted {
		return strconv.Quote(s[:maxQuoted]) + "…"
	}
	return strconv.Quote(s)
}
