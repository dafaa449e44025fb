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
	Device string   `json:"device"` // as libguestfs names it: /dev/sda1, /dev/vg0/root, /dev/md127
	Type   string   `json:"type"`   // ext4, xfs, swap, crypto_LUKS, unknown, …
	Disks  []string `json:"disks"`  // that it lies on, by name; none: not known
	Opened bool     `json:"opened"` // it is encrypted, and what is in it is another volume
}

// The types of volumes that hold no file system that could be looked into.
const (
	TypeLUKS    = "crypto_LUKS"
	TypeSwap    = "swap"
	TypeUnknown = "unknown"
	TypeDynamic = "LDM" // a partition of a dynamic disk of Windows
)

// HasFiles reports whether there is a file system that is known.
func (v *Volume) HasFiles() bool {
	switch v.Type {
	case TypeLUKS, "BitLocker", TypeSwap, TypeUnknown, TypeDynamic, "":
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

// Volumes returns what [Session.Tables] divide the disks into, logical volumes, RAIDs and
// whole disks without a table included, sorted by device. What is only a part of such a
// volume is left out.
func (s *Session) Volumes(ctx context.Context) ([]Volume, error) {
	if s.volumes != nil {
		return s.volumes, nil
	}
	devices, err := s.list(ctx)
	if err != nil {
		return nil, fmt.Errorf("libguestfs: %w", err)
	}
	groups, err := s.groups(ctx)
	if err != nil {
		return nil, fmt.Errorf("libguestfs: %w", err)
	}
	dynamic, err := s.findDynamic(ctx)
	if err != nil {
		return nil, fmt.Errorf("libguestfs: %w", err)
	}
	all := []Volume{}
	for _, device := range devices {
		if disk := s.diskOf(device); dynamic[disk] {
			all = append(all, Volume{Device: device, Type: TypeDynamic, Disks: []string{disk}})
			continue
		}
		kind, err := s.text(ctx, "vfs-type", device)
		if err != nil && !errors.As(err, new(*CallError)) {
			return nil, fmt.Errorf("libguestfs: %s: %w", device, err)
		}
		if kind == "" {
			kind = TypeUnknown
		}
		if !strings.HasSuffix(kind, "_member") {
			all = append(all, Volume{Device: device, Type: kind, Disks: s.disksOf(device, groups), Opened: s.unlocked[device]})
		}
	}
	s.volumes = all
	return all, nil
}

// list is what there could be a file system on. The appliance's own list takes the same,
// and a minute where it is emulated, for it looks into each.
func (s *Session) list(ctx context.Context) ([]string, error) {
	partitions, err := s.lines(ctx, "list-partitions")
	if err != nil {
		return nil, err
	}
	divided := make(map[string]bool)
	for _, p := range partitions {
		divided[strings.TrimRight(p, "0123456789")] = true
	}
	all := partitions
	for _, d := range s.devices {
		if !divided[d] {
			all = append(all, d)
		}
	}
	for _, call := range []string{"lvs", "list-md-devices"} {
		more, err := s.lines(ctx, call)
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	all = slices.AppendSeq(all, maps.Keys(s.opened))
	for _, d := range all {
		if err := CheckDevice(d); err != nil {
			return nil, err
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// Base is the block device that a name of libguestfs's belongs to, which may be that of a
// subvolume: of btrfsvol:/dev/sda1/home /dev/sda1.
func Base(device string) string {
	rest, ok := strings.CutPrefix(device, "btrfsvol:")
	if !ok {
		return device
	}
	parts := strings.SplitN(rest, "/", 4)
	return strings.Join(parts[:min(3, len(parts))], "/")
}

var devicePattern = regexp.MustCompile(`^/dev/[A-Za-z0-9_.+/-]{1,250}$`)

// CheckDevice returns what is wrong with the name of a device.
func CheckDevice(device string) error {
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
	disks := make(map[string][]string) // of each physical volume, by UUID without dashes
	for _, device := range devices {
		id, err := s.text(ctx, "pvuuid", device)
		if err != nil {
			return nil, err
		}
		disks[strings.ReplaceAll(id, "-", "")] = s.disksOf(device, nil)
	}
	all := make(map[string][]string)
	for _, name := range names {
		ids, err := s.lines(ctx, "vgpvuuids", name)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			for _, disk := range disks[strings.ReplaceAll(id, "-", "")] {
				if !slices.Contains(all[name], disk) {
					all[name] = append(all[name], disk)
				}
			}
		}
	}
	return all, nil
}

func (s *Session) disksOf(device string, groups map[string][]string) []string {
	if disks, ok := s.opened[device]; ok {
		return disks
	}
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

// OnDisk are the volumes with files that lie on a disk; an empty name means all.
func OnDisk(all []Volume, disk string) []Volume {
	var some []Volume
	for _, v := range all {
		if v.HasFiles() && (disk == "" || slices.Contains(v.Disks, disk)) {
			some = append(some, v)
		}
	}
	slices.SortFunc(some, func(a, b Volume) int { return cmp.Compare(a.Device, b.Device) })
	return some
}
