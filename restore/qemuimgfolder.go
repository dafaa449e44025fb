// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// folder is a private folder beside a target, locked.
type folder struct {
	in   *os.File // the target's folder
	name string   // in it
	lock *os.File
	path string
}

// Private folders are called .imgbackup-convert-<digits>.
const folderPrefix = ".imgbackup-convert-"

func folderName() string {
	var r [8]byte
	_, _ = rand.Read(r[:]) // never fails
	return folderPrefix + hex.EncodeToString(r[:])
}

// newFolder makes one in dir, after it has removed those that killed runs left.
func newFolder(dir string) (*folder, error) {
	in, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	// What cannot be swept stays.
	_ = sys.Sweep(in, func(name string, folder bool) bool { return folder && strings.HasPrefix(name, folderPrefix) })
	lock, name, err := sys.MkdirLocked(in, folderName, 0o700)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a folder for the image: %w", err), in.Close())
	}
	return &folder{in: in, name: name, lock: lock, path: filepath.Join(dir, name)}, nil
}

func (f *folder) remove() error {
	err := sys.RemoveLocked(f.in, f.name)
	_ = f.lock.Close() // it is only a lock
	_ = f.in.Close()   // only read
	return err
}
