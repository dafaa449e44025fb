// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Table is the partition table of a disk.
type Table struct {
	Disk string `json:"disk"`
	Kind string `json:"kind"` // gpt, msdos, …; empty: it has none
}

// Volume is where a file system is, or could be.
type Volume struct {
	Device string   `json:"device"` // as libguestfs names it: /dev/sda1, /dev/vg0/root, btrfsvol:/dev/sda1/home
	Type   string   `json:"type"`   // ext4, xfs, swap, crypto_LUKS, unknown, …
	Disks  []string `json:"disks"`  // that it lies on, by name; none: not known
}

// The types of volumes that hold no file system that could be looked into.
const (
	TypeLUKS    = "crypto_LUKS"
	TypeSwap    = "swap"
	TypeUnknown = "unknown"
)

// HasFiles reports whether there is a file system that is known.
func (v *Volume) HasFiles() bool {
	switch v.Type {
	case TypeLUKS, "BitLocker", TypeSwap, TypeUnknown, "LVM2_member", "linux_raid_member", "":
		return false
	}
	return true
}

// Encrypted reports whether what is inside can't be seen without a key.
func (v *Volume) Encrypted() bool { return v.Type == TypeLUKS || v.Type == "BitLocker" }

// Tables returns the partition table of each disk.
func (s *Session) Tables(ctx context.Context) ([]Table, error) {
	var all []Table
	for i, d := range s.disks {
		kind, err := s.text(ctx, "part-get-parttype", s.devices[i])
		var no *CallError
		if errors.As(err, &no) {
			kind, err = "", nil
		}
		if err != nil {
			return nil, fmt.Errorf("libguestfs: partition table of %s: %w", d.Name, err)
		}
		// parted calls a file system on a whole disk a table, too.
		if kind == "loop" || kind == "unknown" {
			kind = ""
		}
		all = append(all, Table{Disk: d.Name, Kind: kind})
	}
	return all, nil
}

// Volumes returns what [Session.Tables] divide the disks into, logical volumes and file
// systems of whole disks included, sorted by device.
func (s *Session) Volumes(ctx context.Context) ([]Volume, error) {
	if s.volumes != nil {
		return s.volumes, nil
	}
	types, err := s.fields(ctx, "list-filesystems")
	if err != nil {
		return nil, fmt.Errorf("libguestfs: %w", err)
	}
	if err := s.addEncrypted(ctx, types); err != nil {
		return nil, err
	}
	groups, err := s.groups(ctx)
	if err != nil {
		return nil, err
	}
	var all []Volume
	for _, device := range slices.Sorted(maps.Keys(types)) {
		base := Base(device)
		if err := checkDevice(base); err != nil {
			return nil, err
		}
		all = append(all, Volume{Device: device, Type: types[device], Disks: s.disksOf(base, groups)})
	}
	s.volumes = all
	return all, nil
}

// addEncrypted adds what libguestfs leaves out of its list: what is encrypted.
func (s *Session) addEncrypted(ctx context.Context, types map[string]string) error {
	known := make(map[string]bool) // what is no volume by itself, or listed
	for device := range types {
		known[Base(device)] = true
	}
	partitions, err := s.lines(ctx, "list-partitions")
	if err != nil {
		return fmt.Errorf("libguestfs: %w", err)
	}
	for _, p := range partitions {
		known[strings.TrimRight(p, "0123456789")] = true
	}
	for _, list := range []string{"list-devices", "list-partitions", "lvs"} {
		devices, err := s.lines(ctx, list)
		if err != nil {
			return fmt.Errorf("libguestfs: %w", err)
		}
		for _, device := range devices {
			if known[device] {
				continue
			}
			kind, err := s.text(ctx, "vfs-type", device)
			if v := (Volume{Type: kind}); err == nil && v.Encrypted() {
				types[device] = kind
			}
			if errors.Is(err, ErrEnded) || ctx.Err() != nil {
				return err
			}
		}
	}
	return nil
}

// Base is the block device that a name of a volume belongs to: of btrfsvol:/dev/sda1/home
// /dev/sda1.
func Base(device string) string {
	rest, ok := strings.CutPrefix(device, "btrfsvol:")
	if !ok {
		return device
	}
	parts := strings.SplitN(rest, "/", 4)
	return strings.Join(parts[:min(3, len(parts))], "/")
}

var devicePattern = regexp.MustCompile(`^/dev/[A-Za-z0-9_.+/-]{1,250}$`)

func checkDevice(device string) error {
	if !devicePattern.MatchString(device) {
		return fmt.Errorf("libguestfs: %.80q is no name of a device", device)
	}
	return nil
}

// groups are the disks that each volume group of LVM lies on.
func (s *Session) groups(ctx context.Context) (map[string][]string, error) {
	names, err := s.lines(ctx, "vgs")
	if err != nil || len(names) == 0 {
		return nil, err
	}
	devices, err := s.lines(ctx, "pvs")
	if err != nil {
		return nil, err
	}
	disks := make(map[string]string) // of each physical volume, by UUID without dashes
	for _, device := range devices {
		id, err := s.text(ctx, "pvuuid", device)
		if err != nil {
			return nil, err
		}
		disks[strings.ReplaceAll(id, "-", "")] = s.diskOf(device)
	}
	all := make(map[string][]string)
	for _, name := range names {
		ids, err := s.lines(ctx, "vgpvuuids", name)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			if disk := disks[strings.ReplaceAll(id, "-", "")]; disk != "" && !slices.Contains(all[name], disk) {
				all[name] = append(all[name], disk)
			}
		}
	}
	return all, nil
}

func (s *Session) disksOf(device string, groups map[string][]string) []string {
	if disk := s.diskOf(device); disk != "" {
		return []string{disk}
	}
	parts := strings.Split(device, "/")
	if len(parts) == 4 {
		return groups[parts[2]]
	}
	return nil
}

// diskOf is the disk that a device is, or a partition of it.
func (s *Session) diskOf(device string) string {
	for i, d := range s.devices {
		if rest, ok := strings.CutPrefix(device, d); ok && strings.Trim(rest, "0123456789") == "" {
			return s.disks[i].Name
		}
	}
	return ""
}

// Find returns the volume of that device.
func Find(all []Volume, device string) (Volume, bool) {
	i := slices.IndexFunc(all, func(v Volume) bool { return v.Device == device })
	if i < 0 {
		return Volume{}, false
	}
	return all[i], true
}

// OnDisk are the volumes with files that lie on a disk; an empty name means all. Of the
// subvolumes of a Btrfs only the file system itself is one.
func OnDisk(all []Volume, disk string) []Volume {
	var some []Volume
	for _, v := range all {
		if v.HasFiles() && Base(v.Device) == v.Device && (disk == "" || slices.Contains(v.Disks, disk)) {
			some = append(some, v)
		}
	}
	slices.SortFunc(some, func(a, b Volume) int { return cmp.Compare(a.Device, b.Device) })
	return some
}
