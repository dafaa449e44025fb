// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"encoding/xml"
	"fmt"
	"path/filepath"
	"strings"
)

// Volume names a volume of a storage pool, as a disk of type volume does.
type Volume struct{ Pool, Name string }

// Pool is what a storage pool's definition says of where its volumes lie.
type Pool struct {
	Name string
	Type string // as "dir"
	Path string // of the target: the folder that its volumes appear in
}

// poolXML is the part of a definition that is looked at.
type poolXML struct {
	Type   string `xml:"type,attr"`
	Name   string `xml:"name"`
	Source struct {
		Name string `xml:"name"`
	} `xml:"source"`
	Target struct {
		Path string `xml:"path"`
	} `xml:"target"`
}

// ParsePool reads a storage pool's definition, as libvirt keeps it in
// /etc/libvirt/storage or as virsh pool-dumpxml prints it.
func ParsePool(data []byte) (*Pool, error) {
	root, err := parseTree(data)
	if err != nil {
		return nil, fmt.Errorf("storage pool XML: %w", err)
	}
	if root.name != "pool" {
		return nil, fmt.Errorf("storage pool XML: the root element is <%s>, not <pool>", clip(root.name))
	}
	lean := &writer{}
	lean.tree(root)
	var x poolXML
	if err := xml.Unmarshal(lean.b, &x); err != nil {
		return nil, fmt.Errorf("storage pool XML: %w", err)
	}
	p := &Pool{Name: strings.TrimSpace(x.Name), Type: x.Type, Path: strings.TrimSpace(x.Target.Path)}
	if p.Name == "" { // libvirt then takes the source's
		p.Name = strings.TrimSpace(x.Source.Name)
	}
	if !validPool(p.Name) {
		return nil, fmt.Errorf("storage pool XML: %q is no name of a pool", clip(p.Name))
	}
	return p, nil
}

// validPool reports whether s can name a pool, whose definition is in a file of that
// name.
func validPool(s string) bool {
	return s != "" && !strings.HasPrefix(s, ".") && !strings.ContainsAny(s, "/\n\x00")
}

// poolTypes are the types whose volumes are files or block devices of this host, and
// what they are: libvirt's storage driver places each directly in the target's folder.
var poolTypes = map[string]string{
	"dir": TypeFile, "fs": TypeFile, "netfs": TypeFile,
	"logical": TypeBlock, "disk": TypeBlock,
}

// Volume returns where a volume lies, and whether it is a file or a block device. An
// error says why that can't be known.
func (p *Pool) Volume(name string) (kind, path string, err error) {
	kind, ok := poolTypes[p.Type]
	switch {
	case !ok:
		return "", "", fmt.Errorf("the volumes of pool %s, of type %s, are no files or block devices of this host", clip(p.Name), clip(p.Type))
	case !filepath.IsAbs(p.Path):
		return "", "", fmt.Errorf("pool %s says no absolute path of its volumes", clip(p.Name))
	case name == "." || !filepath.IsLocal(name) || strings.Contains(name, "/"):
		return "", "", fmt.Errorf("%q is no name of a volume", clip(name))
	}
	return kind, filepath.Join(p.Path, name), nil
}

// ResolveVolumes gives the disks that are volumes of storage pools the place of their
// volumes. load returns the definition of the pool of that name. Of what can't be
// resolved the disk stays as it is, and the reason is in its Unresolved.
func (d *Domain) ResolveVolumes(load func(pool string) ([]byte, error)) {
	for i := range d.Disks {
		disk := &d.Disks[i]
		if disk.Type != TypeVolume || disk.Volume.Name == "" {
			continue
		}
		if err := disk.resolve(load); err != nil {
			disk.Unresolved = err
		}
	}
}

func (d *Disk) resolve(load func(pool string) ([]byte, error)) error {
	name := d.Volume.Pool
	if !validPool(name) {
		return fmt.Errorf("%q is no name of a pool", clip(name))
	}
	data, err := load(name)
	if err != nil {
		return err
	}
	pool, err := ParsePool(data)
	switch {
	case err != nil:
		return err
	case pool.Name != name:
		return fmt.Errorf("the definition of pool %s names %s", clip(name), clip(pool.Name))
	}
	kind, path, err := pool.Volume(d.Volume.Name)
	if err != nil {
		return err
	}
	d.Type, d.Path = kind, path
	return nil
}
