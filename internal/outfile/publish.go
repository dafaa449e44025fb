// SPDX-License-Identifier: Apache-2.0

package outfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// naming is a finished partial file that is to get its final name.
type naming struct {
	p        *partial
	final    string   // name in p's folder
	replaces *os.File // the file that is replaced, open and locked; nil: none may be there
	done     namingState
	aside    string // the other name of what was replaced, once it is kept
}

type namingState int

const (
	notNamed  namingState = iota
	moved                 // under its final name, where nothing was
	exchanged             // likewise; what was there has the partial file's name
	kept                  // likewise; what was there has the name aside
	replaced              // likewise; what was there is gone
)

// Publish gives all outputs that are files their final names and makes that
// durable, or leaves (as far as the file system allows) everything as it was. A
// crash in between leaves some files with their final names: each of them is
// complete. Until [Settle], [Retract] can take it back.
func Publish(kernel *System, outs []*Output) error {
	for _, o := range outs {
		if o.part != nil {
			o.naming = &naming{p: o.part, final: o.Base(), replaces: o.existing}
		}
	}
	return publish(kernel, namings(outs))
}

// Settle removes what published outputs have replaced.
func Settle(outs []*Output) {
	for _, n := range namings(outs) {
		n.settle()
	}
}

// Retract takes the names of published outputs back, so that [Output.Discard]
// removes them. What was written in place stays.
func Retract(kernel *System, outs []*Output) error { return retract(kernel, namings(outs)) }

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

func publish(kernel *System, files []*naming) error {
	err := func() error {
		for _, n := range files {
			if err := n.name(kernel); err != nil {
				return err
			}
		}
		return syncFolders(kernel, files)
	}()
	if err != nil {
		return errors.Join(err, retract(kernel, files))
	}
	for _, n := range files {
		n.p.named = true
	}
	return nil
}

func retract(kernel *System, files []*naming) error {
	var errs []error
	for i := len(files) - 1; i >= 0; i-- {
		n := files[i]
		if err := n.unname(kernel); err != nil {
			errs = append(errs, err)
			continue
		}
		n.p.named = false
	}
	return errors.Join(append(errs, syncFolders(kernel, files))...)
}

func syncFolders(kernel *System, files []*naming) error {
	for _, n := range files {
		if err := kernel.Folders.Sync(n.p.dir.f); err != nil {
			return err
		}
	}
	return nil
}

// settle removes what was replaced. If that fails all is well still, and the
// next run's sweep removes it.
func (n *naming) settle() {
	switch {
	case !n.p.named:
	case n.done == exchanged:
		_ = sys.UnlinkAt(n.p.dir.f, n.p.name)
	case n.done == kept:
		_ = sys.UnlinkAt(n.p.dir.f, n.aside)
	}
}

func (n *naming) path() string { return filepath.Join(n.p.dir.path, n.final) }

func (n *naming) name(kernel *System) error {
	if n.replaces == nil {
		err := kernel.Rename(n.p.dir.f, n.p.name, n.final, unix.RENAME_NOREPLACE)
		if sys.Unsupported(err) {
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
	err := kernel.Rename(n.p.dir.f, n.p.name, n.final, unix.RENAME_EXCHANGE)
	old := n.p.name
	switch {
	case sys.Unsupported(err):
		if err = n.replace(kernel); err != nil || n.done == replaced {
			return err
		}
		old = n.aside
	case err != nil:
		return fmt.Errorf("replace %s: %w", n.path(), err)
	default:
		n.done = exchanged
	}
	same, err := sys.Named(n.p.dir.f, old, n.replaces)
	if err != nil {
		return fmt.Errorf("%s: %w", n.path(), err)
	}
	if !same {
		return fmt.Errorf("%s was replaced by someone else in the meantime: nothing has been changed", n.path())
	}
	return nil
}

// replace is rename with an exchange, where the file system has no such call (NFS). What
// was there gets a second name first; where that can't be, either, there is no way back.
func (n *naming) replace(kernel *System) error {
	aside := partialName(n.final)
	keeps := hardLink(n.p.dir.f, n.final, aside) == nil
	if err := kernel.Rename(n.p.dir.f, n.p.name, n.final, 0); err != nil {
		if keeps {
			_ = sys.UnlinkAt(n.p.dir.f, aside) // or the next run's sweep does
		}
		return fmt.Errorf("replace %s: %w", n.path(), err)
	}
	n.done = replaced
	if keeps {
		n.done, n.aside = kept, aside
	}
	return nil
}

// putBack undoes replace. At no time is there nothing under the final name.
func (n *naming) putBack(kernel *System) error {
	if err := hardLink(n.p.dir.f, n.final, n.p.name); err != nil {
		return err
	}
	return kernel.Rename(n.p.dir.f, n.aside, n.final, 0)
}

// link is rename without replacing, where the file system has no such call.
func (n *naming) link() error {
	dir := n.p.dir.f
	if err := hardLink(dir, n.p.name, n.final); err != nil {
		return err
	}
	return sys.UnlinkAt(dir, n.p.name)
}

func hardLink(dir *os.File, from, to string) error {
	return sys.Control(dir, func(fd int) error { return unix.Linkat(fd, from, fd, to, 0) })
}

// unname takes the final name back.
func (n *naming) unname(kernel *System) error {
	var err error
	switch n.done {
	case moved:
		err = kernel.Rename(n.p.dir.f, n.final, n.p.name, 0)
	case exchanged:
		err = kernel.Rename(n.p.dir.f, n.final, n.p.name, unix.RENAME_EXCHANGE)
	case kept:
		err = n.putBack(kernel)
	case replaced:
		return fmt.Errorf("%s has been replaced by the (complete) new file", n.path())
	}
	if err != nil {
		return fmt.Errorf("take back the name %s: %w", n.path(), err)
	}
	n.done = notNamed
	return nil
}
