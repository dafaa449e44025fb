// SPDX-License-Identifier: Apache-2.0

package request

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
	"github.com/imgbackup/imgbackup/restore"
)

// InPlace is a restore of disks to where they were. Whoever can write to a repository
// can write any path into a manifest: so what a path names here has to look like what
// the checkpoint says of it, or Force says that it is meant all the same.
type InPlace struct {
	Host        chain.Host // this one
	Definitions string     // where libvirt keeps its domains
	Saved       string     // where it keeps the memory of saved ones; empty: in its own folder
	Force       bool

	// Newest is the newest checkpoint of the domain that can be read; nil: none. Where it
	// has the disks is where they are now, as far as the repository knows.
	Newest *chain.Manifest

	m          *chain.Manifest
	file       string      // the definition's; empty: there is none
	definition *dom.Domain // nil: there is none
	doubts     []string    // that Force overrides
	notes      []string    // what a person should know besides
}

// ErrNotInPlace says why disks are not put back where they were.
var ErrNotInPlace = errors.New("not restored in place")

// Targets are where the disks that are named, or all disks of the checkpoint, are to
// go. The notes are for a person.
func (p *InPlace) Targets(m *chain.Manifest, disks []string) (targets []restore.Target, notes []string, err error) {
	if p.m = m; m.Imported != nil {
		return nil, nil, usage.Errorf("checkpoint %s was imported: what it was read from is others' (%s), and where the disks were nobody has recorded: --to TARGET=PATH says where they go",
			m.Checkpoint, m.Imported.Files[0].Path)
	}
	if targets, err = restore.TargetsInPlace(m, disks); err != nil {
		return nil, nil, err
	}
	if err := p.checkSaved(); err != nil {
		return nil, nil, err
	}
	if !m.Host.Is(p.Host) {
		p.doubt("checkpoint %s was made on another host, %s", m.Checkpoint, cmp.Or(m.Host.Name, "which has no name"))
	}
	if err := p.readDefinition(); err != nil {
		return nil, nil, err
	}
	for i := range targets {
		if err := p.place(&targets[i]); err != nil {
			return nil, nil, &chain.DiskError{Disk: targets[i].Disk, Err: err}
		}
	}
	if len(p.doubts) > 0 && !p.Force {
		return nil, nil, fmt.Errorf("%w: %s (--force does it all the same; --to says where else a disk goes)",
			ErrNotInPlace, strings.Join(p.doubts, "; "))
	}
	return targets, append(p.doubts, p.notes...), nil
}

func (p *InPlace) doubt(format string, args ...any) {
	p.doubts = append(p.doubts, fmt.Sprintf(format, args...))
}

// checkSaved refuses to put disks under a memory that libvirt has saved of others.
func (p *InPlace) checkSaved() error {
	path := filepath.Join(cmp.Or(p.Saved, Saved), p.m.Domain+".save")
	switch _, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("has libvirt saved the memory of %s? %w", p.m.Domain, err)
	}
	return &qemu.InUseError{Path: path, Why: fmt.Sprintf("libvirt has saved the memory of %s there, and would resume it with other disks: "+
		"drop it with 'virsh managedsave-remove %s' first", p.m.Domain, p.m.Domain)}
}

// readDefinition reads what this host says of the domain now, if it has its definition.
func (p *InPlace) readDefinition() error {
	var places []string
	if f, ok := p.m.File(chain.RoleDomainXML); ok && f.Path != "" {
		places = append(places, f.Path)
	}
	for _, path := range append(places, filepath.Join(p.Definitions, p.m.Domain+".xml")) {
		data, err := readFile(path, nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			p.definition, err = dom.Parse(data)
		}
		if err != nil {
			return fmt.Errorf("the domain's definition: %s: %w", path, err)
		}
		p.file = path
		p.definition.ResolveVolumes(func(pool string) ([]byte, error) { return readFile(Pools+"/"+pool+".xml", nil) })
		if d := p.definition; d.Name != p.m.Domain || d.UUID != "" && p.m.DomainUUID != "" && d.UUID != p.m.DomainUUID {
			p.doubt("the definition %s is that of another domain (%s, UUID %s)", path, d.Name, cmp.Or(d.UUID, "none"))
		}
		return nil
	}
	return nil
}

// place settles where a disk goes, and looks at what is there.
func (p *InPlace) place(t *restore.Target) error {
	if t.Format == "luks" {
		return usage.Errorf("it was a LUKS image, which is not written: --to with --format qcow2 and --secret-file restores it encrypted")
	}
	if !filepath.IsAbs(t.Path) {
		return usage.Errorf("the checkpoint does not say where it was")
	}
	if err := p.asDefined(t); err != nil {
		return err
	}
	p.asSeenLast(t)
	return p.look(t)
}

// asSeenLast compares with the newest checkpoint. What became a backing file since (by an
// external snapshot) is part of another image: that one would be another disk afterwards.
func (p *InPlace) asSeenLast(t *restore.Target) {
	if p.Newest == nil || p.Newest.Imported != nil || !p.Newest.Host.Is(p.Host) {
		return
	}
	for i := range p.Newest.Disks {
		d := &p.Newest.Disks[i]
		below := slices.ContainsFunc(d.Backing, func(l chain.Layer) bool { return l.Path == t.Path })
		switch {
		case below:
			p.doubt("disk %s: %s is a backing file of %s since (checkpoint %s, disk %s), which would be worth nothing without it",
				t.Disk, t.Path, d.Source.Path, p.Newest.Checkpoint, d.Name)
		case d.Name == t.Disk && d.Source.Path != t.Path:
			p.doubt("disk %s was %s, and at checkpoint %s it was %s", t.Disk, t.Path, p.Newest.Checkpoint, d.Source.Path)
		case d.Name != t.Disk && d.Source.Path == t.Path:
			p.doubt("disk %s: at checkpoint %s %s was disk %s", t.Disk, p.Newest.Checkpoint, t.Path, d.Name)
		case d.Name == t.Disk:
			p.noteChanged(d)
		}
	}
}

// noteChanged tells that a file is replaced that was written to since the newest checkpoint.
func (p *InPlace) noteChanged(d *chain.Disk) {
	then := &d.Source
	fi, err := os.Stat(then.Path)
	if err == nil && fi.Mode().IsRegular() && then.Mtime != 0 && fi.ModTime().UnixNano() != then.Mtime && !nothingSince(d) {
		p.notes = append(p.notes, fmt.Sprintf("%s was changed since checkpoint %s: what was written to it since then is in no backup, and is replaced",
			then.Path, p.Newest.Checkpoint))
	}
}

// nothingSince reports whether the bitmap that a checkpoint has given an image says that nothing was
// written since. A backup that takes an older one out afterwards changes the file's time all the same.
func nothingSince(d *chain.Disk) bool {
	if d.Bitmap == "" || qcow2.Format(d.Source.Format) != qcow2.Qcow2 {
		return false
	}
	img, err := qcow2.Open(d.Source.Path, qcow2.Qcow2, qcow2.OpenOptions{})
	if err != nil {
		return false
	}
	defer func() { _ = img.Close() }() // it was only read
	for _, b := range img.Layers[0].Bitmaps {
		if b.Name == d.Bitmap && b.Problem == nil && b.Enabled && !b.InUse {
			dirty, err := b.DirtyBytes()
			return err == nil && dirty == 0
		}
	}
	return false
}

// asDefined compares with the definition. It alone has the lasting name of a device.
func (p *InPlace) asDefined(t *restore.Target) error {
	var d *dom.Disk
	if p.definition != nil {
		var ok bool
		if d, ok = p.definition.Disk(t.Disk); !ok {
			p.doubt("the definition %s has no disk %s", p.file, t.Disk)
		}
	}
	if strings.HasPrefix(t.Path, "/dev/") {
		if d == nil || d.Path == "" {
			return usage.Errorf("it was the device %s, which may be another one by now: --to %s=PATH with --force says where it goes", t.Path, t.Disk)
		}
		t.Path = d.Path
		return nil
	}
	if d == nil {
		return nil
	}
	if now, err := sys.Locate(d.Path); d.Path != t.Path && (err != nil || now != t.Path) {
		p.doubt("disk %s was %s, and in the definition %s it is %s now", t.Disk, t.Path, p.file, cmp.Or(d.Path, "no file"))
	}
	if d.Format != "" && d.Format != string(t.Format) {
		p.doubt("disk %s is restored as %s, and the definition %s says %s", t.Disk, t.Format, p.file, d.Format)
	}
	if len(d.Backing) > 0 {
		p.doubt("the definition %s states a backing chain of disk %s, and the restored image has none: its <backingStore> has to go before the domain is started", p.file, t.Disk)
	}
	return nil
}

// look looks at what stands there. What may not be replaced at all, or is in use, the
// restore finds out.
func (p *InPlace) look(t *restore.Target) error {
	fi, err := os.Stat(t.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p.doubt("disk %s: there is no %s any more", t.Disk, t.Path)
		return nil
	case err != nil:
		return err
	case fi.Mode()&fs.ModeDevice != 0:
		p.doubt("disk %s: %s is a device, which is overwritten where it is: what it holds is not kept until the new content stands", t.Disk, t.Path)
		return nil
	case !fi.Mode().IsRegular():
		return nil
	}
	f, err := os.Open(t.Path)
	if err != nil {
		return err
	}
	like, err := qcow2.Resemble(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	d, _ := p.m.Disk(t.Disk)
	const sector = 512
	switch {
	case like.Encrypted:
		return usage.Errorf("%s is encrypted, and what the archive holds is not: --to with --secret-file restores it encrypted", t.Path)
	case t.Format == qcow2.Raw && (fi.Size()+sector-1)/sector*sector != d.Size:
		p.doubt("disk %s: %s is not as long as it was (%d bytes, not %d)", t.Disk, t.Path, fi.Size(), d.Size)
	case t.Format != qcow2.Raw && like.Format != t.Format:
		p.doubt("disk %s: what is at %s is no %s image", t.Disk, t.Path, t.Format)
	case like.Snapshots > 0:
		p.doubt("disk %s: the internal snapshots in %s are not in the archive, and go", t.Disk, t.Path)
	}
	return nil
}
