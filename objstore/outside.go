// SPDX-License-Identifier: Apache-2.0

package objstore

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
)

// Placed is what a [Store] can do beside, that lies in a folder of this machine.
type Placed interface {
	// Contains reports whether a path, at which nothing need be, is that folder or
	// lies in it, by whatever links it leads there.
	Contains(path string) (bool, error)
	// Dir is the folder's path.
	Dir() string
}

// CheckOutside refuses the path of what is to be written beside the store, s, if it is
// the folder of s or of any other repository of this machine, or lies in one: there it
// might take an object's place. A path of which that cannot be found out is refused,
// too. s may be nil: none is known.
func CheckOutside(s Store, path string) error {
	if err := CheckApart(s, path); err != nil {
		return err
	}
	return CheckNoRepository(path)
}

// CheckApart refuses a path that is the folder of s, or lies in it, by whatever links or
// mounts it leads there.
func CheckApart(s Store, path string) error {
	p, ok := As[Placed](s)
	if s == nil || !ok {
		return nil
	}
	inside, err := p.Contains(path)
	if err != nil {
		return err
	}
	if inside {
		return usage.Errorf("%s lies in the folder of the repository %s, where nothing else may be written", path, p.Dir())
	}
	return nil
}

// Marker is the key of the object that every repository has, and that no other folder
// has a file of.
const Marker = "imgbackup.json"

// CheckNoRepository refuses a path that is a repository's folder, or lies in one.
func CheckNoRepository(path string) error {
	there, err := Existing(path)
	if err != nil {
		return fmt.Errorf("whether %s lies in a repository: %w", path, err)
	}
	for ; ; there = filepath.Dir(there) {
		_, err := os.Lstat(filepath.Join(there, Marker))
		switch {
		case err == nil:
			return usage.Errorf("%s lies in the folder of the repository %s, where nothing else may be written", path, there)
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
			return fmt.Errorf("whether %s lies in a repository: %w", path, err)
		}
		if there == filepath.Dir(there) {
			return nil
		}
	}
}

// maxLinks bounds how many links to nowhere are followed, one after the other.
const maxLinks = 40

// Existing is the part of a path that is there, with no links in it. A link to nowhere
// is where it leads to: that is what would be made. As for the kernel, a link is
// followed before the ".." after it.
func Existing(path string) (string, error) {
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
