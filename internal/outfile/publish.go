// SPDX-License-Identifier: Apache-2.0

package outfile

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

// Publish gives all outputs that are files their final names and makes that
// durable, or leaves (as far as the file system allows) everything as it was. A
// crash in between leaves some files with their final names: each of them is
// complete. Until [Settle], [Retract] can take it back.
func Publish(sys *System, outs []*Output) error {
	for _, o := range outs {
		if o.part != nil {
			o.naming = &naming{p: o.part, final: o.Base(), replaces: o.existing}
		}
	}
	return publish(sys, namings(outs))
}

// Settle removes what published outputs have replaced.
func Settle(outs []*Output) {
	for _, n := range namings(outs) {
		n.settle()
	}
}

// Retract takes the names of published outputs back, so that [Output.Discard]
// removes them. What was written in place stays.
func Retract(sys *System, outs []*Output) error { return retract(sys, namings(outs)) }

// namings are those of the outputs that have been published.
func namings(outs []*Output) []*naming {
	var files []*naming
	for _, o := range outs {
		if o.naming != nil {
			files = append(files, o.naming)
		}
	}
	return files
}

func publish(sys *System, files []*naming) error {
	err := func() error {
		for _, n := range files {
			if err := n.name(sys); err != nil {
				return err
			}
		}
		return syncFolders(files)
	}()
	if err != nil {
		return errors.Join(err, retract(sys, files))
	}
	for _, n := range files {
		n.p.named = true
	}
	return nil
}

func retract(sys *System, files []*naming) error {
	var errs []error
	for i := len(files) - 1; i >= 0; i-- {
		n := files[i]
		if err := n.unname(sys); err != nil {
			errs = append(errs, err)
			continue
		}
		n.p.named = false
	}
	return errors.Join(append(errs, syncFolders(files))...)
}

func syncFolders(files []*naming) error {
	for _, n := range files {
		if err := n.p.dir.sync(); err != nil {
			return err
		}
	}
	return nil
}

// settle removes what was replaced. If that fails all is well still, and the
// next run's sweep removes it.
func (n *naming) settle() {
	if n.p.named && n.done == exchanged {
		_ = unix.Unlinkat(int(n.p.dir.f.Fd()), n.p.name, 0)
	}
}

func (n *naming) path() string { return filepath.Join(n.p.dir.path, n.final) }

func (n *naming) name(sys *System) error {
	if n.replaces == nil {
		err := sys.Rename(n.p.dir.f, n.p.name, n.final, unix.RENAME_NOREPLACE)
		if Unsupported(err) {
			err = n.link()
		}
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s: %w", n.path(), ErrExists)
		}
		if err != nil {
			return fmt.Errorf("give %s its name: %w", n.path(), err)
		}
		n.done = moved
		return nil
	}
	err := sys.Rename(n.p.dir.f, n.p.name, n.final, unix.RENAME_EXCHANGE)
	if Unsupported(err) {
		if err := sys.Rename(n.p.dir.f, n.p.name, n.final, 0); err != nil {
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
func (n *naming) unname(sys *System) error {
	var err error
	switch n.done {
	case moved:
		err = sys.Rename(n.p.dir.f, n.final, n.p.name, 0)
	case exchanged:
		err = sys.Rename(n.p.dir.f, n.final, n.p.name, unix.RENAME_EXCHANGE)
	case replaced:
		return fmt.Errorf("%s has been replaced by the (complete) new file", n.path())
	}
	if err != nil {
		return fmt.Errorf("take back the name %s: %w", n.path(), err)
	}
	n.done = notNamed
	return nil
}
