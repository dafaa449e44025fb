// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
)

// Checkpoint is a domaincheckpoint.
type Checkpoint struct {
	Name        string // empty: to be made up
	Description string
	Parent      string // empty: none
	Created     int64  // seconds since 1970, UTC; 0: not known
	Disks       []CheckpointDisk
	Domain      *Domain // the definition that it was made of; nil: not given

	domain *node
}

// CheckpointDisk reports whether a disk's changes are recorded from the checkpoint
// on.
type CheckpointDisk struct {
	Name   string // the disk's target; before Align also the absolute path of its source
	Record bool   // checkpoint='bitmap'
	Bitmap string // the bitmap's name; empty until Align
	Size   *int64 // bytes that changed since; nil: not told
}

// ParseCheckpoint reads a domaincheckpoint. What the schema of libvirt refuses
// is refused here; what depends on the domain, by [Checkpoint.Align].
func ParseCheckpoint(data []byte) (*Checkpoint, error) {
	root, err := parseTree(data)
	if err == nil && root.name != "domaincheckpoint" {
		err = fmt.Errorf("the root element is <%s>, not <domaincheckpoint>", clip(root.name))
	}
	var c *Checkpoint
	if err == nil {
		c, err = newCheckpoint(root)
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint XML: %w", err)
	}
	return c, nil
}

func newCheckpoint(root *node) (*Checkpoint, error) {
	c := &Checkpoint{}
	err := root.check(shape{kids: []string{"name", "description", "creationTime", "disks", "domain", "parent"}})
	for _, k := range root.kids {
		if err != nil {
			return nil, err
		}
		switch k.name {
		case "name":
			c.Name, err = checkpointName(k)
		case "description":
			c.Description, err = k.text, k.check(shape{text: true})
		case "creationTime":
			err = c.readTime(k)
		case "parent":
			err = c.readParent(k)
		case "disks":
			err = c.readDisks(k)
		case "domain":
			c.domain = k
			c.Domain, err = fromTree(k)
		}
	}
	return c, err
}

func checkpointName(n *node) (string, error) {
	if err := n.check(shape{text: true}); err != nil {
		return "", err
	}
	if !validCheckpoint(n.text) {
		return "", n.errorf("%q is no name of a checkpoint: letters, digits, and the characters _ . - (no dot at the beginning)", clip(n.text))
	}
	return n.text, nil
}

func (c *Checkpoint) readTime(n *node) error {
	if err := n.check(shape{text: true}); err != nil {
		return err
	}
	t, ok := number(n.text, 63)
	if !ok {
		return n.errorf("%q is no time: want seconds since 1970", clip(n.text))
	}
	c.Created = int64(t)
	return nil
}

func (c *Checkpoint) readParent(n *node) error {
	if err := n.check(shape{kids: []string{"name"}}); err != nil {
		return err
	}
	name := n.kid("name")
	if name == nil {
		return n.errorf("it has no <name>")
	}
	var err error
	c.Parent, err = checkpointName(name)
	return err
}

func (c *Checkpoint) readDisks(n *node) error {
	if err := n.check(shape{kids: []string{"disk*"}}); err != nil {
		return err
	}
	if len(n.kids) == 0 {
		return n.errorf("it names no disk: leave it out to take all disks")
	}
	for _, k := range n.kids {
		d := CheckpointDisk{Name: k.value("name"), Record: k.value("checkpoint") != "no", Bitmap: k.value("bitmap")}
		allowed := []string{"name", "checkpoint"}
		if d.Record {
			allowed = append(allowed, "bitmap", "size")
		}
		if !validTarget(d.Name) && !validPath(d.Name) {
			return k.errorf("name=%q is neither a disk's target, as vda, nor the absolute path of its source", clip(d.Name))
		}
		if err := k.oneOf("checkpoint", "no", "bitmap"); err != nil {
			return err
		}
		if err := k.check(shape{attrs: allowed}); err != nil {
			return fmt.Errorf("disk %s: %w", clip(d.Name), err)
		}
		if k.has("bitmap") && d.Bitmap == "" {
			return k.errorf("bitmap is empty")
		}
		if k.has("size") {
			size, ok := number(k.value("size"), 63)
			if !ok {
				return k.errorf("size=%q is no number of bytes", clip(k.value("size")))
			}
			v := int64(min(size, math.MaxInt64))
			d.Size = &v
		}
		c.Disks = append(c.Disks, d)
	}
	return nil
}

// Align fills in what a checkpoint that is to be made leaves to libvirt: its
// name, from now (seconds since 1970); the disks that it does not list; and the
// bitmaps' names. Parent, size and definition are not taken from what was given.
func (c *Checkpoint) Align(d *Domain, now int64) (*Checkpoint, error) {
	out := &Checkpoint{Name: c.Name, Description: c.Description, Created: now}
	if out.Name == "" {
		out.Name = strconv.FormatInt(now, 10)
	}
	var err error
	if out.Disks, err = c.alignDisks(d, out.Name); err != nil {
		return nil, fmt.Errorf("checkpoint XML: %w", err)
	}
	return out, nil
}

func (c *Checkpoint) alignDisks(d *Domain, name string) ([]CheckpointDisk, error) {
	switch {
	case len(d.Disks) == 0:
		return nil, errors.New("a domain must have at least one disk to make a checkpoint")
	case len(c.Disks) > len(d.Disks):
		return nil, fmt.Errorf("it lists %d disks, and the domain %s has %d", len(c.Disks), d.Name, len(d.Disks))
	}
	listed := make(map[string]CheckpointDisk)
	for _, cd := range c.Disks {
		disk, err := d.diskByName(cd.Name)
		if err != nil {
			return nil, err
		}
		if _, twice := listed[disk.Target]; twice {
			return nil, fmt.Errorf("disk %s is listed twice", cd.Name)
		}
		if cd.Record && (disk.Empty() || disk.ReadOnly) {
			return nil, fmt.Errorf("disk %s is empty or read-only: nothing can be recorded of it", cd.Name)
		}
		if cd.Record && cd.Bitmap != "" && cd.Bitmap != name {
			return nil, fmt.Errorf("disk %s: the bitmap %q must have the checkpoint's name, %s", cd.Name, clip(cd.Bitmap), name)
		}
		listed[disk.Target] = cd
	}
	var all []CheckpointDisk
	for i := range d.Disks {
		disk := &d.Disks[i]
		cd, ok := listed[disk.Target]
		if !ok {
			cd.Record = len(c.Disks) == 0 && !disk.Empty() && !disk.ReadOnly
		}
		cd.Name, cd.Bitmap, cd.Size = disk.Target, "", nil
		if cd.Record {
			if disk.Format != "qcow2" {
				return nil, fmt.Errorf("disk %s: only a qcow2 image can hold the bitmap of a checkpoint, not format %q (list the disks, this one with checkpoint='no')", disk.Target, clip(disk.Format))
			}
			cd.Bitmap = name
		}
		all = append(all, cd)
	}
	return all, nil
}

// diskByName finds a disk by its target or, if only one has it, by its path.
func (d *Domain) diskByName(name string) (*Disk, error) {
	if name != "" && name[0] != '/' {
		if disk, ok := d.Disk(name); ok {
			return disk, nil
		}
		return nil, fmt.Errorf("the domain %s has no disk named %s", d.Name, clip(name))
	}
	at := slices.IndexFunc(d.Disks, func(disk Disk) bool { return disk.Path == name })
	if at < 0 {
		return nil, fmt.Errorf("the domain %s has no disk of %s", d.Name, clip(name))
	}
	if slices.ContainsFunc(d.Disks[at+1:], func(disk Disk) bool { return disk.Path == name }) {
		return nil, fmt.Errorf("several disks of the domain %s are %s: name the disk's target", d.Name, clip(name))
	}
	return &d.Disks[at], nil
}

// SetDomain makes a definition part of the checkpoint, as libvirt keeps it.
func (c *Checkpoint) SetDomain(data []byte) error {
	root, err := parseTree(data)
	if err != nil {
		return fmt.Errorf("domain XML: %w", err)
	}
	d, err := fromTree(root)
	if err != nil {
		return err
	}
	c.Domain, c.domain = d, root
	return nil
}

// DomainXML returns the definition that is part of the checkpoint, as a text of
// its own; nil if there is none.
func (c *Checkpoint) DomainXML() []byte {
	if c.domain == nil {
		return nil
	}
	w := &writer{}
	w.tree(c.domain)
	return w.b
}

// Format returns the XML as libvirt writes it, with a line end after the last
// element.
func (c *Checkpoint) Format() []byte {
	w := &writer{}
	w.element("domaincheckpoint", "", func() {
		w.text("name", c.Name)
		w.text("description", c.Description)
		if c.Parent != "" {
			w.element("parent", "", func() { w.text("name", c.Parent) })
		}
		if c.Created != 0 {
			w.text("creationTime", strconv.FormatInt(c.Created, 10))
		}
		if len(c.Disks) > 0 {
			w.element("disks", "", func() {
				for _, d := range c.Disks {
					w.line("<disk" + string(d.attrs()) + "/>")
				}
			})
		}
		if c.domain != nil {
			w.tree(c.domain)
		}
	})
	return w.b
}

func (d *CheckpointDisk) attrs() attrList {
	var a attrList
	a.add("name", d.Name)
	if !d.Record {
		a.add("checkpoint", "no")
		return a
	}
	a.add("checkpoint", "bitmap")
	a.some("bitmap", d.Bitmap)
	if d.Size != nil {
		a.add("size", strconv.FormatInt(*d.Size, 10))
	}
	return a
}
