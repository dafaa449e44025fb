// SPDX-License-Identifier: Apache-2.0

package pve

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
)

// Storages are the storages of a Proxmox VE, by their names.
type Storages map[string]Storage

// Storage is one of them: its type, as lvmthin, and what is said of it. What is a yes or no may
// have an empty value, which is yes.
type Storage struct {
	Type string
	Keys map[string]string
}

var (
	storageHead = regexp.MustCompile(`^([a-z][a-z0-9]*):[ \t]*([A-Za-z][A-Za-z0-9_.-]*)[ \t\r]*$`)
	storageKey  = regexp.MustCompile(`^[ \t]+([A-Za-z][A-Za-z0-9_-]*)(?:[ \t]+(.*?))?[ \t\r]*$`)
)

// ParseStorages reads storage.cfg.
func ParseStorages(data []byte) (Storages, error) {
	if len(data) > MaxConfig {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(data), MaxConfig)
	}
	if bytes.IndexByte(data, 0) >= 0 {
		return nil, errors.New("there is a NUL in it")
	}
	all := make(Storages)
	var now Storage
	for i, text := range strings.Split(string(data), "\n") {
		if trimmed := strings.TrimSpace(text); trimmed == "" || trimmed[0] == '#' {
			continue
		}
		if m := storageHead.FindStringSubmatch(text); m != nil {
			if _, twice := all[m[2]]; twice {
				return nil, fmt.Errorf("line %d: there are two storages %s", i+1, m[2])
			}
			now = Storage{m[1], make(map[string]string)}
			all[m[2]] = now
			continue
		}
		m := storageKey.FindStringSubmatch(text)
		if m == nil || now.Keys == nil {
			return nil, fmt.Errorf("line %d is none of storage.cfg: %.80q", i+1, text)
		}
		if _, twice := now.Keys[m[1]]; twice {
			return nil, fmt.Errorf("line %d: there are two of %s", i+1, m[1])
		}
		now.Keys[m[1]] = m[2]
	}
	if _, ok := all["local"]; !ok { // which Proxmox VE then has all the same
		all["local"] = Storage{"dir", map[string]string{"path": "/var/lib/vz"}}
	}
	return all, nil
}

// Place is where a volume lies.
type Place struct {
	Path   string
	Format string // raw, qcow2 or vmdk
	Device bool   // Path is a block device
	Dir    string // the folder of what it is based on; empty: it is based on nothing, or on its neighbours
	// Missing says what to do when there is nothing at Path.
	Missing string
}

// volumeID is STORAGE:NAME.
var volumeID = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9_.-]*):(\S+)$`)

// Locate finds the place of a drive's volume: of a storage, or a path, which is what a device
// is passed through by.
func (s Storages) Locate(d Drive) (Place, error) {
	if strings.HasPrefix(d.Volume, "/") {
		return passedThrough(d)
	}
	m := volumeID.FindStringSubmatch(d.Volume)
	if m == nil {
		return Place{}, fmt.Errorf("%.80q is no volume", d.Volume)
	}
	storage, ok := s[m[1]]
	if !ok {
		return Place{}, fmt.Errorf("storage.cfg has no storage %s", m[1])
	}
	if on, given := storage.Keys["disable"]; given && on != "0" && on != "no" {
		return Place{}, fmt.Errorf("storage %s is disabled: pvesm set %s --disable 0", m[1], m[1])
	}
	place, err := storage.locate(m[1], m[2])
	switch {
	case err != nil:
		return Place{}, err
	case d.Format != "" && d.Format != place.Format:
		return Place{}, fmt.Errorf("its configuration says format %.20q, and the volume is %s: Proxmox VE refuses that, too", d.Format, place.Format)
	}
	if nodes := storage.Keys["nodes"]; nodes != "" {
		place.Missing = fmt.Sprintf("storage %s is there on some nodes only (%.200s): is this one of them? If so, %s", m[1], nodes, place.Missing)
	}
	return place, nil
}

// passedThrough is a path in place of a volume, which Proxmox VE takes for raw unless it is
// said what it is.
func passedThrough(d Drive) (Place, error) {
	if path.Clean(d.Volume) != d.Volume || len(d.Volume) > 4096 {
		return Place{}, fmt.Errorf("%.80q is no plain path", d.Volume)
	}
	p := Place{Path: d.Volume, Format: "raw", Device: strings.HasPrefix(d.Volume, "/dev/")}
	if d.Format != "" {
		p.Format = d.Format
	}
	return p, nil
}

func (s Storage) locate(id, volume string) (Place, error) {
	switch s.Type {
	case "dir", "nfs", "cifs", "btrfs":
		return s.file(id, volume)
	case "lvm", "lvmthin":
		return s.lvm(volume)
	case "zfspool":
		return s.zfs(volume)
	}
	return Place{}, unreadable(id, s.Type, volume)
}

// unreadable says what to do about a storage that is no files and block devices of this host.
func unreadable(id, kind, volume string) error {
	hint := "--disk can name where it is, if this host has it as a file or a block device"
	switch kind {
	case "rbd":
		hint = "'rbd map' makes it a block device, which --disk can name"
	case "iscsi", "iscsidirect", "zfs":
		hint = "log in to its target, and name the block device with --disk"
	case "glusterfs", "cephfs":
		hint = "if it is mounted here, --disk can name the file"
	}
	return fmt.Errorf("storage %s is of type %s, which can't be read from here: %s", id, kind, hint)
}

var (
	// fileName is a file in the folder of a VM.
	fileName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.+-]*\.(raw|qcow2|vmdk)$`)
	vmid     = regexp.MustCompile(`^[1-9][0-9]{0,8}$`)
	// lvName is that of a volume of LVM or ZFS; vgName of what it is in.
	lvName = regexp.MustCompile(`^(?:vm|base)-[0-9]+-[A-Za-z0-9_.+-]+$`)
	vgName = regexp.MustCompile(`^[A-Za-z0-9_+][A-Za-z0-9_.+-]*$`)
	pool   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.:-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.:-]*)*$`)
)

// CheckVMID says why a string can't be the number of a VM.
func CheckVMID(id string) error {
	if !vmid.MatchString(id) {
		return fmt.Errorf("%.80q is no number of a VM, as 100", id)
	}
	return nil
}

// file is a volume that is a file: VMID/NAME, or of a linked clone BASEID/BASE/VMID/NAME.
func (s Storage) file(id, volume string) (Place, error) {
	dir := s.Keys["path"]
	if dir == "" && (s.Type == "nfs" || s.Type == "cifs") {
		dir = "/mnt/pve/" + id
	}
	sub, err := s.images()
	if err != nil {
		return Place{}, err
	}
	if !strings.HasPrefix(dir, "/") || strings.Contains(dir, "/..") {
		return Place{}, fmt.Errorf("storage %s has no path", id)
	}
	parts := strings.Split(volume, "/")
	if len(parts) != 2 && len(parts) != 4 {
		return Place{}, fmt.Errorf("%.80q is no image of a VM in a storage of type %s", volume, s.Type)
	}
	p := Place{Missing: "is the storage mounted?"}
	for i := 0; i < len(parts); i += 2 {
		m := fileName.FindStringSubmatch(parts[i+1])
		if !vmid.MatchString(parts[i]) || m == nil {
			return Place{}, fmt.Errorf("%.80q is no image of a VM in a storage of type %s", volume, s.Type)
		}
		p.Dir, p.Format = path.Dir(p.Path), m[1]
		p.Path = path.Join(dir, sub, parts[i], parts[i+1])
		if s.Type == "btrfs" && p.Format == "raw" { // a file in a subvolume of its own
			p.Path = path.Join(strings.TrimSuffix(p.Path, ".raw"), "disk.raw")
		}
	}
	if len(parts) == 2 {
		p.Dir = ""
	}
	return p, nil
}

// images is the folder of images within a storage.
func (s Storage) images() (string, error) {
	for _, part := range strings.Split(s.Keys["content-dirs"], ",") {
		kind, dir, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || kind != "images" {
			continue
		}
		if dir == "" || strings.Contains("/"+dir+"/", "/../") {
			return "", fmt.Errorf("content-dirs: %.80q is no folder in the storage", dir)
		}
		return dir, nil
	}
	return "images", nil
}

// lvm is a volume of LVM, thin or not. Proxmox VE keeps those that are not thin inactive while
// their VM is off.
func (s Storage) lvm(volume string) (Place, error) {
	vg := s.Keys["vgname"]
	name := volume
	if i := strings.LastIndexByte(name, '/'); i >= 0 && s.Type == "lvmthin" && lvName.MatchString(name[:i]) {
		name = name[i+1:] // behind what it was cloned from
	}
	if !vgName.MatchString(vg) || !lvName.MatchString(name) {
		return Place{}, fmt.Errorf("%.80q is no volume of a VM in volume group %.80q", volume, vg)
	}
	p := Place{Path: "/dev/" + vg + "/" + name, Format: "raw", Device: true,
		Missing: fmt.Sprintf("it may be inactive: 'lvchange -ay %s/%s' makes it a device, and 'lvchange -an' ends that", vg, name)}
	if strings.HasSuffix(name, ".qcow2") && s.Type == "lvm" { // over others there, if it has snapshots
		p.Format, p.Dir = "qcow2", "/dev/"+vg
	}
	return p, nil
}

// zfs is a volume of ZFS, perhaps behind what it was cloned from.
func (s Storage) zfs(volume string) (Place, error) {
	name := volume
	if base, rest, ok := strings.Cut(volume, "/"); ok && lvName.MatchString(base) {
		name = rest
	}
	if !pool.MatchString(s.Keys["pool"]) || !lvName.MatchString(name) {
		return Place{}, fmt.Errorf("%.80q is no volume of a VM in pool %.80q", volume, s.Keys["pool"])
	}
	return Place{Path: "/dev/zvol/" + s.Keys["pool"] + "/" + name, Format: "raw", Device: true,
		Missing: "is the pool imported, and its key loaded ('zfs load-key')?"}, nil
}
