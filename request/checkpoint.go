// SPDX-License-Identifier: Apache-2.0

package request

import (
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/checkpoint"
	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Checkpoint is what a person says of a new checkpoint without data.
type Checkpoint struct {
	Domain string // empty: the definition's
	XML    Files  // libvirt's; no domainbackup
	Disks  []string
	Known  []backup.DiskRequest // more disks, that nobody need read
	Engine backup.Request
}

// NamesNone is as that of [Backup].
func (c *Checkpoint) NamesNone() bool { return namesNone(c.Domain, c.Disks, c.XML) }

// Take takes the disks that were found.
func (c *Checkpoint) Take(l *Last) { c.XML.Domain, c.Disks, c.Known = l.Definition, l.Disks, l.Known }

// Request reads what is named and makes the request of it, with notes for a person.
func (c *Checkpoint) Request(stdin io.Reader) (backup.Request, []string, error) {
	req := c.Engine
	in, err := c.XML.readOf(c.Domain, stdin)
	if err != nil {
		return req, nil, err
	}
	if req.Domain, err = in.DomainName(c.Domain); err != nil {
		return req, nil, err
	}
	disks, err := parseDisks(c.Disks, toOpen, in.domain != nil)
	if err != nil {
		return req, nil, err
	}
	disks = append(disks, known(c.Known)...)
	if err = in.fill(&req, disks, toOpen); err == nil {
		err = checkNewName(req.Checkpoint)
	}
	return req, in.notes, err
}

// Redefinition is a checkpoint's definition that is to be put back.
type Redefinition struct {
	Request    backup.Request
	Definition checkpoint.Definition
	xml        *dom.Checkpoint
}

// Redefine reads a domaincheckpoint from a file, for a request that names the
// domain, and perhaps disks.
func Redefine(req backup.Request, file string, stdin io.Reader) (*Redefinition, error) {
	c, err := readCheckpoint(file, stdin)
	if err != nil {
		return nil, usage.Wrap(err)
	}
	def, err := definition(c)
	if err != nil {
		return nil, usage.Wrap(err)
	}
	if c.Domain != nil {
		req.DomainUUID = c.Domain.UUID
		req.Files = append(req.Files, backup.FileRequest{Role: chain.RoleDomainXML, Data: c.DomainXML()})
	}
	return &Redefinition{Request: req, Definition: def, xml: c}, nil
}

// definition is what the XML says of the checkpoint itself.
func definition(c *dom.Checkpoint) (checkpoint.Definition, error) {
	def := checkpoint.Definition{
		Name: c.Name, Description: c.Description, Created: time.Unix(c.Created, 0), Parent: c.Parent,
		Bitmaps: make(map[string]string),
	}
	switch {
	case c.Name == "":
		return def, errors.New("the XML does not name the checkpoint")
	case c.Created == 0:
		return def, errors.New("the XML does not say when the checkpoint was created (creationTime)")
	}
	for _, d := range c.Disks {
		if d.Record {
			def.Bitmaps[d.Name] = d.Bitmap
		}
	}
	if len(def.Bitmaps) == 0 {
		return def, errors.New("the XML names no disk with a bitmap")
	}
	return def, nil
}

// FindDisks finds the image of every disk that has a bitmap in the XML: among
// those that the request names, in the domain's definition, or where it was last.
func (r *Redefinition) FindDisks(last []backup.DiskRequest) error {
	var defined []backup.DiskRequest
	if r.xml.Domain != nil {
		for i := range r.xml.Domain.Disks {
			if d := &r.xml.Domain.Disks[i]; d.Path != "" {
				defined = append(defined, backup.DiskRequest{Disk: d.Target, Path: d.Path, Format: qcow2.Format(d.Format)})
			}
		}
	}
	known := slices.Concat(r.Request.Disks, defined, last)
	var all []backup.DiskRequest
	for _, d := range r.xml.Disks {
		if !d.Record {
			continue
		}
		q := backup.DiskRequest{Disk: d.Name}
		if at := slices.IndexFunc(known, func(k backup.DiskRequest) bool { return k.Disk == d.Name }); at >= 0 {
			q = known[at]
		}
		if q.Path == "" {
			return usage.Errorf("where is the image of disk %s? give --disk %s=PATH,format=qcow2", d.Name, d.Name)
		}
		all = append(all, q)
	}
	r.Request.Disks = all
	return nil
}

// Recorded are a domain's disks as its checkpoints, oldest first, found them last,
// by name. Names that disks had before they were renamed are left out.
func Recorded(ms []*chain.Manifest) []backup.DiskRequest {
	var all []backup.DiskRequest
	former := make(map[string]bool)
	for _, m := range slices.Backward(ms) {
		if m.Imported != nil {
			continue // its files were no VM's images
		}
		for i := range m.Disks {
			d := &m.Disks[i]
			if !former[d.Name] && !slices.ContainsFunc(all, func(r backup.DiskRequest) bool { return r.Disk == d.Name }) {
				all = append(all, backup.DiskRequest{Disk: d.Name, Path: d.Source.Path, Format: qcow2.Format(d.Source.Format)})
			}
		}
		for i := range m.Disks {
			former[m.Disks[i].RenamedFrom] = true
		}
	}
	slices.SortFunc(all, func(a, b backup.DiskRequest) int { return strings.Compare(a.Disk, b.Disk) })
	return all
}

// RecordedAt are those of a domain's recorded disks that one of its checkpoints has,
// too, under whatever name.
func RecordedAt(m *chain.Manifest, ms []*chain.Manifest) []backup.DiskRequest {
	return slices.DeleteFunc(Recorded(ms), func(d backup.DiskRequest) bool {
		_, has := chain.StatesOf(ms, d.Disk).WithUUID(m.UUID)
		return !has
	})
}
