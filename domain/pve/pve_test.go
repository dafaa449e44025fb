// SPDX-License-Identifier: Apache-2.0

package pve_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/domain/pve"
)

// windows is as versions 7 and 8 write it: a description, firmware, a TPM, cloud-init, a medium,
// what is not attached, what waits, and two snapshots.
const windows = `#A mail server%3A see the wiki
#second line
agent: 1
args: -device foo,bar=1
bios: ovmf
boot: order=scsi0;ide2;net0
cores: 4
cpu: x86-64-v2-AES
efidisk0: local-lvm:vm-100-disk-0,efitype=4m,pre-enrolled-keys=1,size=4M
hostpci0: 0000:01:00,pcie=1
ide0: local-lvm:vm-100-cloudinit,media=cdrom
ide2: local:iso/virtio-win-0.1.240.iso,media=cdrom,size=612812K
machine: pc-q35-8.1
memory: 8192
meta: creation-qemu=8.1.2,ctime=1703001234
name: mail.example.org
net0: virtio=BC:24:11:5A:9C:01,bridge=vmbr0,firewall=1
net1: model=e1000,macaddr=bc:24:11:5a:9c:02,bridge=vmbr1
numa: 0
onboot: 1
ostype: win11
parent: after
scsi0: local-lvm:vm-100-disk-1,cache=writeback,discard=on,iothread=1,size=64G,ssd=1
scsi1: nas:100/vm-100-disk-0.qcow2,backup=0,size=1T
scsi10: file=nas:100/vm-100-disk-1.qcow2,format=qcow2
scsihw: virtio-scsi-single
smbios1: uuid=4AE1BC2E-9C4C-4E0A-8F1C-2B3A4D5E6F70
sockets: 1
tpmstate0: local-lvm:vm-100-disk-2,size=4M,version=v2.0
unused0: local-lvm:vm-100-disk-9
vmgenid: 6a0e7d6c-b2f5-4f0a-8d1b-0a1b2c3d4e5f

[PENDING]
memory: 4096
delete: net1

[after]
#before%20the%20update
name: mail.example.org
parent: before
scsi0: local-lvm:vm-100-disk-1,size=32G
snaptime: 1703100000

[before]
scsi7: local-lvm:gone
snaptime: 1703000000
vmstate: local-lvm:vm-100-state-before
`

// old is as version 1 wrote it.
const old = "bootdisk: virtio0\ncdrom: none\ncores: 1\nmemory: 512\nname: old\nvirtio0: local:105/vm-105-disk-1.raw,cache=none\nvirtio1: /dev/disk/by-id/scsi-0QEMU_1\n"

func TestParseConfig(t *testing.T) {
	t.Parallel()
	c, err := pve.ParseConfig([]byte(windows))
	if err != nil {
		t.Fatal(err)
	}
	want := &pve.Config{
		Name: "mail.example.org", UUID: "4ae1bc2e-9c4c-4e0a-8f1c-2b3a4d5e6f70", Args: "-device foo,bar=1", Pending: true, Snapshots: []string{"after", "before"},
		Drives: []pve.Drive{
			{Key: "efidisk0", Volume: "local-lvm:vm-100-disk-0"},
			{Key: "ide0", Volume: "local-lvm:vm-100-cloudinit", CDROM: true},
			{Key: "ide2", Volume: "local:iso/virtio-win-0.1.240.iso", CDROM: true},
			{Key: "scsi0", Volume: "local-lvm:vm-100-disk-1"},
			{Key: "scsi1", Volume: "nas:100/vm-100-disk-0.qcow2", NoBackup: true},
			{Key: "scsi10", Volume: "nas:100/vm-100-disk-1.qcow2", Format: "qcow2"},
			{Key: "tpmstate0", Volume: "local-lvm:vm-100-disk-2"},
		},
		Unused: []pve.Drive{{Key: "unused0", Volume: "local-lvm:vm-100-disk-9"}},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v, want %+v", c, want)
	}
	if c, err = pve.ParseConfig([]byte(strings.ReplaceAll(old, "\n", "\r\n"))); err != nil {
		t.Fatal(err)
	}
	want = &pve.Config{Name: "old", Drives: []pve.Drive{
		{Key: "ide2", Volume: "none"}, {Key: "virtio0", Volume: "local:105/vm-105-disk-1.raw"}, {Key: "virtio1", Volume: "/dev/disk/by-id/scsi-0QEMU_1"},
	}}
	want.Drives[0].CDROM = true
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v, want %+v", c, want)
	}
	c, err = pve.ParseConfig([]byte("lock: suspended\nvmstate: local:100/vm-100-state-suspend.raw\n"))
	if err != nil || c.Lock != "suspended" || c.VMState == "" {
		t.Errorf("%+v, %v", c, err)
	}
}

// hostileConfigs are none that Proxmox VE writes.
var hostileConfigs = []string{
	"scsi0 local:x", "scsi0: a\nscsi0: b", "scsi0: a,b", "scsi0: file=a,volume=b", "scsi0: size=1", "scsi0: ", "cdrom: none\nide2: none",
	"smbios1: uuid=1", "smbios1: x", "a\x00: b", "no config", "[", "scsi0: file=", strings.Repeat("#", pve.MaxConfig+1), "<xml/>",
}

func TestParseConfigHostile(t *testing.T) {
	t.Parallel()
	for _, text := range hostileConfigs {
		if c, err := pve.ParseConfig([]byte(text)); err == nil {
			t.Errorf("%.80q: %+v", text, c)
		}
	}
}

const storageCfg = `dir: local
	path /var/lib/vz
	content iso,vztmpl,backup
	shared 0

lvmthin: local-lvm
	thinpool data
	vgname pve
	content rootdir,images

lvm: san
	vgname vg-san
	shared 1
	snapshot-as-volume-chain 1

# a comment
zfspool: tank
	pool rpool/data
	sparse

nfs: nas
	export /export/vms
	path /mnt/pve/nas
	server 10.0.0.1
	options vers=4.2
	content images

cifs: win
	server 10.0.0.2
	share vms

btrfs: bt
	path /bt

dir: moved
	path /srv/vms
	content-dirs images=disks/vm,iso=isos
	content images

dir: up
	path /srv/x
	content-dirs images=../../etc

dir: off
	path /off
	disable

dir: off0
	path /off0
	disable 0

dir: some
	path /some
	nodes pve2,pve3

rbd: ceph
	pool rbd
	krbd 1

iscsi: target
	portal 10.0.0.3
	target iqn.2001-05.org.example:x

zfs: overiscsi
	pool tank

pbs: bak
	datastore x
	encryption-key 1

glusterfs: gl
	volume x

custom: mine
	what ever

lvm: evil
	vgname ../../etc

zfspool: evil2
	pool rpool/../../etc

dir: rel
	path srv
`

// places are where drives lie; what begins with ! is in the error, and what it says to do.
var places = []struct{ volume, format, want string }{
	{"local:100/vm-100-disk-0.qcow2", "", "/var/lib/vz/images/100/vm-100-disk-0.qcow2 qcow2"},
	{"local:100/vm-100-disk-0.raw", "raw", "/var/lib/vz/images/100/vm-100-disk-0.raw raw"},
	{"local:100/vm-100-disk-0.vmdk", "", "/var/lib/vz/images/100/vm-100-disk-0.vmdk vmdk"},
	{"local:9000/base-9000-disk-0.qcow2/100/vm-100-disk-0.qcow2", "", "/var/lib/vz/images/100/vm-100-disk-0.qcow2 qcow2 over /var/lib/vz/images/9000"},
	{"local-lvm:vm-100-disk-1", "", "/dev/pve/vm-100-disk-1 raw device"},
	{"local-lvm:base-9000-disk-0/vm-100-disk-1", "", "/dev/pve/vm-100-disk-1 raw device"},
	{"local-lvm:base-100-disk-0", "", "/dev/pve/base-100-disk-0 raw device"},
	{"san:vm-100-disk-0.qcow2", "", "/dev/vg-san/vm-100-disk-0.qcow2 qcow2 device over /dev/vg-san"},
	{"tank:vm-100-disk-0", "", "/dev/zvol/rpool/data/vm-100-disk-0 raw device"},
	{"tank:base-9000-disk-0/vm-100-disk-0", "", "/dev/zvol/rpool/data/vm-100-disk-0 raw device"},
	{"nas:100/vm-100-disk-0.qcow2", "", "/mnt/pve/nas/images/100/vm-100-disk-0.qcow2 qcow2"},
	{"win:100/vm-100-disk-0.qcow2", "", "/mnt/pve/win/images/100/vm-100-disk-0.qcow2 qcow2"},
	{"bt:100/vm-100-disk-0.raw", "", "/bt/images/100/vm-100-disk-0/disk.raw raw"},
	{"bt:100/vm-100-disk-0.qcow2", "", "/bt/images/100/vm-100-disk-0.qcow2 qcow2"},
	{"moved:100/vm-100-disk-0.qcow2", "", "/srv/vms/disks/vm/100/vm-100-disk-0.qcow2 qcow2"},
	{"off0:100/vm-100-disk-0.raw", "", "/off0/images/100/vm-100-disk-0.raw raw"},
	{"/dev/disk/by-id/ata-X", "", "/dev/disk/by-id/ata-X raw device"},
	{"/srv/a.qcow2", "qcow2", "/srv/a.qcow2 qcow2"},

	{"local:100/vm-100-disk-0.qcow2", "raw", "!says format \"raw\", and the volume is qcow2"},
	{"ceph:vm-100-disk-0", "", "!storage ceph is of type rbd, which can't be read from here: 'rbd map'"},
	{"target:0.0.0.scsi-1", "", "!storage target is of type iscsi"},
	{"overiscsi:vm-100-disk-0", "", "!of type zfs, which can't be read from here: log in to its target"},
	{"bak:x", "", "!of type pbs"},
	{"gl:100/vm-100-disk-0.raw", "", "!of type glusterfs"},
	{"mine:x", "", "!storage mine is of type custom"},
	{"off:100/vm-100-disk-0.raw", "", "!storage off is disabled"},
	{"none-such:x", "", "!storage.cfg has no storage none-such"},
	{"none", "", "!is no volume"},
	{"/dev/../etc/shadow", "", "!is no plain path"},
	{"local:../../etc/shadow", "", "!is no image of a VM"},
	{"local:../etc.raw", "", "!is no image of a VM"},
	{"local:100/../../x.raw", "", "!is no image of a VM"},
	{"local:100/..raw", "", "!is no image of a VM"},
	{"local:100/vm.subvol", "", "!is no image of a VM"},
	{"local:0/vm-0-disk-0.raw", "", "!is no image of a VM"},
	{"local:iso/x.iso", "", "!is no image of a VM"},
	{"local:1/a.raw/2/b.raw/3/c.raw", "", "!is no image of a VM"},
	{"up:100/vm-100-disk-0.raw", "", "!is no folder in the storage"},
	{"rel:100/vm-100-disk-0.raw", "", "!storage rel has no path"},
	{"local-lvm:../shadow", "", "!is no volume of a VM"},
	{"local-lvm:root", "", "!is no volume of a VM"},
	{"evil:vm-100-disk-0", "", "!is no volume of a VM"},
	{"evil2:vm-100-disk-0", "", "!is no volume of a VM"},
	{"tank:subvol-100-disk-0", "", "!is no volume of a VM"},
	{"tank:vm-100-disk-0/../../x", "", "!is no volume of a VM"},
}

func TestLocate(t *testing.T) {
	t.Parallel()
	s, err := pve.ParseStorages([]byte(storageCfg))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range places {
		p, err := s.Locate(pve.Drive{Key: "scsi0", Volume: c.volume, Format: c.format})
		got := p.Path + " " + p.Format
		if p.Device {
			got += " device"
		}
		if p.Dir != "" {
			got += " over " + p.Dir
		}
		if err != nil {
			got = "!" + err.Error()
		}
		if got != c.want && (err == nil || !strings.HasPrefix(c.want, "!") || !strings.Contains(got, c.want[1:])) {
			t.Errorf("%s: got %s, want %s", c.volume, got, c.want)
		}
	}
}

// Where a storage is not there on all nodes that is said when its volume is missing.
func TestNodes(t *testing.T) {
	t.Parallel()
	s, err := pve.ParseStorages([]byte(storageCfg))
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Locate(pve.Drive{Key: "scsi0", Volume: "some:100/vm-100-disk-0.raw"})
	if err != nil || p.Path != "/some/images/100/vm-100-disk-0.raw" || !strings.Contains(p.Missing, "(pve2,pve3)") || !strings.HasSuffix(p.Missing, "is the storage mounted?") {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestParseStorages(t *testing.T) {
	t.Parallel()
	s, err := pve.ParseStorages(nil)
	if err != nil || s["local"].Keys["path"] != "/var/lib/vz" {
		t.Errorf("%+v, %v", s, err)
	}
	for _, text := range []string{
		"\tpath /x\n", "dir: a\n\tpath /x\n\tpath /y\n", "dir: a\ndir: a\n", "dir a\n", "dir: a b\n", "dir: ../x\n", "dir: a\npath /x\n", "dir: a\x00\n",
		strings.Repeat("#", pve.MaxConfig+1),
	} {
		if s, err := pve.ParseStorages([]byte(text)); err == nil {
			t.Errorf("%.80q: %+v", text, s)
		}
	}
}

func TestAdjust(t *testing.T) {
	t.Parallel()
	moved := pve.Moved{Drives: map[string]pve.Image{
		"efidisk0": {"/out/efidisk0.qcow2", "qcow2"}, "scsi0": {"/out/scsi0.qcow2", "qcow2"}, "scsi10": {"/out/scsi10.raw", "raw"}, "tpmstate0": {"/out/tpmstate0.raw", "raw"},
	}}
	a, err := pve.Adjust([]byte(windows), moved)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, text := range strings.Split(windows[:strings.Index(windows, "\n[PENDING]")-1], "\n") {
		switch key, _, _ := strings.Cut(text, ":"); key {
		case "parent", "unused0":
			continue
		case "efidisk0":
			text = "efidisk0: /out/efidisk0.qcow2,efitype=4m,pre-enrolled-keys=1,size=4M,format=qcow2"
		case "scsi0":
			text = "scsi0: /out/scsi0.qcow2,cache=writeback,discard=on,iothread=1,size=64G,ssd=1,format=qcow2"
		case "scsi10":
			text = "scsi10: /out/scsi10.raw,format=raw"
		case "tpmstate0":
			text = "tpmstate0: /out/tpmstate0.raw,size=4M,version=v2.0"
		}
		want = append(want, text)
	}
	if got := strings.TrimRight(string(a.Config), "\n"); got != strings.TrimRight(strings.Join(want, "\n"), "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	other := []string{"ide0 (local-lvm:vm-100-cloudinit)", "ide2 (local:iso/virtio-win-0.1.240.iso)", "scsi1 (nas:100/vm-100-disk-0.qcow2)"}
	if !slices.Equal(a.OtherDisks, other) || !slices.Equal(a.Shared, []string{"args (-device foo,bar=1)", "hostpci0 (0000:01:00,pcie=1)"}) || a.MACs != nil {
		t.Errorf("%q, %q, %v", a.OtherDisks, a.Shared, a.MACs)
	}
}

func TestAdjustIdentity(t *testing.T) {
	t.Parallel()
	a, err := pve.Adjust([]byte(windows), pve.Moved{Name: "mail2", NewIdentity: true})
	if err != nil {
		t.Fatal(err)
	}
	text := string(a.Config)
	for _, gone := range []string{"4AE1BC2E", "BC:24:11:5A:9C:01", "bc:24:11:5a:9c:02", "6a0e7d6c", "mail.example.org"} {
		if strings.Contains(text, gone) {
			t.Errorf("%s is still there", gone)
		}
	}
	if a.Name != "mail2" || !strings.Contains(text, "\nname: mail2\n") || len(a.MACs) != 2 || !strings.Contains(text, "macaddr="+a.MACs["bc:24:11:5a:9c:02"]+",bridge") {
		t.Errorf("%+v\n%s", a, text)
	}
	if a, err = pve.Adjust([]byte(old), pve.Moved{Name: "x", NewIdentity: true}); err != nil || a.UUID == "" || !strings.Contains(string(a.Config), "smbios1: uuid="+a.UUID) {
		t.Errorf("%+v, %v", a, err)
	}
	for name, m := range map[string]pve.Moved{
		"name":     {Name: "a b"},
		"line":     {Name: "a\nlock: x"},
		"comma":    {Drives: map[string]pve.Image{"virtio0": {"/a,format=raw", "qcow2"}}},
		"relative": {Drives: map[string]pve.Image{"virtio0": {"a", "raw"}}},
		"format":   {Drives: map[string]pve.Image{"virtio0": {"/a", "vdi"}}},
		"no such":  {Drives: map[string]pve.Image{"virtio7": {"/a", "raw"}}},
	} {
		if _, err := pve.Adjust([]byte(old), m); err == nil {
			t.Errorf("%s: adjusted", name)
		}
	}
	if _, err := pve.Adjust([]byte(windows), pve.Moved{Drives: map[string]pve.Image{"tpmstate0": {"/a", "qcow2"}}}); err == nil {
		t.Error("the state of a TPM as qcow2")
	}
}

// FuzzConfig: what can be read can be adjusted, or that is refused, and then reads the same but
// for what was left out.
func FuzzConfig(f *testing.F) {
	for _, text := range append([]string{windows, old}, hostileConfigs...) {
		if len(text) < 1<<16 {
			f.Add([]byte(text))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := pve.ParseConfig(data)
		if err != nil {
			return
		}
		a, err := pve.Adjust(data, pve.Moved{})
		if err != nil {
			t.Fatalf("%q: %v", data, err)
		}
		again, err := pve.ParseConfig(a.Config)
		if err != nil || !reflect.DeepEqual(again.Drives, c.Drives) || again.Name != c.Name || len(again.Unused)+len(again.Snapshots) > 0 || again.Lock != "" {
			t.Fatalf("%q became %q: %+v, %v", data, a.Config, again, err)
		}
	})
}

// FuzzLocate: a volume is in its storage, or nowhere.
func FuzzLocate(f *testing.F) {
	for _, c := range places {
		f.Add(storageCfg, c.volume)
	}
	f.Fuzz(func(t *testing.T, text, volume string) {
		s, err := pve.ParseStorages([]byte(text))
		if err != nil {
			return
		}
		p, err := s.Locate(pve.Drive{Key: "scsi0", Volume: volume})
		if err != nil || strings.HasPrefix(volume, "/") {
			return
		}
		id, _, _ := strings.Cut(volume, ":")
		root := map[string]string{
			"lvm": "/dev/" + s[id].Keys["vgname"] + "/", "lvmthin": "/dev/" + s[id].Keys["vgname"] + "/", "zfspool": "/dev/zvol/" + s[id].Keys["pool"] + "/",
		}[s[id].Type]
		if strings.Contains(p.Path, "/../") || strings.HasSuffix(p.Path, "/..") || !strings.HasPrefix(p.Path, "/") || !strings.HasPrefix(p.Path, root) || strings.ContainsAny(p.Path, "\x00\n") {
			t.Errorf("%q leads to %+v", volume, p)
		}
	})
}
