// SPDX-License-Identifier: Apache-2.0

package request

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/inherit"
	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/foreign/virtnbd"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
)

// fromVirtNBD are the points that virtnbdbackup has left in a folder.
func (im *Import) fromVirtNBD() ([]inherit.Point, error) {
	zone, err := im.zone()
	if err != nil {
		return nil, err
	}
	folder, err := virtnbd.Scan(im.VirtNBD, zone, im.Engine.AllowDirs)
	if err != nil {
		return nil, err
	}
	im.Notes = append(im.Notes, folder.Notes...)
	var points []inherit.Point
	for i := range folder.Backups {
		b := &folder.Backups[i]
		p := inherit.Point{Made: b.Made, Time: chain.TimeRecorded, From: "virtnbdbackup (" + b.Kind + ")", Refused: b.Refused, Verify: verify(b)}
		if b.Checkpoint != "" {
			p.From += ", its checkpoint " + b.Checkpoint
		}
		if im.From != "" {
			p.From = im.From
		}
		definition, err := im.define(&p, b)
		if err != nil {
			p.Refused = errors.Join(p.Refused, err)
		}
		for k := range b.Disks {
			d, err := leftBy(&b.Disks[k], definition)
			if err != nil && p.Refused == nil {
				p.Refused = &chain.DiskError{Disk: d.Disk, Err: err}
			}
			p.Disks = append(p.Disks, d)
		}
		points = append(points, p)
	}
	return points, nil
}

// zone is that of times which say none.
func (im *Import) zone() (*time.Location, error) {
	if im.Timezone == "" {
		return time.Local, nil
	}
	zone, err := time.LoadLocation(im.Timezone)
	if err != nil {
		return nil, usage.Errorf("--timezone %q: %w", im.Timezone, err)
	}
	return zone, nil
}

// define takes the definition that lies beside a backup into a point; nil: there is none.
func (im *Import) define(p *inherit.Point, b *virtnbd.Backup) (*dom.Domain, error) {
	if b.Config == "" {
		return nil, nil
	}
	data, err := sys.ReadBounded(b.Config, chain.MaxDomainXML)
	if err != nil {
		return nil, err
	}
	d, err := dom.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("the domain's definition: %s: %w", b.Config, err)
	}
	path, err := filepath.Abs(b.Config)
	if err != nil {
		return nil, err
	}
	p.Files = append(p.Files, backup.FileRequest{Role: chain.RoleDomainXML, Path: path, Data: data})
	p.DomainUUID = d.UUID
	im.beside(p, b, d)
	switch {
	case im.Domain == "" && im.found == "":
		im.found = d.Name
	case im.Domain == "" && im.found != d.Name:
		return d, fmt.Errorf("%s defines domain %s, and another of these %s: say which domain it is to be (import DOMAIN …)", b.Config, d.Name, im.found)
	}
	return d, nil
}

// beside takes what the program has copied of the files that a definition names.
func (im *Import) beside(p *inherit.Point, b *virtnbd.Backup, d *dom.Domain) {
	p.Autostart = b.Autostart()
	for _, f := range []struct{ role, original string }{
		{chain.RoleNVRAM, d.NVRAM}, {chain.RoleLoader, d.Loader}, {chain.RoleFile, d.Kernel}, {chain.RoleFile, d.Initrd},
	} {
		if f.original == "" {
			continue
		}
		r := backup.FileRequest{Role: f.role, Path: b.Beside(f.original), NoLink: true}
		if f.role == chain.RoleFile {
			r.Name = filepath.Base(f.original)
		}
		why := "virtnbdbackup has left no copy of it"
		if r.Path != "" {
			why = im.addBeside(p, r)
		}
		if why != "" {
			im.Notes = append(im.Notes, fmt.Sprintf("%s, which %s names, is not imported: %s", f.original, b.Config, why))
		}
	}
}

// addBeside adds a file to a point, or returns why it is none.
func (im *Import) addBeside(p *inherit.Point, r backup.FileRequest) string {
	path, err := filepath.Abs(r.Path)
	if err != nil {
		return err.Error()
	}
	if r.Role == chain.RoleFile {
		err = chain.CheckName(r.Name)
	}
	info, serr := os.Lstat(path)
	switch {
	case err != nil:
		return err.Error()
	case serr != nil:
		return serr.Error()
	case info.Size() > archive.MaxFile:
		return fmt.Sprintf("%s has more than %d MiB", path, archive.MaxFile>>20)
	case slices.ContainsFunc(p.Files, func(o backup.FileRequest) bool { return o.Role == r.Role && o.Name == r.Name }):
		return "another file has its name"
	}
	r.Path = path
	p.Files = append(p.Files, r)
	return ""
}

// verify compares the files of a backup with the checksums beside them; nil: there are none.
func verify(b *virtnbd.Backup) func(context.Context, func(context.Context, int) error) error {
	if !slices.ContainsFunc(b.Disks, func(d virtnbd.Disk) bool { return d.HasChecksums() }) {
		return nil
	}
	return func(ctx context.Context, wait func(context.Context, int) error) error {
		for i := range b.Disks {
			if err := b.Disks[i].Verify(ctx, wait); err != nil {
				return &chain.DiskError{Disk: b.Disks[i].Name, Err: err}
			}
		}
		return nil
	}
}

// leftBy is a disk of virtnbdbackup as the engine takes it.
func leftBy(d *virtnbd.Disk, definition *dom.Domain) (backup.DiskRequest, error) {
	r := backup.DiskRequest{Disk: d.Name, Path: d.Top(), Format: virtnbd.Format, Open: d.Open}
	format := ""
	if definition != nil {
		if known, ok := definition.Disk(d.Name); ok {
			format = known.Format
		}
	}
	switch {
	case len(d.Files) == 1 && format == "raw":
		r.Format, r.Open, r.NoLink = qcow2.Raw, nil, true // which it is copied as it is, whatever its guest has written into it
	case d.Raw && format == "":
		return r, fmt.Errorf("%s is no stream, and no definition beside it says that the disk was raw: --disk %s=FILE,format=raw imports it", d.Top(), d.Name)
	case d.Raw:
		r.Format, r.Open, r.NoLink = qcow2.Raw, nil, true // virtnbdbackup --type raw
	}
	return r, nil
}
