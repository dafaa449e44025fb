// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/outfile"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
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

func findDisk(m *chain.Manifest, name string) (*chain.Disk, error) {
	if d, ok := m.Disk(name); ok {
		return d, nil
	}
	var names []string
	for i := range m.Disks {
		names = append(names, m.Disks[i].Name)
	}
	return nil, usage.Errorf("%w %s: %.80q (there is %s)", ErrUnknownDisk, m.Checkpoint, name, strings.Join(names, ", "))
}

// place is a target that has passed all checks that need no lock.
type place struct {
	*outfile.Place
	disk       *chain.Disk
	withBitmap bool // the image gets the checkpoint's bitmap
}

// places checks all targets before anything is touched.
func places(sys *outfile.System, repo *chain.Repository, m *chain.Manifest, targets []Target, o Options) ([]*place, error) {
	if len(targets) == 0 {
		return nil, usage.Errorf("there is no disk to restore")
	}
	var all []*place
	for _, t := range targets {
		d, err := findDisk(m, t.Disk)
		if err != nil {
			return nil, err
		}
		if o.Continue {
			if err := canContinue(t, d); err != nil {
				return nil, err
			}
		}
		at, err := outfile.Resolve(sys, outfile.Wanted{Path: t.Path, Format: t.Format, Force: o.Force, Outside: outside(repo)})
		if err != nil {
			return nil, &chain.DiskError{Disk: t.Disk, Err: err}
		}
		p := &place{Place: at, disk: d, withBitmap: o.Continue}
		for _, q := range all {
			if q.disk == p.disk {
				return nil, usage.Errorf("disk %s is given twice", t.Disk)
			}
			if p.Same(q.Place) {
				return nil, usage.Errorf("disks %s and %s would both go to %s", q.disk.Name, t.Disk, p.Path)
			}
		}
		all = append(all, p)
	}
	// Devices last: what goes wrong with the files leaves them as they were.
	slices.SortStableFunc(all, func(a, b *place) int {
		switch {
		case a.Device == b.Device:
			return 0
		case b.Device:
			return -1
		}
		return 1
	})
	return all, nil
}

// outside refuses what lies in the repository's folder.
func outside(repo *chain.Repository) func(path string) error {
	return func(path string) error { return objstore.CheckOutside(repo.Store, path) }
}

// canContinue tells why a target cannot get the checkpoint's bitmap.
func canContinue(t Target, d *chain.Disk) error {
	if t.Format != qcow2.Qcow2 {
		return usage.Errorf("disk %s: only a qcow2 can carry the bitmap that --continue gives it, not %s", t.Disk, t.Format)
	}
	if d.Bitmap == "" || d.Granularity == 0 {
		why := d.NoBitmapReason
		if why == "" {
			why = "the backup added none"
		}
		return usage.Errorf("disk %s cannot be continued, since its checkpoint has no bitmap: %s", t.Disk, why)
	}
	return nil
}

// open makes the target's output.
func (p *place) open(ctx context.Context, sys *outfile.System, o Options) (*outfile.Output, error) {
	create := qcow2.CreateOptions{ClusterSize: p.disk.ClusterSize}
	if p.withBitmap {
		create.Bitmap = &qcow2.CreateBitmap{Name: p.disk.Bitmap, Granularity: p.disk.Granularity}
	}
	out, err := outfile.Open(ctx, sys, p.Place, outfile.Spec{Size: p.disk.Size, Create: &create, NoLock: o.NoLock})
	if err != nil {
		return nil, &chain.DiskError{Disk: p.disk.Name, Err: err}
	}
	return out, nil
}
