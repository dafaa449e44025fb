// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// folders are those that a restore makes, each after what it lies in.
func (o *Options) folders() []string {
	var all []string
	if o.MakeDir != "" {
		all = append(all, o.MakeDir)
	}
	for _, t := range o.Files {
		all = append(all, t.Folders...)
	}
	return all
}

// makeFolders makes those that are missing. undo removes those that were made and
// are still empty.
func makeFolders(repo *chain.Repository, folders *sys.FolderSyncer, paths []string) (undo func(), err error) {
	var undos []func()
	undo = func() {
		for _, u := range slices.Backward(undos) {
			u()
		}
	}
	for _, path := range paths {
		u, err := makeDir(repo, folders, path)
		if err != nil {
			undo()
			return nil, err
		}
		undos = append(undos, u)
	}
	return undo, nil
}

// checkFolders refuses a link in the place of a folder that files of the checkpoint have: they
// would go elsewhere.
func (o *Options) checkFolders() error {
	for _, t := range o.Files {
		for _, path := range t.Folders {
			if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
				return usage.Errorf("%s: %s is a symbolic link, which is not followed: remove it first", t.File.Role, path)
			}
		}
	}
	return nil
}

// makeDir makes a folder if it is missing. undo removes it, if it was made and is
// still empty.
func makeDir(repo *chain.Repository, folders *sys.FolderSyncer, path string) (undo func(), err error) {
	if err := outside(repo)(path); err != nil {
		return nil, err
	}
	if path, err = sys.Locate(path); err != nil {
		return nil, fmt.Errorf("make the targets' folder: %w", err)
	}
	err = os.Mkdir(path, 0o777)
	if errors.Is(err, fs.ErrExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("make the targets' folder: %w", err)
	}
	undo = func() { _ = os.Remove(path) }
	if err := folders.SyncPath(filepath.Dir(path)); err != nil {
		undo()
		return nil, err
	}
	return undo, nil
}
