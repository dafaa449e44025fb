// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// folder is a private folder beside a target.
type folder struct {
	path string
	lock *os.File
}

// Private folders are called .imgbackup-convert-<digits>.
const folderPrefix = ".imgbackup-convert-"

// newFolder makes one in dir, after it has removed those that killed runs left.
func newFolder(dir string) (*folder, error) {
	sweep(dir)
	path, err := os.MkdirTemp(dir, folderPrefix)
	if err != nil {
		return nil, fmt.Errorf("make a folder for the image: %w", err)
	}
	f := &folder{path: path}
	if f.lock, err = os.Open(path); err == nil {
		err = unix.Flock(int(f.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		// A sweep may have taken it for stale before it was locked.
		_, err = os.Lstat(path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the folder for the image: %w", err), f.remove())
	}
	return f, nil
}

func (f *folder) remove() error {
	err := os.RemoveAll(f.path)
	if f.lock != nil {
		_ = f.lock.Close() // it is only a lock
	}
	return err
}

// sweep removes the private folders that nobody has locked. It does what it can.
func sweep(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), folderPrefix) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(path)
		}
		_ = f.Close()
	}
}
