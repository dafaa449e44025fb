// SPDX-License-Identifier: Apache-2.0

package chain

import "fmt"

// FormatVersion is the version of repositories that this program makes and reads.
const FormatVersion = 1

// The versions that a program has to know to read a repository, and to write to it.
const (
	readerVersion = FormatVersion
	writerVersion = 1
)

// NewerError says that an object is sound but was written by, or for, a newer
// version of this program.
type NewerError struct {
	Object string // key
	What   string
}

func (e *NewerError) Error() string {
	return fmt.Sprintf("%s needs a newer imgbackup: %s", e.Object, e.What)
}

// toldError says in its own words what several errors stand for.
type toldError struct {
	text string
	is   []error
}

func (e *toldError) Error() string   { return e.text }
func (e *toldError) Unwrap() []error { return e.is }

// AboutDisk is what every error is that is about one disk of a domain, for errors.As:
// who tells of disks one by one learns which it was.
type AboutDisk interface {
	error
	AboutDisk() string // the disk's name
}

// DiskError is an error that is about one disk of a domain.
type DiskError struct {
	Disk string // its target
	Err  error
}

func (e *DiskError) Error() string { return fmt.Sprintf("disk %s: %v", e.Disk, e.Err) }
func (e *DiskError) Unwrap() error { return e.Err }

// AboutDisk is the disk's name.
func (e *DiskError) AboutDisk() string { return e.Disk }
