// SPDX-License-Identifier: Apache-2.0

package outfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// Place is a target that has passed all checks that need no lock.
type Place struct {
	Path    string // absolute, with the folder's symbolic links resolved
	Format  qcow2.Format
	Device  bool // a block device
	Exists  bool // a regular file stands there
	Reuse   bool // and is written in place, rather than replaced
	Foreign bool // another program writes it
	ID      sys.ID
}

// Wanted says where a disk is to go.
type Wanted struct {
	Path   string       // a file in a folder that exists, or a block device
	Format qcow2.Format // qcow2.Raw, which a device has always, or qcow2.Qcow2; if Foreign, any
	Force  bool         // replace a file that exists, and write to a block device
	Reuse  bool         // write into the raw file or block device that is there

	// Foreign says that another program writes the file, by its path; see
	// [Output.NowAt].
	Foreign bool

	// Outside refuses a path, with the folder's links resolved, that lies where none
	// of ours may; nil: there is no such place.
	Outside func(path string) error
}

// Base is the target's file name in its folder.
func (p *Place) Base() string { return filepath.Base(p.Path) }

// InPlace reports whether what stands there is written over bit by bit.
func (p *Place) InPlace() bool { return p.Device || p.Reuse }

// Same reports whether two targets are one file.
func (p *Place) Same(q *Place) bool {
	return p.Path == q.Path || (p.Exists || p.Device) && q.ID == p.ID
}

// Resolve finds out what stands at a target's path, and refuses what may not be
// written to.
func Resolve(kernel *System, w Wanted) (*Place, error) {
	p := &Place{Format: w.Format, Reuse: w.Reuse, Foreign: w.Foreign}
	switch {
	case w.Format != qcow2.Raw && w.Format != qcow2.Qcow2 && !w.Foreign:
		return nil, usage.Errorf("format %.40q is neither raw nor qcow2", w.Format)
	case w.Reuse && w.Format != qcow2.Raw:
		return nil, usage.Errorf("only a raw file can be reused")
	}
	base := filepath.Base(w.Path)
	if w.Path == "" || strings.HasSuffix(w.Path, "/") || base == "." || base == ".." {
		return nil, usage.Errorf("%q is no name of a file", w.Path)
	}
	at, err := sys.Locate(w.Path)
	if err != nil {
		return nil, fmt.Errorf("the target's folder: %w", err)
	}
	p.Path = at
	fi, err := p.look(kernel)
	if w.Outside != nil {
		if err := w.Outside(p.Path); err != nil {
			return nil, err
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && w.Reuse:
		return nil, fmt.Errorf("there is nothing that could be reused: %w", err)
	case errors.Is(err, fs.ErrNotExist) && p.missing():
		return p, nil
	case err != nil:
		return nil, err
	}
	return p, p.judge(kernel, w, fi)
}

// missing reports whether nothing stands at the path, not even a link to nowhere.
func (p *Place) missing() bool {
	_, err := os.Lstat(p.Path)
	return errors.Is(err, fs.ErrNotExist)
}

// look returns what stands at the path. Logical volumes are known by symbolic
// links to their devices.
func (p *Place) look(kernel *System) (fs.FileInfo, error) {
	fi, err := os.Lstat(p.Path)
	if err != nil || fi.Mode()&fs.ModeSymlink == 0 {
		return fi, err
	}
	real, err := filepath.EvalSymlinks(p.Path)
	if err != nil {
		return nil, err
	}
	if fi, err = os.Lstat(real); err != nil {
		return nil, err
	}
	if !kernel.IsDevice(fi) {
		return nil, fmt.Errorf("%s is a symbolic link, which is not followed: give the path of the file itself", p.Path)
	}
	p.Path = real
	return fi, nil
}

// judge refuses what stands there, unless it may be written to.
func (p *Place) judge(kernel *System, w Wanted, fi fs.FileInfo) error {
	id, ok := sys.Identity(fi)
	if !ok {
		return fmt.Errorf("%s: the file has no identity", p.Path)
	}
	p.ID = id
	switch {
	case kernel.IsDevice(fi):
		p.Device = true
		if p.Format != qcow2.Raw {
			return usage.Errorf("%s is a block device, which is written to in the format raw", p.Path)
		}
	case fi.IsDir():
		return fmt.Errorf("the target %s is a folder", p.Path)
	case fi.Mode().IsRegular():
		p.Exists = true
	default:
		return fmt.Errorf("the target %s is neither a file nor a block device", p.Path)
	}
	if !w.Force && !w.Reuse {
		return fmt.Errorf("%s: %w", p.Path, ErrExists)
	}
	return nil
}

// openExisting opens and locks the file that is to be replaced or reused.
func (p *Place) openExisting(ctx context.Context, kernel *System, mode int, noLock bool) (*os.File, error) {
	f, err := os.OpenFile(p.Path, mode|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open the file at the target: %w", err)
	}
	err = lockExclusive(ctx, kernel, f, noLock)
	if err == nil {
		err = p.stillThere(f)
	}
	if err != nil {
		_ = release(f)
		return nil, err
	}
	return f, nil
}

// stillThere makes sure that what was opened is what the checks were made of.
func (p *Place) stillThere(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if id, ok := sys.Identity(fi); !ok || id != p.ID {
		return fmt.Errorf("%s: another file was put there meanwhile", p.Path)
	}
	return nil
}

// openDevice opens a block device for this process alone and locks it.
func (p *Place) openDevice(ctx context.Context, kernel *System, spec Spec) (*os.File, error) {
	f, err := kernel.OpenDevice(p.Path)
	if errors.Is(err, unix.EBUSY) {
		return nil, &qemu.InUseError{Path: p.Path, Why: "the device is mounted, or is part of a volume group, an array or another mapping"}
	}
	if err != nil {
		return nil, fmt.Errorf("open the device: %w", err)
	}
	if err := lockExclusive(ctx, kernel, f, spec.NoLock); err != nil {
		_ = release(f)
		return nil, err
	}
	size, err := deviceSize(f)
	if err == nil && size < spec.Size {
		err = fmt.Errorf("the device has %d bytes, the disk needs %d", size, spec.Size)
	}
	if err != nil {
		_ = release(f)
		return nil, fmt.Errorf("%s: %w", p.Path, err)
	}
	return f, nil
}
