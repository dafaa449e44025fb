// SPDX-License-Identifier: Apache-2.0

package local

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/imgbackup/imgbackup/objstore"
)

var _ objstore.Placed = (*Store)(nil)

// Contains implements [Placed]. Folders are told by what they are, not by their
// names: one that is mounted twice is one.
func (l *Store) Contains(path string) (bool, error) {
	there, err := objstore.Existing(path)
	if err != nil {
		return false, fmt.Errorf("whether %s lies in the repository: %w", path, err)
	}
	root, err := l.root.Stat()
	if err != nil {
		return false, err
	}
	for dir := there; ; dir = filepath.Dir(dir) {
		fi, err := os.Stat(dir)
		if err != nil {
			return false, fmt.Errorf("whether %s lies in the repository: %w", path, err)
		}
		if os.SameFile(fi, root) {
			return true, nil
		}
		if dir == filepath.Dir(dir) {
			return false, nil
		}
	}
}

// checkNotWithin refuses a place for a repository that lies in another one's folder.
func checkNotWithin(dir string) error {
	if _, err := os.Lstat(dir); err == nil { // it may be a repository itself
		dir = filepath.Dir(dir)
	}
	return objstore.CheckNoRepository(dir)
}
