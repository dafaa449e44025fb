// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qemu"
)

// stateFolder is the state of an emulated TPM, as swtpm keeps it in a folder: a file
// or two, in libvirt's layout in a folder named after the TPM's version, and a .lock,
// which a running swtpm holds.
type stateFolder struct {
	path  string
	names []string // of its files, slash-separated, sorted; the locks are left out
}

// maxStateFiles bounds the files of a TPM's state; swtpm has three at most.
const maxStateFiles = 64

const swtpmLock = ".lock"

// openFolder opens every file of a TPM's state.
func (s *session) openFolder(ctx context.Context, f *file) (err error) {
	f.folder = &stateFolder{path: f.req.Path}
	if f.folder.names, err = f.folder.list(); err != nil {
		return err
	}
	if len(f.folder.names) == 0 && !f.absent {
		s.hooks.note("the %s %s is empty, and is not archived", f.req.Role, f.req.Path)
		f.absent = true
	}
	for _, name := range f.folder.names {
		if err := s.openOne(ctx, f, name, filepath.Join(f.folder.path, filepath.FromSlash(name))); err != nil {
			return err
		}
	}
	return nil
}

// list returns the names of the files, and fails if a swtpm works on them.
func (d *stateFolder) list() ([]string, error) {
	var names []string
	err := filepath.WalkDir(d.path, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			return nil
		case e.Name() == swtpmLock:
			return checkSwtpm(path)
		case !e.Type().IsRegular():
			return usage.Errorf("%s is no regular file", path)
		}
		name, err := filepath.Rel(d.path, path)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		if err := chain.CheckFileName(name); err != nil || len(names) == maxStateFiles {
			return usage.Errorf("%s is not the state of a TPM: it has %s, or more than %d files", d.path, path, maxStateFiles)
		}
		names = append(names, name)
		return nil
	})
	slices.Sort(names)
	return names, err
}

// checkSwtpm returns an error if a swtpm holds the lock.
func checkSwtpm(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	held := unix.Flock_t{Type: unix.F_WRLCK}
	err = sys.Control(f, func(fd int) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &held) })
	err = errors.Join(err, f.Close())
	switch {
	case err != nil:
		return fmt.Errorf("%s: does a swtpm run? %w", path, err)
	case held.Type != unix.F_UNLCK:
		return &qemu.InUseError{Path: path, Why: "a swtpm is running there, so the domain is: shut it down first"}
	}
	return nil
}

// compare fails when there are other files now.
func (d *stateFolder) compare() error {
	names, err := d.list()
	if err != nil {
		return err
	}
	if !slices.Equal(names, d.names) {
		return &qemu.InUseError{Path: d.path, Why: fmt.Sprintf("it had the files %s while they were read, and has %s now%s",
			strings.Join(d.names, ", "), strings.Join(names, ", "), nothingCommitted)}
	}
	return nil
}
