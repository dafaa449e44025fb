// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"errors"
	"fmt"
	"slices"
)

// Align fills in what a backup leaves to libvirt: the disks that it does not
// list, each disk's mode and checkpoint, and the files, named after the disk's
// own with a dot and suffix behind it. What cannot be meant for this domain is
// an error, as it is in libvirt.
func (b *Backup) Align(d *Domain, suffix string) (*Backup, error) {
	out, err := b.align(d, suffix)
	if err != nil {
		return nil, fmt.Errorf("backup XML: %w", err)
	}
	return out, nil
}

func (b *Backup) align(d *Domain, suffix string) (*Backup, error) {
	if len(d.Disks) == 0 {
		return nil, errors.New("a domain must have at least one disk to be backed up")
	}
	if b.Mode == Pull && b.Server != nil && b.Server.Transport == "tcp" && b.Server.Port == 0 {
		return nil, errors.New("the <server> must name a TCP port")
	}
	out := *b
	out.Disks = slices.Clone(b.Disks)
	seen := make(map[string]struct{})
	for i := range out.Disks {
		bd := &out.Disks[i]
		disk, ok := d.Disk(bd.Name)
		if !ok {
			return nil, fmt.Errorf("the domain %s has no disk named %s", d.Name, bd.Name)
		}
		if _, twice := seen[bd.Name]; twice {
			return nil, fmt.Errorf("disk %s is listed twice", bd.Name)
		}
		seen[bd.Name] = struct{}{}
		if bd.BackupMode == Incremental && bd.Incremental == "" && b.Incremental == "" {
			return nil, fmt.Errorf("disk %s is to be incremental, but neither it nor the backup names a checkpoint in incremental", bd.Name)
		}
		if bd.Backup {
			if disk.Empty() {
				return nil, fmt.Errorf("disk %s has no medium", bd.Name)
			}
			if err := bd.assignStore(disk, suffix); err != nil {
				return nil, err
			}
		}
	}
	for i := range d.Disks {
		disk := &d.Disks[i]
		if _, listed := seen[disk.Target]; listed {
			continue
		}
		bd := BackupDisk{Name: disk.Target}
		if len(b.Disks) == 0 && !disk.Empty() && !disk.ReadOnly {
			bd.Backup = true
			if err := bd.assignStore(disk, suffix); err != nil {
				return nil, err
			}
		}
		out.Disks = append(out.Disks, bd)
	}
	if !slices.ContainsFunc(out.Disks, func(bd BackupDisk) bool { return bd.Backup }) {
		return nil, errors.New("no disk is selected for the backup")
	}
	for i := range out.Disks {
		out.Disks[i].assignMode(b.Incremental)
	}
	return &out, nil
}

// assignMode: what the disk says counts; else it is incremental if the disk or
// the backup names a checkpoint. A full disk passes the backup's over.
func (bd *BackupDisk) assignMode(incremental string) {
	if !bd.Backup {
		return
	}
	if bd.BackupMode == "" {
		bd.BackupMode = Full
		if incremental != "" || bd.Incremental != "" {
			bd.BackupMode = Incremental
		}
	}
	if bd.BackupMode == Incremental && bd.Incremental == "" {
		bd.Incremental = incremental
	}
}

// assignStore names a file beside the disk's own, unless a store was given.
func (bd *BackupDisk) assignStore(disk *Disk, suffix string) error {
	if bd.Store != nil {
		if bd.Type == "" {
			bd.Type = TypeFile
		}
		return nil
	}
	if disk.Type != TypeFile {
		return fmt.Errorf("refusing to make up a file name for disk %s, whose source is no file (type %s)", disk.Target, disk.Type)
	}
	bd.Type = TypeFile
	bd.Store = &Store{Path: disk.Path + "." + suffix}
	return nil
}
