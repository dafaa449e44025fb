// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"encoding/xml"
	"errors"
	"fmt"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// The types of a disk's source that hold an image of this host.
const (
	TypeFile  = "file"
	TypeBlock = "block"
)

// TypeVolume is that of a disk which is a volume of a storage pool.
const TypeVolume = "volume"

// Domain is what a backup needs of a domain's definition.
type Domain struct {
	Name  string
	UUID  string // lower case, with dashes; empty if the definition has none
	Disks []Disk // in libvirt's order: by bus, and on a bus by name

	Loader         string // the firmware's path; empty: none is named
	LoaderReadOnly bool
	NVRAM          string // the path of the firmware's variables; empty: none is named
	Kernel, Initrd string // paths of what the host gives it to boot; empty: none is named

	TPMs []TPM
}

// TPM is a trusted platform module of a domain.
type TPM struct {
	Backend string // emulator, passthrough or external
	Path    string // of an emulator's state, a file or a folder; empty: where libvirt keeps it
}

// OwnTPM reports whether the definition says itself where the state of its TPM is.
func (d *Domain) OwnTPM() bool {
	return slices.ContainsFunc(d.TPMs, func(t TPM) bool { return t.Path != "" })
}

// Disk is one disk device of a domain.
type Disk struct {
	Target   string // as "vda"
	Device   string // disk, cdrom, floppy or lun
	Type     string // of the source: file, block, network, …
	Path     string // of a file or block device; empty when there is no medium
	Protocol string // of a network source
	Socket   string // of a network source: the Unix socket of its only host; empty: it has none
	Volume   Volume // of a source of type volume
	Format   string // of the image; empty when the definition does not say
	ReadOnly bool

	// Backing is the backing chain that the definition states, topmost first.
	// BackingEnds tells that it states the chain's end as well.
	Backing     []BackingImage
	BackingEnds bool
	Sliced      bool // only a part of the source is the disk

	Unresolved error // why it is not known where the volume lies; nil: nobody asked, or it is

	Encrypted bool // QEMU is told to encrypt what it writes to the source

	bus string // as the definition names it
}

// BackingImage is a backing file as a definition states it.
type BackingImage struct {
	Type, Path, Format string
}

// Empty tells that the disk has no medium.
func (d *Disk) Empty() bool {
	switch d.Type {
	case TypeFile, TypeBlock, "dir":
		return d.Path == ""
	case "network":
		return d.Protocol == ""
	case TypeVolume:
		return d.Volume.Name == ""
	}
	return false
}

// Disk returns the disk of that target.
func (d *Domain) Disk(target string) (*Disk, bool) {
	for i := range d.Disks {
		if d.Disks[i].Target == target {
			return &d.Disks[i], true
		}
	}
	return nil, false
}

// domainXML is the part of a definition that is looked at. Whatever else it
// holds is checked for its form alone, so that a definition of a newer libvirt
// can be read.
type domainXML struct {
	XMLName xml.Name `xml:"domain"`
	Name    string   `xml:"name"`
	UUID    string   `xml:"uuid"`
	OS      struct {
		Loader *libvirtxml.DomainLoader `xml:"loader"`
		NVRam  *libvirtxml.DomainNVRam  `xml:"nvram"`
		Kernel string                   `xml:"kernel"`
		Initrd string                   `xml:"initrd"`
	} `xml:"os"`
	Devices struct {
		Disks []diskXML `xml:"disk"`
		TPMs  []tpmXML  `xml:"tpm"`
	} `xml:"devices"`
}

// tpmXML is what of a TPM is looked at. The element source is libvirt's since 10.10.
type tpmXML struct {
	Backend struct {
		Type   string `xml:"type,attr"`
		Source struct {
			Path string `xml:"path,attr"`
		} `xml:"source"`
	} `xml:"backend"`
}

// diskXML keeps the type, of which libvirtxml keeps only those it knows.
type diskXML struct {
	kind string
	libvirtxml.DomainDisk
}

func (d *diskXML) UnmarshalXML(dec *xml.Decoder, start xml.StartElement) error {
	d.kind = TypeFile
	for _, a := range start.Attr {
		if a.Name.Local == "type" && a.Name.Space == "" {
			d.kind = a.Value
		}
	}
	switch d.kind {
	case TypeFile, TypeBlock, "dir", "network", TypeVolume, "nvme", "vhostuser", "vhostvdpa":
	default:
		return fmt.Errorf("disk type %q is not known", clip(d.kind))
	}
	return d.DomainDisk.UnmarshalXML(dec, start)
}

// Parse reads a domain's definition, as libvirt keeps it in /etc/libvirt/qemu or
// as virsh dumpxml prints it.
func Parse(data []byte) (*Domain, error) {
	root, err := parseTree(data)
	if err != nil {
		return nil, fmt.Errorf("domain XML: %w", err)
	}
	return fromTree(root)
}

func fromTree(root *node) (*Domain, error) {
	if root.name != "domain" {
		return nil, fmt.Errorf("domain XML: the root element is <%s>, not <domain>", clip(root.name))
	}
	// What is not looked at may be large: only the rest is written out for
	// libvirtxml, and so it sees no text that has not been checked.
	lean := &writer{}
	lean.tree(leanDomain(root))
	var x domainXML
	if err := xml.Unmarshal(lean.b, &x); err != nil {
		return nil, fmt.Errorf("domain XML: %w", err)
	}
	d := &Domain{Name: x.Name}
	if d.Name == "" || strings.ContainsAny(d.Name, "/\n") {
		return nil, fmt.Errorf("domain XML: %q is no name of a domain", clip(d.Name))
	}
	if x.UUID != "" {
		id, ok := canonicalUUID(x.UUID)
		if !ok {
			return nil, fmt.Errorf("domain XML: %q is no UUID", clip(x.UUID))
		}
		d.UUID = id
	}
	if l := x.OS.Loader; l != nil {
		d.Loader, d.LoaderReadOnly = strings.TrimSpace(l.Path), l.Readonly == "yes"
	}
	if n := x.OS.NVRam; n != nil {
		d.NVRAM = strings.TrimSpace(n.NVRam)
		if n.Source != nil && n.Source.File != nil {
			d.NVRAM = n.Source.File.File
		}
	}
	d.Kernel, d.Initrd = strings.TrimSpace(x.OS.Kernel), strings.TrimSpace(x.OS.Initrd)
	for _, t := range x.Devices.TPMs {
		d.TPMs = append(d.TPMs, TPM{Backend: t.Backend.Type, Path: t.Backend.Source.Path})
	}
	for i := range x.Devices.Disks {
		disk, err := newDisk(&x.Devices.Disks[i])
		if err != nil {
			return nil, fmt.Errorf("domain XML: disk %d: %w", i+1, err)
		}
		if _, twice := d.Disk(disk.Target); twice {
			return nil, fmt.Errorf("domain XML: two disks are named %s", disk.Target)
		}
		d.Disks = insertDisk(d.Disks, disk)
	}
	return d, nil
}

// leanDomain is a definition without all that is not looked at.
func leanDomain(root *node) *node {
	lean := &node{name: root.name}
	for _, k := range root.kids {
		switch k.name {
		case "name", "uuid":
			lean.kids = append(lean.kids, k)
		case "os", "devices":
			part := &node{name: k.name}
			for _, c := range k.kids {
				switch c.name {
				case "disk", "tpm", "loader", "nvram", "kernel", "initrd":
					part.kids = append(part.kids, c)
				}
			}
			lean.kids = append(lean.kids, part)
		}
	}
	return lean
}

func newDisk(x *diskXML) (Disk, error) {
	d := Disk{Device: x.Device, Type: x.kind, ReadOnly: x.ReadOnly != nil}
	if x.Target == nil || x.Target.Dev == "" {
		return d, errors.New("it has no <target dev=…>")
	}
	d.Target = x.Target.Dev
	if !validTarget(d.Target) {
		return d, fmt.Errorf("target %q is no name of a disk", clip(d.Target))
	}
	if d.Device == "" {
		d.Device = "disk"
	}
	switch d.Device {
	case "disk", "lun", "floppy":
	case "cdrom":
		d.ReadOnly = true
	default:
		return d, fmt.Errorf("%s: device %q is not known", d.Target, clip(d.Device))
	}
	d.bus = x.Target.Bus
	if x.Driver != nil {
		d.Format = x.Driver.Type
	}
	d.Encrypted = x.Encryption != nil
	if x.Source != nil {
		d.Encrypted = d.Encrypted || x.Source.Encryption != nil
		d.Path, d.Protocol = sourcePath(x.Source)
		if n := x.Source.Network; n != nil && len(n.Hosts) == 1 {
			d.Socket = n.Hosts[0].Socket
		}
		if v := x.Source.Volume; v != nil {
			d.Volume = Volume{Pool: v.Pool, Name: v.Volume}
		}
		d.Sliced = x.Source.Slices != nil && len(x.Source.Slices.Slices) > 0
	}
	d.readBacking(x.BackingStore)
	return d, nil
}

func sourcePath(s *libvirtxml.DomainDiskSource) (path, protocol string) {
	switch {
	case s.File != nil:
		return s.File.File, ""
	case s.Block != nil:
		return s.Block.Dev, ""
	case s.Dir != nil:
		return s.Dir.Dir, ""
	case s.Network != nil:
		return "", s.Network.Protocol
	}
	return "", ""
}

// readBacking follows the chain down to the empty element that ends it.
func (d *Disk) readBacking(b *libvirtxml.DomainDiskBackingStore) {
	for ; b != nil; b = b.BackingStore {
		image := BackingImage{}
		if b.Format != nil {
			image.Format = b.Format.Type
		}
		switch s := b.Source; {
		case s == nil:
		case s.File != nil:
			image.Type, image.Path = TypeFile, s.File.File
		case s.Block != nil:
			image.Type, image.Path = TypeBlock, s.Block.Dev
		case s.Network != nil, s.Dir != nil, s.Volume != nil, s.NVME != nil, s.VHostUser != nil, s.VHostVDPA != nil:
			image.Type = "other"
		}
		if image.Format == "" && image.Path == "" && image.Type != "other" {
			d.BackingEnds = true
			return
		}
		d.Backing = append(d.Backing, image)
	}
}
