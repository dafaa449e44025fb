// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// secretFile is a new file that only its owner may read, not for a moment others. It gets its name
// when it is complete and durable, and never in the place of another. nil: none is wanted.
type secretFile struct {
	flag, path string
	f          *os.File // under another name; named: it has been given
	named      bool
}

// newSecretFile begins the file that a flag names; empty: none.
func (a *app) newSecretFile(flag, path string) (*secretFile, error) {
	if path == "" {
		return nil, nil
	}
	if err := a.checkOutside(flag, path); err != nil {
		return nil, err
	}
	s := &secretFile{flag: flag, path: path}
	if _, err := os.Lstat(path); err == nil {
		return nil, s.standsAlready()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	var err error
	if s.f, err = os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.part"); err != nil { // 0600
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return s, nil
}

func (s *secretFile) standsAlready() error {
	return fmt.Errorf("%s: %s is there already, and is not replaced: %w", s.flag, s.path, fs.ErrExist)
}

// finish gives the file its content and its name.
func (s *secretFile) finish(text []byte) error {
	if s == nil {
		return nil
	}
	_, err := s.f.Write(text)
	if err == nil {
		err = s.f.Sync()
	}
	if err == nil {
		err = s.name()
	}
	if err == nil {
		s.named = true
		err = syncFolderOf(s.path)
	}
	if errors.Is(err, fs.ErrExist) {
		err = s.standsAlready()
	} else if err != nil {
		err = fmt.Errorf("%s: %w", s.flag, err)
	}
	return errors.Join(err, s.f.Close())
}

// name moves it where nothing is; a file system that can't do so has links.
func (s *secretFile) name() error {
	err := unix.Renameat2(unix.AT_FDCWD, s.f.Name(), unix.AT_FDCWD, s.path, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if err := os.Link(s.f.Name(), s.path); err != nil {
		return err
	}
	return os.Remove(s.f.Name())
}

// discard removes the file, of which nothing came.
func (s *secretFile) discard() error {
	if s == nil {
		return nil
	}
	_ = s.f.Close() // it may be so already
	if s.named {
		return os.Remove(s.path)
	}
	return os.Remove(s.f.Name())
}

// syncFolderOf makes the name of a new file durable.
func syncFolderOf(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join((&sys.FolderSyncer{}).Sync(dir), dir.Close())
}
