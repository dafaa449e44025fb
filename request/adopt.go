// SPDX-License-Identifier: Apache-2.0

package request

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// Adoption is what a person says of checkpoints that another program made.
type Adoption struct {
	Domain string   // empty: the definition's, or that of the checkpoints
	Files  []string // of domaincheckpoints
	Folder string   // with more of them, *.xml; empty: none
	XML    Files    // the domain's definition, if there is one; nothing else
	Disks  []string
	Engine backup.Request
}

// Read reads the checkpoints, each behind the one that it follows, and where their
// images are, as far as the definition or a --disk says it.
func (a *Adoption) Read(stdin io.Reader) ([]*Redefinition, error) {
	all, err := a.read(stdin)
	return all, usage.Wrap(err)
}

func (a *Adoption) read(stdin io.Reader) ([]*Redefinition, error) {
	in, err := a.XML.Read(stdin)
	if err != nil {
		return nil, err
	}
	files := slices.Clone(a.Files)
	if a.Folder != "" {
		more, err := definitionsIn(a.Folder)
		if err != nil {
			return nil, err
		}
		for _, name := range more {
			files = append(files, filepath.Join(a.Folder, name))
		}
	}
	var all []*Redefinition
	for _, file := range files {
		r, err := a.readOne(in, file, stdin)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(all, func(o *Redefinition) bool { return o.Definition.Name == r.Definition.Name }) {
			return nil, fmt.Errorf("%s: checkpoint %s is given twice", file, r.Definition.Name)
		}
		all = append(all, r)
	}
	return inOrder(all)
}

// readOne reads one checkpoint's file.
func (a *Adoption) readOne(in *XML, file string, stdin io.Reader) (*Redefinition, error) {
	r, err := Redefine(a.Engine, file, stdin)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if err := a.sameDomain(in, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	for _, d := range r.xml.Disks {
		if d.Record && d.Bitmap == "" { // as libvirt completes it
			r.Definition.Bitmaps[d.Name] = r.Definition.Name
		}
	}
	disks, err := parseDisks(a.Disks, toOpen, in.domain != nil)
	if err != nil {
		return nil, err
	}
	r.Request.Disks, err = in.locations(requests(disks))
	if err == nil && r.xml.Domain == nil && in.domain != nil {
		r.Request.DomainUUID = in.domain.UUID
		r.Request.Files = []backup.FileRequest{{Role: chain.RoleDomainXML, Path: in.domainPath, Data: in.domainXML}}
	}
	return r, err
}

// sameDomain sees that a checkpoint is of the domain that is meant, as libvirt does: by
// its UUID where both tell it.
func (a *Adoption) sameDomain(in *XML, r *Redefinition) error {
	name, of := a.Domain, r.xml.Domain
	if in.domain != nil || name == "" && of == nil {
		var err error
		if name, err = in.DomainName(name); err != nil {
			return err
		}
	}
	if name == "" {
		name = of.Name
	}
	r.Request.Domain = name
	switch {
	case of == nil || in.domain == nil || of.UUID == "" || in.domain.UUID == "" || of.UUID == in.domain.UUID:
		return nil
	}
	return fmt.Errorf("checkpoint %s is of the domain with UUID %s, and %s has %s", r.Definition.Name, of.UUID, name, in.domain.UUID)
}

// locations are the disks that were named, and the others of the definition that are
// files or block devices of this host.
func (in *XML) locations(named []backup.DiskRequest) ([]backup.DiskRequest, error) {
	all := slices.Clone(named)
	if in.domain == nil {
		return all, nil
	}
	for i := range in.domain.Disks {
		d := &in.domain.Disks[i]
		var c choice
		at := slices.IndexFunc(all, func(r backup.DiskRequest) bool { return r.Disk == d.Target })
		if at >= 0 {
			c.DiskRequest = all[at]
		}
		if c.Path == "" && d.Type != dom.TypeFile && d.Type != dom.TypeBlock {
			continue // FindDisks tells, if it is needed
		}
		r, err := c.request(d)
		switch {
		case at >= 0 && err != nil:
			return nil, &chain.DiskError{Disk: d.Target, Err: err}
		case at >= 0:
			all[at] = r
		case err == nil:
			all = append(all, r)
		}
	}
	return all, nil
}

// inOrder puts each checkpoint behind its parent, if that is one of them, and keeps the
// order otherwise.
func inOrder(all []*Redefinition) ([]*Redefinition, error) {
	var sorted []*Redefinition
	waits := func(r *Redefinition, in []*Redefinition) bool {
		return slices.ContainsFunc(in, func(o *Redefinition) bool { return o.Definition.Name == r.Definition.Parent })
	}
	for len(all) > 0 {
		at := slices.IndexFunc(all, func(r *Redefinition) bool { return !waits(r, all) })
		if at < 0 {
			return nil, errors.New("the checkpoints follow one another in a circle: " + all[0].Definition.Name + " follows itself")
		}
		sorted = append(sorted, all[at])
		all = slices.Delete(all, at, at+1)
	}
	return sorted, nil
}
