// SPDX-License-Identifier: Apache-2.0

package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
)

var _ objstore.Placed = (*Store)(nil)

// maxLinks bounds how many links to nowhere are followed, one after the other.
const maxLinks = 40

// Contains implements [Placed]. Folders are told by what they are, not by their
// names: one that is mounted twice is one.
func (l *Store) Contains(path string) (bool, error) {
	there, err := existing(path)
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
	there, err := existing(dir)
	if err != nil {
		return err
	}
	_, err = os.Lstat(dir)
	if err == nil { // it may be a repository itself
		if there == filepath.Dir(there) {
			return nil
		}
		there = filepath.Dir(there)
	}
	for ; ; there = filepath.Dir(there) {
		_, err := os.Lstat(filepath.Join(there, repositoryMarker))
		switch {
		case err == nil:
			return usage.Errorf("%s lies in the folder of the repository %s, where nothing else may be written", dir, there)
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("whether %s lies in a repository: %w", dir, err)
		}
		if there == filepath.Dir(there) {
			return nil
		}
	}
}

// existing is the part of a path that is there, with no links in it. A link to nowhere
// is where it leads to: that is what would be made. As for the kernel, a link is
// followed before the ".." after it.
func existing(path string) (string, error) {
	path, err := sys.Abs(path)
	if err != nil {
		return "", err
	}
	for links := 0; ; {
		real, err := filepath.EvalSymlinks(path)
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return real, err
		}
		path = strings.TrimRight(path, "/")
		folder := path[:strings.LastIndexByte(path, '/')+1]
		to, err := os.Readlink(path)
		switch {
		case err != nil: // it is not there, or below what is no folder
			path = folder
			continue
		case filepath.IsAbs(to):
			path = to
		default:
			path = folder + to
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s: too many links", path)
		}
	}
}
