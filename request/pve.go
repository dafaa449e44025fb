// SPDX-License-Identifier: Apache-2.0

package request

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/domain/pve"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qemu"
)

// Where Proxmox VE keeps what it knows, and what runs.
const (
	pveNodes    = "/etc/pve/nodes"
	pveStorages = "/etc/pve/storage.cfg"
	pveFirewall = "/etc/pve/firewall"
	pveRun      = "/run/qemu-server"
)

// pveVMs are the VMs of this node of a Proxmox VE.
type pveVMs struct{ root, dir string }

func (p *pveVMs) find(id string) (*vm, error) {
	if err := pve.CheckVMID(id); err != nil {
		return nil, usage.Wrap(err)
	}
	path := p.dir + "/" + id + ".conf"
	text, err := readBounded(path, pve.MaxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, p.notHere(id, path)
	}
	if err != nil {
		return nil, err
	}
	c, err := pve.ParseConfig(text)
	if err != nil {
		return nil, usage.Errorf("%s: %w", path, err)
	}
	if err := p.off(id, path, c); err != nil {
		return nil, err
	}
	storages, err := p.storages()
	if err != nil {
		return nil, err
	}
	v := &vm{
		domain: &dom.Domain{UUID: c.UUID},
		files:  []backup.FileRequest{{Role: chain.RolePVE, Path: path, Data: text}},
		still:  c.Template,
		dirs:   make(map[string][]string), except: make(map[string]string),
	}
	for _, d := range c.Drives {
		v.domain.Disks = append(v.domain.Disks, p.disk(v, storages, d))
	}
	for _, d := range c.Unused {
		v.domain.Disks = append(v.domain.Disks, p.disk(v, storages, d))
		v.except[d.Key] = "the volume " + d.Volume + " is not attached to the VM"
	}
	p.remark(v, id, c)
	return v, p.firewall(v, id)
}

// notHere says why there is no configuration of a VM.
func (p *pveVMs) notHere(id, path string) error {
	if others, err := filepath.Glob(p.root + pveNodes + "/*/qemu-server/" + id + ".conf"); err == nil && len(others) > 0 {
		node := filepath.Base(filepath.Dir(filepath.Dir(others[0])))
		return usage.Errorf("VM %s is on node %s: back it up there", id, node)
	}
	if others, err := filepath.Glob(p.root + "/etc/pve/lxc/" + id + ".conf"); err == nil && len(others) > 0 {
		return usage.Errorf("%s is a container, and only VMs are backed up", id)
	}
	return usage.Errorf("there is no VM %s on this host: no %s", id, path)
}

// off returns an error if the VM runs, or Proxmox VE is at work on it.
func (p *pveVMs) off(id, config string, c *pve.Config) error {
	path := p.root + pveRun + "/" + id + ".pid"
	pid, err := process(path, func(words []string) bool {
		at := slices.Index(words, "-id")
		return at >= 0 && at+1 < len(words) && words[at+1] == id
	})
	switch {
	case err != nil:
		return err
	case pid > 0:
		return &qemu.InUseError{Path: path, Why: fmt.Sprintf("VM %s runs (process %d): 'qm shutdown %s' first", id, pid, id)}
	case c.VMState != "" || c.Lock == "suspended" || c.Lock == "suspending":
		return &qemu.InUseError{Path: config, Why: fmt.Sprintf("VM %s is suspended to disk (%s), and would go on with other disks after a restore: "+
			"'qm resume %s' and 'qm shutdown %s' first", id, c.VMState, id, id)}
	case c.Lock != "":
		return &qemu.InUseError{Path: config, Why: fmt.Sprintf("Proxmox VE has locked VM %s (%.40s): wait until that is done; 'qm unlock %s' if nothing works on it any more", id, c.Lock, id)}
	}
	return nil
}

func (p *pveVMs) storages() (pve.Storages, error) {
	path := p.root + pveStorages
	text, err := readBounded(path, pve.MaxConfig)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	all, err := pve.ParseStorages(text)
	if err != nil {
		return nil, usage.Errorf("%s: %w", path, err)
	}
	return all, nil
}

// disk is a drive as a definition of libvirt's would have it.
func (p *pveVMs) disk(v *vm, storages pve.Storages, d pve.Drive) dom.Disk {
	if d.CDROM {
		path := p.root + d.Volume
		if d.Volume == "none" {
			path = ""
		}
		return dom.Disk{Target: d.Key, Device: "cdrom", Type: dom.TypeFile, Path: path, ReadOnly: true}
	}
	disk := dom.Disk{Target: d.Key, Device: "disk", Type: dom.TypeVolume, Format: d.Format}
	disk.Volume = dom.Volume{Pool: "none", Name: d.Volume}
	if pool, name, ok := strings.Cut(d.Volume, ":"); ok {
		disk.Volume = dom.Volume{Pool: pool, Name: name}
	}
	if d.NoBackup {
		v.except[d.Key] = "backup=0 in Proxmox VE's configuration"
	}
	place, err := storages.Locate(d)
	if err != nil {
		disk.Unresolved = err
		return disk
	}
	disk.Type, disk.Format = dom.TypeFile, place.Format
	if place.Device {
		disk.Type = dom.TypeBlock
	}
	disk.Path = p.root + place.Path
	if place.Dir != "" {
		v.dirs[d.Key] = []string{p.root + place.Dir}
	}
	if _, err := os.Stat(disk.Path); err != nil && place.Missing != "" {
		disk.Type, disk.Unresolved = dom.TypeVolume, fmt.Errorf("%w: %s", err, place.Missing)
	}
	return disk
}

// remark notes what of the VM is not archived.
func (p *pveVMs) remark(v *vm, id string, c *pve.Config) {
	if c.Name != "" {
		v.note("VM %s is called %.100s", id, c.Name)
	}
	if len(c.Snapshots) > 0 {
		v.note("its snapshots are not archived, only the disks as they are: %s", strings.Join(c.Snapshots, ", "))
	}
	if c.Pending {
		v.note("changes of its configuration wait for the next start")
	}
	if strings.Contains(c.Args, "-drive") || strings.Contains(c.Args, "-blockdev") || strings.Contains(c.Args, "file=") {
		v.note("its args may name disks that Proxmox VE knows nothing of, which are not archived: %.200s", c.Args)
	}
}

// firewall takes the VM's rules, if it has some.
func (p *pveVMs) firewall(v *vm, id string) error {
	path := p.root + pveFirewall + "/" + id + ".fw"
	text, err := readBounded(path, pve.MaxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		v.files = append(v.files, backup.FileRequest{Role: chain.RoleFile, Name: id + ".fw", Path: path, Data: text})
	}
	return err
}
