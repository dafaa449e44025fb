// SPDX-License-Identifier: Apache-2.0

package newhost

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// What is not whole yet is in folders that are called .imgbackup-restoring-<16 hex digits>.
const partPrefix = ".imgbackup-restoring-"

func partName() string {
	var r [8]byte
	_, _ = rand.Read(r[:]) // never fails
	return partPrefix + hex.EncodeToString(r[:])
}

// sweep removes what killed runs have left.
func sweep(dir *os.File) {
	// What cannot be removed is another's, and harms nothing.
	_ = sys.Sweep(dir, func(name string, folder bool) bool { return folder && strings.HasPrefix(name, partPrefix) })
}

// part is a folder that has not yet got its name.
type part struct {
	dir     *os.File
	name    string // in dir; empty: it has its name
	f       *os.File
	folders *sys.FolderSyncer
}

func newPart(dir *os.File, folders *sys.FolderSyncer) (*part, error) {
	f, name, err := sys.MkdirLocked(dir, partName, 0o777)
	if err != nil {
		return nil, fmt.Errorf("make a folder in %s: %w", dir.Name(), err)
	}
	return &part{dir: dir, name: name, f: f, folders: folders}, nil
}

// path is where it is now.
func (p *part) path() string { return filepath.Join(p.dir.Name(), p.name) }

// remove removes the folder and all that is in it, unless it has got its name.
func (p *part) remove() error {
	defer func() { _ = p.f.Close() }() // only locked
	if p.name == "" {
		return nil
	}
	return sys.RemoveLocked(p.dir, p.name)
}

// place gives the folder its name, where nothing may be, and makes that durable.
func (p *part) place(name string) error {
	if err := p.folders.Sync(p.f); err != nil {
		return err
	}
	err := sys.RenameNew(p.dir, p.name, name)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s appeared meanwhile, and is not touched: %w", filepath.Join(p.dir.Name(), name), err)
	}
	if err != nil {
		return err
	}
	p.name = ""
	return p.folders.Sync(p.dir)
}
