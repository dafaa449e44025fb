// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// naming is a finished partial file that is to get its final name.
type naming struct {
	p        *partial
	final    string   // name in p's folder
	replaces *os.File // the file that is replaced, open and locked; nil: none may be there
	done     namingState
}

type namingState int

const (
	notNamed  namingState = iota
	moved                 // under its final name, where nothing was
	exchanged             // likewise; what was there has the partial file's name
	replaced              // likewise; what was there is gone
)

// publish gives all files their final names and makes that durable, or leaves
// (as far as the file system allows) everything as it was. A crash in between
// leaves some files with their final names: each of them is complete.
func publish(sys *system, files []*naming) error {
	err := func() error {
		for _, n := range files {
			if err := n.name(sys); err != nil {
				return err
			}
		}
		for _, n := range files {
			if err := n.p.dir.sync(); err != nil {
				return err
			}
		}
		return nil
	}()
	if err != nil {
		for i := len(files) - 1; i >= 0; i-- {
			if uerr := files[i].unname(sys); uerr != nil {
				err = errors.Join(err, uerr)
			}
		}
		return err
	}
	for _, n := range files {
		if n.done == exchanged {
			// What was replaced goes at last. If that fails the restore has
			// still succeeded, and the next one's sweep removes it.
			_ = unix.Unlinkat(int(n.p.dir.f.Fd()), n.p.name, 0)
		}
		n.p.named = true
	}
	return nil
}

func (n *naming) path() string { return filepath.Join(n.p.dir.path, n.final) }

func (n *naming) name(sys *system) error {
	if n.replaces == nil {
		err := sys.rename(n.p.dir.f, n.p.name, n.final, unix.RENAME_NOREPLACE)
		if unsupported(err) {
			err = n.link()
		}
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s: %w", n.path(), ErrTargetExists)
		}
		if err != nil {
			return fmt.Errorf("give %s its name: %w", n.path(), err)
		}
		n.done = moved
		return nil
	}
	err := sys.rename(n.p.dir.f, n.p.name, n.final, unix.RENAME_EXCHANGE)
	if unsupported(err) {
		if err := sys.rename(n.p.dir.f, n.p.name, n.final, 0); err != nil {
			return fmt.Errorf("replace %s: %w", n.path(), err)
		}
		n.done = replaced
		return nil
	}
	if err != nil {
		return fmt.Errorf("replace %s: %w", n.path(), err)
	}
	n.done = exchanged
	var was, now unix.Stat_t
	if err := unix.Fstat(int(n.replaces.Fd()), &was); err != nil {
		return fmt.Errorf("%s: %w", n.path(), err)
	}
	if err := unix.Fstatat(int(n.p.dir.f.Fd()), n.p.name, &now, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%s: %w", n.path(), err)
	}
	if was.Ino != now.Ino || was.Dev != now.Dev {
		return fmt.Errorf("%s was replaced by someone else in the meantime: nothing has been changed", n.path())
	}
	return nil
}

// link is rename without replacing, where the file system has no such call.
func (n *naming) link() error {
	dir := int(n.p.dir.f.Fd())
	if err := unix.Linkat(dir, n.p.name, dir, n.final, 0); err != nil {
		return err
	}
	return unix.Unlinkat(dir, n.p.name, 0)
}

// unname takes the final name back.
func (n *naming) unname(sys *system) error {
	var err error
	switch n.done {
	case moved:
		err = sys.rename(n.p.dir.f, n.final, n.p.name, 0)
	case exchanged:
		err = sys.rename(n.p.dir.f, n.final, n.p.name, unix.RENAME_EXCHANGE)
	case replaced:
		return fmt.Errorf("%s has been replaced by the (complete) restored disk", n.path())
	}
	if err != nil {
		return fmt.Errorf("take back the name %s: %w", n.path(), err)
	}
	n.done = notNamed
	return nil
}
