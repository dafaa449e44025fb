// SPDX-License-Identifier: Apache-2.0

// Package scratch gives a run folders of its own for what it needs while it lasts. They
// are locked, so that the next run tells those that a killed one has left from those of
// the living, and removes them.
package scratch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// maxSocketFolder is the longest path of a folder with sockets: with a name in it a
// socket's path fits into the 107 bytes that the kernel takes.
const maxSocketFolder = 80

// Folder is a locked folder of a run's own. It goes with all that is in it.
type Folder struct {
	path   string
	prefix string
	parent *os.File
	lock   *os.File
	short  *Folder // where paths are short enough for sockets; nil: it was not needed
}

// Make makes one in dir, and removes those that killed runs have left there: whatever
// folder's name begins with prefix, and nobody has locked.
func Make(dir, prefix string) (_ *Folder, err error) {
	abs, err := sys.Locate(dir)
	if err != nil {
		return nil, fmt.Errorf("the folder for scratch data: %w", err)
	}
	parent, err := os.Open(abs)
	if err != nil {
		return nil, fmt.Errorf("the folder for scratch data: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, parent.Close())
		}
	}()
	ours := func(name string, folder bool) bool { return folder && strings.HasPrefix(name, prefix) }
	_ = sys.Sweep(parent, ours) // what cannot be removed is another's, and harms nothing
	name := func() string { return prefix + strings.ReplaceAll(uuid.NewString(), "-", "")[:12] }
	lock, called, err := sys.MkdirLocked(parent, name, 0o700)
	if err != nil {
		return nil, fmt.Errorf("the folder for scratch data: %w", err)
	}
	return &Folder{path: filepath.Join(abs, called), prefix: prefix, parent: parent, lock: lock}, nil
}

// Path is where it is, an absolute path.
func (f *Folder) Path() string { return f.path }

// Sub makes a new, empty folder in it, in the place of one of that name.
func (f *Folder) Sub(name string) (string, error) {
	path := filepath.Join(f.path, name)
	if err := os.RemoveAll(path); err != nil {
		return "", err
	}
	return path, os.Mkdir(path, 0o700)
}

// SocketDir is [Folder.Sub] of a folder whose path is short enough for sockets, which may
// lie in /tmp for that.
func (f *Folder) SocketDir(name string) (string, error) {
	if len(f.path) <= maxSocketFolder {
		return f.Sub(name)
	}
	if f.short == nil {
		short, err := Make("/tmp", f.prefix)
		if err != nil {
			return "", err
		}
		f.short = short
	}
	return f.short.Sub(name)
}

// Remove removes it with all that is in it.
func (f *Folder) Remove() error {
	err := sys.RemoveLocked(f.parent, filepath.Base(f.path))
	err = errors.Join(err, f.lock.Close(), f.parent.Close())
	if f.short != nil {
		err = errors.Join(err, f.short.Remove())
	}
	return err
}
