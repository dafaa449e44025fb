// SPDX-License-Identifier: Apache-2.0

package restore

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
	"github.com/imgbackup/imgbackup/qcow2"
)

// Target says where one disk of a checkpoint goes.
type Target struct {
	Disk   string       // its name, exactly
	Path   string       // a file in a folder that exists, or a block device
	Format qcow2.Format // of a device: qcow2.Raw
}

// TargetsIn makes targets DIR/<disk>.<format> for the disks named, or for all
// disks of the checkpoint if none is. The names are validated: a manifest is
// not trusted to name files.
func TargetsIn(m *chain.Manifest, disks []string, dir string, format qcow2.Format) ([]Target, error) {
	if len(disks) == 0 {
		for i := range m.Disks {
			disks = append(disks, m.Disks[i].Target)
		}
	}
	var targets []Target
	for _, name := range disks {
		d, err := findDisk(m, name)
		if err != nil {
			return nil, err
		}
		if err := chain.ValidName(d.Target); err != nil {
			return nil, fmt.Errorf("%w: disk %.80q cannot name a file: %w", ErrUsage, d.Target, err)
		}
		targets = append(targets, Target{Disk: name, Path: filepath.Join(dir, d.Target+"."+string(format)), Format: format})
	}
	return targets, nil
}

func findDisk(m *chain.Manifest, name string) (*chain.Disk, error) {
	if d, ok := m.Disk(name); ok {
		return d, nil
	}
	var names []string
	for i := range m.Disks {
		names = append(names, m.Disks[i].Target)
	}
	return nil, fmt.Errorf("%w %s: %.80q (there is %s)", ErrUnknownDisk, m.Checkpoint, name, strings.Join(names, ", "))
}

// place is a target that has passed all checks that need no lock.
type place struct {
	Target
	disk   *chain.Disk
	device bool
	path   string // with the folder's symbolic links resolved
	exists bool   // as a regular file, which is to be replaced
	id     [2]uint64
}

// base is the target's file name in its folder.
func (p *place) base() string { return filepath.Base(p.path) }

// places checks all targets before anything is touched.
func places(sys *system, m *chain.Manifest, targets []Target, o Options) ([]*place, error) {
	if len(targets) == 0 {
		return nil, fmt.Errorf("%w: there is no disk to restore", ErrUsage)
	}
	var all []*place
	for _, t := range targets {
		d, err := findDisk(m, t.Disk)
		if err != nil {
			return nil, err
		}
		p := &place{Target: t, disk: d}
		if err := p.checkFormat(o); err != nil {
			return nil, err
		}
		if err := p.resolve(sys, o); err != nil {
			return nil, err
		}
		for _, q := range all {
			if q.Disk == p.Disk {
				return nil, fmt.Errorf("%w: disk %s is given twice", ErrUsage, p.Disk)
			}
			if q.path == p.path || (p.exists || p.device) && q.id == p.id {
				return nil, fmt.Errorf("%w: disks %s and %s would both go to %s", ErrUsage, q.Disk, p.Disk, p.path)
			}
		}
		all = append(all, p)
	}
	// Devices last: what goes wrong with the files leaves them as they were.
	slices.SortStableFunc(all, func(a, b *place) int {
		switch {
		case a.device == b.device:
			return 0
		case b.device:
			return -1
		}
		return 1
	})
	return all, nil
}

func (p *place) checkFormat(o Options) error {
	switch p.Format {
	case qcow2.Raw, qcow2.Qcow2:
	default:
		return fmt.Errorf("%w: disk %s: format %.40q is neither raw nor qcow2", ErrUsage, p.Disk, p.Format)
	}
	if !o.Continue {
		return nil
	}
	if p.Format != qcow2.Qcow2 {
		return fmt.Errorf("%w: disk %s: only a qcow2 can carry the bitmap that --continue gives it, not %s", ErrUsage, p.Disk, p.Format)
	}
	if p.disk.Bitmap == "" || p.disk.Granularity == 0 {
		why := p.disk.NoBitmapReason
		if why == "" {
			why = "the backup added none"
		}
		return fmt.Errorf("%w: disk %s cannot be continued, since its checkpoint has no bitmap: %s", ErrUsage, p.Disk, why)
	}
	return nil
}

// resolve finds out what stands at the target's path.
func (p *place) resolve(sys *system, o Options) error {
	base := filepath.Base(p.Path)
	if p.Path == "" || strings.HasSuffix(p.Path, "/") || base == "." || base == ".." {
		return fmt.Errorf("%w: disk %s: %q is no name of a file", ErrUsage, p.Disk, p.Path)
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(p.Path))
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return fmt.Errorf("disk %s: the target's folder: %w", p.Disk, err)
	}
	p.path = filepath.Join(dir, base)
	fi, err := os.Lstat(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("disk %s: %w", p.Disk, err)
	}
	if fi.Mode()&fs.ModeSymlink != 0 {
		// Logical volumes are known by symbolic links to their devices.
		real, err := filepath.EvalSymlinks(p.path)
		if err != nil {
			return fmt.Errorf("disk %s: %w", p.Disk, err)
		}
		if fi, err = os.Lstat(real); err != nil {
			return fmt.Errorf("disk %s: %w", p.Disk, err)
		}
		if !sys.isDevice(fi) {
			return fmt.Errorf("disk %s: %s is a symbolic link, which is not followed: give the path of the file itself", p.Disk, p.path)
		}
		p.path = real
	}
	id, ok := identity(fi)
	if !ok {
		return fmt.Errorf("disk %s: %s: the file has no identity", p.Disk, p.path)
	}
	p.id = id
	switch {
	case sys.isDevice(fi):
		p.device = true
		if p.Format != qcow2.Raw {
			return fmt.Errorf("%w: disk %s: %s is a block device, which is restored to in the format raw", ErrUsage, p.Disk, p.path)
		}
	case fi.IsDir():
		return fmt.Errorf("disk %s: the target %s is a folder", p.Disk, p.path)
	case fi.Mode().IsRegular():
		p.exists = true
	default:
		return fmt.Errorf("disk %s: the target %s is neither a file nor a block device", p.Disk, p.path)
	}
	if !o.Force {
		return fmt.Errorf("disk %s: %s: %w", p.Disk, p.path, ErrTargetExists)
	}
	return nil
}

// openExisting opens and locks the file that is to be replaced.
func (p *place) openExisting(ctx context.Context, noLock bool) (*os.File, error) {
	f, err := os.OpenFile(p.path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("disk %s: look whether the file to be replaced is in use: %w", p.Disk, err)
	}
	if err := lockExclusive(ctx, f, noLock); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// openDevice opens a block device for this process alone and locks it.
func (p *place) openDevice(ctx context.Context, sys *system, noLock bool) (*os.File, error) {
	f, err := sys.openDevice(p.path)
	if errors.Is(err, unix.EBUSY) {
		return nil, &qcow2.InUseError{Path: p.path, Why: "the device is mounted, or is part of a volume group, an array or another mapping"}
	}
	if err != nil {
		return nil, fmt.Errorf("disk %s: open the device: %w", p.Disk, err)
	}
	if err := lockExclusive(ctx, f, noLock); err != nil {
		_ = f.Close()
		return nil, err
	}
	size, err := deviceSize(f)
	if err == nil && size < p.disk.Size {
		err = fmt.Errorf("the device has %d bytes, the disk needs %d", size, p.disk.Size)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("disk %s: %s: %w", p.Disk, p.path, err)
	}
	return f, nil
}
