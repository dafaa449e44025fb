// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"errors"
	"fmt"
)

// The modes of a backup.
const (
	Push = "push"
	Pull = "pull"
)

// The modes of a disk in a backup.
const (
	Full        = "full"
	Incremental = "incremental"
)

// Backup is a domainbackup.
type Backup struct {
	Mode        string // Push or Pull
	Incremental string // a checkpoint: the default of all disks; empty: none
	Server      *Server
	Disks       []BackupDisk // none: all that can be written to
}

// Server is where a pull backup is offered over NBD.
type Server struct {
	Transport string // tcp, unix or fd
	TLS       string // yes, no, or empty
	Name      string // tcp: a host's name or address
	Port      uint16 // tcp; 0: not given
	Socket    string // unix: an absolute path
	FDGroup   string // fd
}

// BackupDisk says how one disk takes part.
type BackupDisk struct {
	Name         string // the disk's target
	Backup       bool   // it takes part
	BackupMode   string // Full, Incremental; empty until Align
	Incremental  string // a checkpoint; empty: the backup's
	ExportName   string // pull
	ExportBitmap string // pull
	Type         string // of the store: TypeFile, TypeBlock; empty until Align
	Index        uint   // only on output: libvirt's number of the store; 0: none
	Format       string // of the store; empty: the default, which is qcow2
	Store        *Store // target or scratch; nil until Align if it was not given
}

// Store is a push backup's target or a pull backup's scratch.
type Store struct {
	Path       string
	SecLabels  []SecLabel
	Encryption *Encryption
}

// SecLabel overrides how a store is labelled.
type SecLabel struct {
	Model     string
	NoRelabel bool
	LabelSkip bool
	Label     string
}

// Encryption of a store; the format is always luks.
type Encryption struct {
	Engine      string // qemu, or empty
	SecretUUID  string // this or SecretUsage
	SecretUsage string
	Cipher      *Cipher
}

// Cipher says how a store is encrypted.
type Cipher struct {
	Name, Mode, Hash   string
	Size               uint32 // bits
	IVGenName, IVGHash string
}

// ParseBackup reads a domainbackup. What the schema of libvirt refuses is
// refused here; what depends on the domain, by [Backup.Align].
func ParseBackup(data []byte) (*Backup, error) {
	root, err := parseTree(data)
	if err == nil && root.name != "domainbackup" {
		err = fmt.Errorf("the root element is <%s>, not <domainbackup>", clip(root.name))
	}
	if err != nil {
		return nil, fmt.Errorf("backup XML: %w", err)
	}
	b, err := newBackup(root)
	if err != nil {
		return nil, fmt.Errorf("backup XML: %w", err)
	}
	return b, nil
}

func newBackup(root *node) (*Backup, error) {
	b := &Backup{Mode: Push}
	if err := root.check(shape{attrs: []string{"mode"}, kids: []string{"incremental", "server", "disks"}}); err != nil {
		return nil, err
	}
	if err := root.oneOf("mode", Push, Pull); err != nil {
		return nil, err
	}
	if root.has("mode") {
		b.Mode = root.value("mode")
	}
	if inc := root.kid("incremental"); inc != nil {
		if err := inc.check(shape{text: true}); err != nil {
			return nil, err
		}
		b.Incremental = inc.text
	}
	server := root.kid("server")
	switch {
	case b.Mode == Push && server != nil:
		return nil, server.errorf("a server is only for a pull backup (mode='pull')")
	case b.Mode == Pull && server == nil:
		return nil, root.errorf("a pull backup needs a <server>")
	case server != nil:
		s, err := newServer(server)
		if err != nil {
			return nil, err
		}
		b.Server = s
	}
	if disks := root.kid("disks"); disks != nil {
		if err := disks.check(shape{kids: []string{"disk*"}}); err != nil {
			return nil, err
		}
		if len(disks.kids) == 0 {
			return nil, disks.errorf("it names no disk: leave it out to back up all disks")
		}
		for _, n := range disks.kids {
			d, err := newBackupDisk(n, b.Mode)
			if err != nil {
				return nil, err
			}
			b.Disks = append(b.Disks, d)
		}
	}
	return b, nil
}

func newServer(n *node) (*Server, error) {
	s := &Server{Transport: "tcp", TLS: n.value("tls")}
	if n.has("transport") {
		s.Transport = n.value("transport")
	}
	if err := n.oneOf("tls", "yes", "no"); err != nil {
		return nil, err
	}
	allowed := []string{"transport", "tls"}
	var err error
	switch s.Transport {
	case "tcp":
		allowed = append(allowed, "name", "port")
		if s.Name, err = n.required("name"); err == nil && !validHost(s.Name) {
			err = n.errorf("name=%q is neither a host's name nor an address", clip(s.Name))
		}
		if port, given := n.attr("port"); given && err == nil {
			v, ok := number(port, 16)
			if !ok {
				err = n.errorf("port=%q is no port", clip(port))
			}
			s.Port = uint16(v)
		}
	case "unix":
		allowed = append(allowed, "socket")
		if s.Socket, err = n.required("socket"); err == nil && (!validPath(s.Socket) || s.Socket[0] != '/') {
			err = n.errorf("socket=%q: the path must be absolute", clip(s.Socket))
		}
	case "fd":
		allowed = append(allowed, "fdgroup")
		s.FDGroup, err = n.required("fdgroup")
	default:
		err = n.errorf("transport=%q: want tcp or unix", clip(s.Transport))
	}
	if err != nil {
		return nil, err
	}
	return s, n.check(shape{attrs: allowed})
}

// newBackupDisk reads a disk by the groups of the schema: left out; without a
// store; with a file; with a block device.
func newBackupDisk(n *node, mode string) (BackupDisk, error) {
	d := BackupDisk{Backup: n.value("backup") != "no"}
	d.Name = n.value("name")
	if !n.has("name") {
		return d, n.errorf("attribute name is missing")
	}
	if !validTarget(d.Name) {
		return d, n.errorf("name=%q is no name of a disk (its target, as vda)", clip(d.Name))
	}
	fail := func(err error) (BackupDisk, error) { return d, fmt.Errorf("disk %s: %w", d.Name, err) }
	s := shape{attrs: []string{"name", "backup", "backupmode", "incremental"}}
	if mode == Pull {
		s.attrs = append(s.attrs, "exportname", "exportbitmap")
	}
	if d.Backup {
		s.attrs = append(s.attrs, "type")
		s.kids = []string{"driver", storeName(mode)}
	}
	if err := errors.Join(n.oneOf("backup", "yes", "no"), n.oneOf("backupmode", Full, Incremental), n.oneOf("type", TypeFile, TypeBlock)); err != nil {
		return fail(err)
	}
	if !d.Backup && n.has("type") {
		return fail(n.errorf("backup='no' and type exclude each other"))
	}
	if n.has("index") {
		return fail(n.errorf("index is written by libvirt, and not taken as input"))
	}
	if err := n.check(s); err != nil {
		return fail(err)
	}
	d.BackupMode, d.Incremental = n.value("backupmode"), n.value("incremental")
	if n.has("incremental") {
		switch {
		case d.BackupMode == Full:
			return fail(n.errorf("backupmode='full' and incremental exclude each other"))
		case d.Incremental == "":
			return fail(n.errorf("incremental names no checkpoint"))
		}
	}
	d.ExportName, d.ExportBitmap = n.value("exportname"), n.value("exportbitmap")
	d.Type = n.value("type")
	if err := d.readStore(n, mode); err != nil {
		return fail(err)
	}
	return d, nil
}

func storeName(mode string) string {
	if mode == Pull {
		return "scratch"
	}
	return "target"
}

// readStore reads <driver> and <target> or <scratch>.
func (d *BackupDisk) readStore(n *node, mode string) error {
	driver, store := n.kid("driver"), n.kid(storeName(mode))
	switch {
	case mode == Push && d.Type == "" && (driver != nil || store != nil):
		return n.errorf("with a driver or a target, type is needed")
	case mode == Pull && d.Type == "" && n.value("backup") == "yes":
		return n.errorf("with backup='yes', type is needed")
	case mode == Pull && driver != nil && store == nil:
		return n.errorf("a driver without a scratch")
	case mode == Pull && d.Type == TypeBlock && store == nil:
		return n.errorf("type='block' needs a scratch")
	}
	if driver != nil {
		if err := driver.check(shape{attrs: []string{"type"}}); err != nil {
			return err
		}
		format, err := driver.required("type")
		if err != nil {
			return err
		}
		if mode == Pull && format != "qcow2" {
			return driver.errorf("type=%q: a pull backup's scratch is qcow2", clip(format))
		}
		if err := driver.oneOf("type", storageFormats()...); err != nil {
			return err
		}
		d.Format = format
	}
	if store == nil {
		return nil
	}
	var err error
	d.Store, err = newStore(store, d.Type)
	return err
}

// storageFormats is the schema's storageFormat.
func storageFormats() []string {
	return []string{"raw", "dir", "bochs", "cloop", "dmg", "iso", "vpc", "vdi", "fat", "vhd",
		"ploop", "luks", "cow", "qcow", "qcow2", "qed", "vmdk"}
}
