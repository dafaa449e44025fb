// SPDX-License-Identifier: Apache-2.0

// Package lima reads what Lima (https://lima-vm.io) writes of its instances: lima.yaml in an
// instance's folder, and default.yaml and override.yaml, which hold for all of them. It is
// taken as values: no folder is looked at, and no image is opened.
//
// Of a definition only what a backup needs is looked at, so that those of newer versions can
// be read. All of it comes from outside: its size is bounded, and names in it are names and
// no paths.
//
// The package imports nothing of ours.
package lima

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"go.yaml.in/yaml/v3"
)

// MaxYAML bounds a definition, bytes.
const MaxYAML = 1 << 20

// Files in an instance's folder, and in others of Lima's.
const (
	YAML       = "lima.yaml"
	Disk       = "disk"     // since version 2.1; a link to the one before in older instances
	DiskBefore = "diffdisk" // before version 2.1
	ISO        = "iso"      // a medium that the instance was installed from
	TPM        = "swtpm"    // a folder

	Disks    = "_disks"   // beside the instances: the folders of disks that have names
	DataDisk = "datadisk" // in such a folder

	Config   = "_config" // beside the instances: the folder of the two below
	Default  = "default.yaml"
	Override = "override.yaml"
)

// PIDFiles are the files in an instance's folder that name its processes while it runs.
func PIDFiles() []string { return []string{"ha.pid", "qemu.pid", "vz.pid", "krunkit.pid"} }

// SmallFiles are the other files in an instance's folder that Lima does not make again, or
// perhaps not the same.
func SmallFiles() []string {
	return []string{"lima-version", "kernel", "kernel.cmdline", "initrd", "qemu-efi-code.fd", "win-done-installation"}
}

// Instance is what a backup needs of an instance's definition.
type Instance struct {
	VMType string   // qemu, vz, …; empty: the usual one
	Disks  []string // the names of its additional disks, in their order
}

// instanceYAML is the part of a definition that is looked at.
type instanceYAML struct {
	VMType string     `yaml:"vmType"`
	Disks  []diskYAML `yaml:"additionalDisks"`
}

// diskYAML is a disk, which may be no more than its name.
type diskYAML struct{ name string }

func (d *diskYAML) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode {
		return node.Decode(&d.name)
	}
	var full struct {
		Name string `yaml:"name"`
	}
	err := node.Decode(&full)
	d.name = full.Name
	return err
}

// Parse reads an instance's definition, or what holds for all.
func Parse(data []byte) (*Instance, error) {
	if len(data) > MaxYAML {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(data), MaxYAML)
	}
	var y instanceYAML
	d := yaml.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(&y); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if !errors.Is(d.Decode(new(yaml.Node)), io.EOF) {
		return nil, errors.New("there is more than one document in it")
	}
	i := &Instance{VMType: y.VMType}
	for _, disk := range y.Disks {
		if err := CheckName(disk.name); err != nil {
			return nil, fmt.Errorf("additionalDisks: %w", err)
		}
		i.Disks = append(i.Disks, disk.name)
	}
	return i, nil
}

// With returns the instance as Lima makes it of its definition and of those that hold for all;
// nil: there is none.
func (i *Instance) With(override, usual *Instance) (*Instance, error) {
	all := &Instance{VMType: i.VMType}
	for _, part := range []*Instance{override, i, usual} {
		if part == nil {
			continue
		}
		for _, name := range part.Disks {
			if slices.Contains(all.Disks, name) {
				return nil, fmt.Errorf("disk %s is named twice", name)
			}
			all.Disks = append(all.Disks, name)
		}
		if all.VMType == "" || part == override && part.VMType != "" {
			all.VMType = part.VMType
		}
	}
	return all, nil
}

// maxName bounds the name of an instance or a disk, as Lima does.
const maxName = 76

// CheckName says why a string can't be the name of an instance or a disk: letters and digits,
// with single characters . _ - between them.
func CheckName(s string) error {
	if s == "" || len(s) > maxName {
		return fmt.Errorf("%.80q is no name in Lima: it has 1 to %d characters", s, maxName)
	}
	letter := false
	for i := range len(s) {
		c := s[i]
		is := '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		between := (c == '.' || c == '_' || c == '-') && letter && i < len(s)-1
		if !is && !between {
			return fmt.Errorf("%q is no name in Lima: it has letters and digits, and . _ - between them", s)
		}
		letter = is
	}
	return nil
}
