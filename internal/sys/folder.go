// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// FolderSyncer makes durable what was created in folders, renamed or removed. Some
// network and FUSE file systems cannot do that for a folder; nothing more can be
// done there, so that is told once, and no failure. The zero value tells nobody.
type FolderSyncer struct {
	Note func(msg string)         // what a person should know; may be nil
	Call func(dir *os.File) error // in place of fsync(2), for tests; nil: fsync(2)

	told sync.Once
}

// Sync makes an open folder durable.
func (s *FolderSyncer) Sync(dir *os.File) error {
	fsync := s.Call
	if fsync == nil {
		fsync = func(dir *os.File) error { return Control(dir, unix.Fsync) }
	}
	err := Restart(func() error { return fsync(dir) })
	switch {
	case err == nil:
		return nil
	case Unsupported(err), errors.Is(err, unix.EBADF): // which some answer for what was opened to read
		s.told.Do(func() {
			if s.Note != nil {
				s.Note(fmt.Sprintf("%s: the file system cannot sync folders (%v): what was just created there may be lost in a power failure", dir.Name(), err))
			}
		})
		return nil
	}
	return &fs.PathError{Op: "sync the folder", Path: dir.Name(), Err: err}
}

// SyncPath makes the folder at path durable.
func (s *FolderSyncer) SyncPath(path string) error {
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }() // only read
	return s.Sync(dir)
}
