// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
)

// makeDir makes a folder if it is missing. undo removes it, if it was made and is
// still empty.
func makeDir(repo *chain.Repository, folders *sys.FolderSyncer, path string) (undo func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	if err := outside(repo)(path); err != nil {
		return nil, err
	}
	err = os.Mkdir(path, 0o777)
	if errors.Is(err, fs.ErrExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("make the targets' folder: %w", err)
	}
	undo = func() { _ = os.Remove(path) }
	if err := folders.SyncPath(filepath.Dir(filepath.Clean(path))); err != nil {
		undo()
		return nil, err
	}
	return undo, nil
}
