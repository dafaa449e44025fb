// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"encoding/json"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
)

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

// unsealAs proves data and decodes it into v, after it has been seen to be of
// the format, and of a version and with requirements that are known here.
func unsealAs(data []byte, key, format string, v any) error {
	plain, err := unsealed(data)
	if err != nil {
		return archive.Damaged(key, err)
	}
	// Only what every version has is looked at, since more of a newer one
	// can't be understood.
	var head struct {
		Format   string   `json:"format"`
		Version  int64    `json:"version"`
		Requires []string `json:"requires"`
	}
	if err := json.Unmarshal(plain, &head); err != nil {
		return archive.Damaged(key, fmt.Errorf("its JSON is not valid: %w", err))
	}
	switch {
	case head.Format != format:
		return archive.Damaged(key, fmt.Errorf("its format is %.80q, not %q", head.Format, format))
	case head.Version > readerVersion:
		return &NewerError{Object: key, What: fmt.Sprintf("it has version %d, this program knows version %d", head.Version, readerVersion)}
	case head.Version < 1:
		return archive.Damaged(key, fmt.Errorf("version %d", head.Version))
	case len(head.Requires) > 0: // nothing is known yet that could be required
		return &NewerError{Object: key, What: fmt.Sprintf("it requires %.200q, which this program does not know", head.Requires)}
	}
	if err := decodeStrict(plain, v); err != nil {
		return archive.Damaged(key, err)
	}
	return nil
}

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
