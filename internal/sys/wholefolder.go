// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// WholeFolder is a folder that is filled under another name, and then appears under its own.
type WholeFolder struct {
	dir     *os.File
	name    string // in dir; empty: it has its own
	f       *os.File
	folders *FolderSyncer
}

// NewWholeFolder makes one in dir, whose name begins with prefix until it has its own.
func NewWholeFolder(dir *os.File, prefix string, folders *FolderSyncer) (*WholeFolder, error) {
	// There are file systems that know small letters only.
	f, name, err := MkdirLocked(dir, func() string { return prefix + strings.ToLower(rand.Text()[:16]) }, 0o777)
	if err != nil {
		return nil, fmt.Errorf("make a folder in %s: %w", dir.Name(), err)
	}
	return &WholeFolder{dir: dir, name: name, f: f, folders: folders}, nil
}

// SweepWholeFolders removes from dir what killed runs have left under names that begin with prefix.
func SweepWholeFolders(dir *os.File, prefix string) {
	// What cannot be removed is another's, and harms nothing.
	_ = Sweep(dir, func(name string, folder bool) bool { return folder && strings.HasPrefix(name, prefix) })
}

// Path is where it is until it has its own name.
func (w *WholeFolder) Path() string { return filepath.Join(w.dir.Name(), w.name) }

// File is the folder.
func (w *WholeFolder) File() *os.File { return w.f }

// Remove removes the folder and all that is in it, unless it has got its name.
func (w *WholeFolder) Remove() error {
	defer func() { _ = w.f.Close() }() // only locked
	if w.name == "" {
		return nil
	}
	return RemoveLocked(w.dir, w.name)
}

// Place gives the folder its name, where nothing may be, and makes that durable.
func (w *WholeFolder) Place(name string) error {
	if err := w.folders.Sync(w.f); err != nil {
		return err
	}
	err := RenameNew(w.dir, w.name, name)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s appeared meanwhile, and is not touched: %w", filepath.Join(w.dir.Name(), name), err)
	}
	if err != nil {
		return err
	}
	w.name = ""
	return w.folders.Sync(w.dir)
}
