// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// folderPrefix begins the names of a drill's folders: what has one and is not locked was
// left by a drill that was killed.
const folderPrefix = "imgbackup-drill."

// maxSocketFolder is the longest path of a folder with sockets: with a name in it a
// socket's path fits into the 107 bytes that the kernel takes.
const maxSocketFolder = 80

// folder is a locked folder of a drill's own. It goes with all that is in it.
type folder struct {
	path   string
	parent *os.File
	lock   *os.File
}

// makeFolder makes one in dir, and removes those that killed drills have left there.
func makeFolder(dir string) (_ *folder, err error) {
	abs, err := sys.Locate(dir)
	if err != nil {
		return nil, fmt.Errorf("the folder for a drill's scratch data: %w", err)
	}
	parent, err := os.Open(abs)
	if err != nil {
		return nil, fmt.Errorf("the folder for a drill's scratch data: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, parent.Close())
		}
	}()
	ours := func(name string, folder bool) bool { return folder && strings.HasPrefix(name, folderPrefix) }
	_ = sys.Sweep(parent, ours) // what cannot be removed is another's, and harms nothing
	name := func() string { return folderPrefix + strings.ReplaceAll(uuid.NewString(), "-", "")[:12] }
	lock, called, err := sys.MkdirLocked(parent, name, 0o700)
	if err != nil {
		return nil, fmt.Errorf("the folder for a drill's scratch data: %w", err)
	}
	return &folder{path: filepath.Join(abs, called), parent: parent, lock: lock}, nil
}

// sub makes a new, empty folder in it.
func (f *folder) sub(name string) (string, error) {
	path := filepath.Join(f.path, name)
	if err := os.RemoveAll(path); err != nil {
		return "", err
	}
	return path, os.Mkdir(path, 0o700)
}

// remove removes it with all that is in it.
func (f *folder) remove() error {
	err := sys.RemoveLocked(f.parent, filepath.Base(f.path))
	return errors.Join(err, f.lock.Close(), f.parent.Close())
}
