// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"encoding/json"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
)

// Head is what every sealed object begins with.
type Head struct {
	Format   string   `json:"format"`             // as ManifestFormat; what it is, is filled in where it is stored
	Version  int      `json:"version"`            // 1
	Requires []string `json:"requires,omitempty"` // what a reader must know; none is defined yet
}

// headed is an object with a head.
type headed interface{ head() *Head }

func (h *Head) head() *Head { return h }

// unsealAs proves data and decodes it into v, unless it is of another format, or of a version
// or with requirements that are not known here.
func unsealAs(data []byte, key, format string, v headed) error {
	plain, err := unsealed(data)
	if err != nil {
		return archive.Damaged(key, err)
	}
	invalid, head := decodeStrict(plain, v), v.head()
	if invalid != nil {
		// What is newer can't be understood, and is not damaged: only what every version
		// has is looked at.
		head = new(Head)
		if err := json.Unmarshal(plain, head); err != nil {
			return archive.Damaged(key, invalid)
		}
	}
	if err := head.check(key, format); err != nil {
		return err
	}
	if invalid != nil {
		return archive.Damaged(key, invalid)
	}
	return nil
}

// check returns an error for an object under a key that is not of the format, or newer.
func (h *Head) check(key, format string) error {
	switch {
	case h.Format != format:
		return archive.Damaged(key, fmt.Errorf("its format is %.80q, not %q", h.Format, format))
	case h.Version > readerVersion:
		return &NewerError{Object: key, What: fmt.Sprintf("it has version %d, this program knows version %d", h.Version, readerVersion)}
	case h.Version < 1:
		return archive.Damaged(key, fmt.Errorf("version %d", h.Version))
	case len(h.Requires) > 0: // nothing is known yet that could be required
		return &NewerError{Object: key, What: fmt.Sprintf("it requires %.200q, which this program does not know", h.Requires)}
	}
	return nil
}

// CheckHead returns an error for the head of an object that this program can't have made.
func (h *Head) CheckHead(format string) error {
	if h.Format != format || h.Version != FormatVersion {
		return fmt.Errorf("format %.80q, version %d", h.Format, h.Version)
	}
	if len(h.Requires) > 0 {
		return fmt.Errorf("it requires %.200q, which is not known", h.Requires)
	}
	return nil
}
