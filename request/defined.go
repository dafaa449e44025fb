// SPDX-License-Identifier: Apache-2.0

package request

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// ErrNoDisks says that a definition has no disk that could be backed up.
var ErrNoDisks = errors.New("no disk of the domain is left to be backed up")

// errUnreadable says that a backup would lack disks that the guest writes to.
var errUnreadable = errors.New("a disk that the guest can write to can't be read from here")

// fill takes into a request what the files and the disks named beside them say of
// it, for a backup that is made now.
func (in *XML) fill(req *backup.Request, disks []disk, p purpose) error {
	if in.domain == nil {
		if in.backup != nil || in.checkpoint != nil {
			return usage.Errorf("--backup-xml and --checkpoint-xml need the domain's definition: --domain-xml FILE")
		}
		req.Disks = append(req.Disks, requests(disks)...)
		return nil
	}
	if err := in.align(req.Checkpoint, time.Now()); err != nil {
		return err
	}
	err := in.fillDefined(req, disks, p)
	var inUse *qemu.InUseError
	if errors.Is(err, errUnreadable) || errors.As(err, &inUse) {
		return err
	}
	return usage.Wrap(err)
}

func (in *XML) fillDefined(req *backup.Request, disks []disk, p purpose) (err error) {
	req.DomainUUID, req.Autostart = in.domain.UUID, in.autostart()
	if req.Files, err = in.files(); err != nil {
		return err
	}
	if err := in.fillCheckpoint(req); err != nil {
		return err
	}
	choices, err := in.choices(disks, p)
	if err != nil {
		return err
	}
	var unreadable, excluding []string
	for i := range in.domain.Disks {
		d := &in.domain.Disks[i]
		c := choices[d.Target]
		in.leaveOut(d, &c)
		code, reason := c.skips(d)
		if reason == "" {
			r, err := in.request(d, &c)
			if err != nil {
				return &chain.DiskError{Disk: d.Target, Err: err}
			}
			req.Disks = append(req.Disks, r)
			continue
		}
		if c.wanted {
			return fmt.Errorf("disk %s cannot be backed up: it is %s", d.Target, reason)
		}
		if code == "" {
			unreadable = append(unreadable, d.Target+" is "+reason)
			excluding = append(excluding, in.excluding(d.Target))
			continue
		}
		if code == chain.LeftOutReadOnly {
			in.note("disk %s of %s is left out: %s", d.Target, in.domain.Name, reason)
		}
		req.LeftOut = append(req.LeftOut, chain.LeftOut{Disk: d.Target, Code: code, Reason: reason})
	}
	if len(unreadable) > 0 {
		return fmt.Errorf("%w: disk %s (a backup without it takes %s)", errUnreadable,
			strings.Join(unreadable, "; disk "), strings.Join(excluding, " "))
	}
	if len(req.Disks) == 0 {
		return ErrNoDisks
	}
	return in.applyCheckpoint(req)
}

// leaveOut leaves out what a VM's manager says is not to be backed up, unless it is named.
func (in *XML) leaveOut(d *dom.Disk, c *choice) {
	if in.vm == nil || c.wanted || c.dropped != "" || in.vm.except[d.Target] == "" {
		return
	}
	c.dropped = in.vm.except[d.Target]
	in.note("disk %s of %s is left out: %s (--disk %s takes it)", d.Target, in.domain.Name, c.dropped, d.Target)
}

// request is how one disk is backed up.
func (in *XML) request(d *dom.Disk, c *choice) (backup.DiskRequest, error) {
	r, err := c.request(d)
	if in.vm != nil && in.vm.still {
		r.NoCheckpoint = true
	}
	if in.vm != nil && c.Path == "" {
		r.AllowDirs = append(r.AllowDirs, in.vm.dirs[d.Target]...)
	}
	return r, err
}

// excluding is what leaves a disk out of a backup.
func (in *XML) excluding(disk string) string {
	if in.backup != nil {
		return fmt.Sprintf("<disk name='%s' backup='no'/>", disk)
	}
	return fmt.Sprintf("--disk %s,backup=no", disk)
}

// files are the definition itself and what it names of firmware, or what the VM's manager has.
func (in *XML) files() ([]backup.FileRequest, error) {
	if in.vm != nil {
		return slices.Clone(in.vm.files), nil
	}
	files := []backup.FileRequest{{Role: chain.RoleDomainXML, Path: in.domainPath, Data: in.domainXML}}
	for role, path := range map[string]string{chain.RoleNVRAM: in.domain.NVRAM, chain.RoleLoader: in.domain.Loader} {
		if path == "" {
			continue
		}
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("the definition's %s %q is no absolute path", role, path)
		}
		files = append(files, backup.FileRequest{Role: role, Path: path})
	}
	tpm, err := in.tpm()
	if err != nil {
		return nil, err
	}
	files = append(files, tpm...)
	saved, err := in.saved()
	if err != nil {
		return nil, err
	}
	files = append(files, saved...)
	slices.SortFunc(files, func(a, b backup.FileRequest) int { return strings.Compare(a.Role, b.Role) })
	return files, nil
}

// fillCheckpoint takes name and description from the checkpoint's XML.
func (in *XML) fillCheckpoint(req *backup.Request) error {
	c := in.checkpoint
	if c == nil {
		return nil
	}
	req.Checkpoint = c.Name // align has settled it with --checkpoint
	if c.Description != "" {
		if req.Description != "" && req.Description != c.Description {
			return errors.New("--description says otherwise than the checkpoint XML")
		}
		req.Description = c.Description
	}
	return nil
}

// choice is what was said of one disk beside the definition.
type choice struct {
	disk
	wanted  bool // it was named
	dropped string
}

// choices gathers what the backup's XML, or the values of --disk, say.
func (in *XML) choices(disks []disk, p purpose) (map[string]choice, error) {
	all := make(map[string]choice)
	for _, f := range disks {
		if _, ok := in.domain.Disk(f.Disk); !ok {
			return nil, fmt.Errorf("--disk %s: the domain %s has no such disk", f.Disk, in.domain.Name)
		}
		if _, twice := all[f.Disk]; twice {
			return nil, fmt.Errorf("disk %s is named twice", f.Disk)
		}
		c := choice{disk: f, wanted: !f.leaveOut}
		if f.leaveOut {
			c.dropped = "left out by --disk"
		}
		all[f.Disk] = c
	}
	if in.backup == nil {
		return all, nil
	}
	switch mode := in.backup.Mode; {
	case mode == dom.Pull && p != toExport:
		return nil, errors.New("a pull backup offers the disks over NBD and archives nothing: imgbackup export does that")
	case mode != dom.Pull && p == toExport:
		return nil, errors.New("a push backup writes the disks to files and serves nothing: imgbackup backup does that")
	}
	for _, bd := range in.backup.Disks {
		c := choice{wanted: bd.Backup}
		if d, ok := in.domain.Disk(bd.Name); !bd.Backup && ok && !d.Empty() && !d.ReadOnly {
			c.dropped = "left out by the backup XML"
		}
		if bd.Backup {
			c.Mode, c.Since = backup.Full, ""
			if bd.BackupMode == dom.Incremental {
				c.Mode, c.Since = backup.Incremental, bd.Incremental
			}
		}
		all[bd.Name] = c
	}
	return all, nil
}

// skips says why a disk is not taken; no reason: it is; no code: a backup without it
// would lack what the guest has written. What is read-only can be taken when it is
// asked for, as in libvirt.
func (c *choice) skips(d *dom.Disk) (code, reason string) {
	switch {
	case c.dropped != "":
		return chain.LeftOutByRequest, c.dropped
	case d.Empty() && (d.Device == "disk" || d.Device == "lun"):
		return "", "a disk without a source"
	case d.Empty():
		return chain.LeftOutEmpty, fmt.Sprintf("a %s without a medium", d.Device)
	case d.Device == "cdrom" && !c.wanted:
		return chain.LeftOutCdrom, "a cdrom, which is read-only"
	case d.ReadOnly && !c.wanted:
		return chain.LeftOutReadOnly, "read-only"
	case c.Path != "" || d.Type == dom.TypeFile || d.Type == dom.TypeBlock:
		return "", ""
	case d.Unresolved != nil:
		return "", fmt.Sprintf("volume %s of storage pool %s: %v", d.Volume.Name, d.Volume.Pool, d.Unresolved)
	}
	what := d.Type
	if d.Protocol != "" {
		what += " (" + d.Protocol + ")"
	}
	return "", fmt.Sprintf("a disk of type %s, no file or block device of this host", what)
}

// request is how one disk of a definition is backed up.
func (c *choice) request(d *dom.Disk) (backup.DiskRequest, error) {
	r := c.DiskRequest
	r.Disk = d.Target
	if r.Format == "" {
		switch r.Format = qcow2.Format(d.Format); {
		case slices.Contains(Formats(), d.Format):
		case r.Format == "":
			return r, errors.New("the definition has no <driver type=…>, and a format is never guessed: add --disk " + d.Target + ",format=qcow2|raw")
		default:
			return r, fmt.Errorf("images of format %s cannot be read: --disk %s,backup=no leaves it out", d.Format, d.Target)
		}
	}
	if r.Path != "" {
		return r, nil
	}
	r.Path = d.Path
	switch {
	case !filepath.IsAbs(d.Path):
		return r, fmt.Errorf("the definition's path %q is not absolute", d.Path)
	case d.Sliced:
		return r, errors.New("only a part of the file is the disk (<slices>), which is not supported: --disk " + d.Target + ",backup=no leaves it out")
	}
	if len(d.Backing) == 0 && !d.BackingEnds {
		return r, nil
	}
	r.Defined = &backup.DefinedChain{Ends: d.BackingEnds}
	for _, im := range d.Backing {
		if im.Path == "" || !filepath.IsAbs(im.Path) {
			return r, errors.New("the definition names a backing image that is no file or block device of this host")
		}
		r.Defined.Images = append(r.Defined.Images, backup.DefinedImage{Path: im.Path, Format: im.Format})
		// The host's administrator wrote the definition, not the guest.
		r.AllowDirs = append(r.AllowDirs, filepath.Dir(im.Path))
	}
	return r, nil
}

// applyCheckpoint takes from the checkpoint's XML which disks get a bitmap. A
// bitmap in a disk that is not backed up would record changes since a state that
// nothing holds.
func (in *XML) applyCheckpoint(req *backup.Request) error {
	if in.checkpoint == nil {
		return nil
	}
	record := make(map[string]bool)
	for _, cd := range in.checkpoint.Disks {
		record[cd.Name] = cd.Record
	}
	for i := range req.Disks {
		r := &req.Disks[i]
		r.NoCheckpoint = !record[r.Disk]
		delete(record, r.Disk)
	}
	for _, cd := range in.checkpointGiven {
		if cd.Record && record[cd.Name] {
			return fmt.Errorf("the checkpoint XML wants a bitmap in disk %s, which is not backed up (checkpoint create makes a checkpoint without data)", cd.Name)
		}
	}
	return nil
}
