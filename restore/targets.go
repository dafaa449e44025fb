// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"path/filepath"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/view"
)

// Target says where one disk of a checkpoint goes.
type Target struct {
	Disk   string       // its name, exactly
	Path   string       // a file in a folder that exists, a block device, or Stdout
	Format qcow2.Format // raw, qcow2 or one of qemu-img; of a device and of Stdout: raw
}

// TargetsIn makes targets DIR/<disk>.<format> for the disks named, or for all
// disks of the checkpoint if none is. The names are validated: a manifest is
// not trusted to name files.
func TargetsIn(m *chain.Manifest, disks []string, dir string, format qcow2.Format) ([]Target, error) {
	if len(disks) == 0 {
		for i := range m.Disks {
			disks = append(disks, m.Disks[i].Name)
		}
	}
	var targets []Target
	for _, name := range disks {
		d, err := findDisk(m, name)
		if err != nil {
			return nil, err
		}
		if err := chain.CheckName(d.Name); err != nil {
			return nil, usage.Errorf("disk %.80q cannot name a file: %w", d.Name, err)
		}
		targets = append(targets, Target{Disk: name, Path: filepath.Join(dir, d.Name+"."+string(format)), Format: format})
	}
	return targets, nil
}

// TargetsInPlace makes targets where the disks that are named, or all disks of the
// checkpoint, were when it was made, in the formats that they had. A manifest is not
// trusted to name files: who uses them looks at what stands there first.
func TargetsInPlace(m *chain.Manifest, disks []string) ([]Target, error) {
	if len(disks) == 0 {
		for i := range m.Disks {
			disks = append(disks, m.Disks[i].Name)
		}
	}
	var targets []Target
	for _, name := range disks {
		d, err := findDisk(m, name)
		if err != nil {
			return nil, err
		}
		targets = append(targets, Target{Disk: name, Path: d.Source.Path, Format: qcow2.Format(d.Source.Format)})
	}
	return targets, nil
}

func findDisk(m *chain.Manifest, name string) (*chain.Disk, error) {
	if d, ok := m.Disk(name); ok {
		return d, nil
	}
	return nil, view.UnknownDisk(m, name)
}

// check refuses what makes no sense whatever stands at the targets.
func (r *restoring) check(targets []Target) error {
	if len(targets) == 0 && len(r.o.Files) == 0 {
		return usage.Errorf("there is no disk to restore")
	}
	for _, t := range targets {
		d, err := findDisk(r.m, t.Disk)
		if err != nil {
			return err
		}
		if err := r.checkTarget(t, d, len(targets)); err != nil {
			return &chain.DiskError{Disk: t.Disk, Err: err}
		}
	}
	return nil
}

func (r *restoring) checkTarget(t Target, d *chain.Disk, targets int) error {
	if r.o.SkipDamaged && r.o.Continue {
		return usage.Errorf("a disk that may have lost something cannot go on with its bitmap: --skip-damaged and --continue exclude each other")
	}
	if len(d.Maps) == 0 {
		return usage.Errorf("the checkpoint holds no data of it, only bitmaps")
	}
	if err := r.o.QemuImg.Check(t.Format); err != nil {
		return err
	}
	if t.Path == Stdout {
		return r.o.checkStdout(t, targets)
	}
	if r.o.Continue && !r.o.ContinueSome {
		return r.o.checkContinue(t, d)
	}
	return nil
}

// outside refuses what lies in the repository's folder.
func outside(repo *chain.Repository) func(path string) error {
	return func(path string) error { return objstore.CheckOutside(repo.Store, path) }
}

// checkContinue refuses a target that cannot get the checkpoint's bitmap.
func (o *Options) checkContinue(t Target, d *chain.Disk) error {
	switch {
	case t.Format != qcow2.Qcow2:
		return usage.Errorf("only a qcow2 can carry the bitmap that --continue gives it, not %s", t.Format)
	case o.foreign(t.Format):
		return usage.Errorf("what qemu-img writes carries no bitmap: --continue is for a qcow2 that is neither compressed nor encrypted and has no --format-option")
	case d.Bitmap == "" || d.Granularity == 0:
		why := d.NoBitmapReason
		if why == "" {
			why = "the backup added none"
		}
		return usage.Errorf("it cannot be continued, since its checkpoint has no bitmap: %s", why)
	}
	return nil
}
