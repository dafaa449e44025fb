// SPDX-License-Identifier: Apache-2.0

package request

import (
	"errors"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/pull"
	"github.com/imgbackup/imgbackup/foreign"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
)

// DiskForm is what --disk takes in all commands that back up.
const DiskForm = "TARGET=PATH,format=FORMAT[,keyfile=FILE][,backupmode=full|incremental][,incremental=CHECKPOINT]"

// Formats lists the formats of images that can be read.
func Formats() []string {
	names := []string{string(qcow2.Qcow2), string(qcow2.Raw)}
	for _, f := range foreign.Formats() {
		names = append(names, string(f))
	}
	return names
}

// ParseFormat returns the format that s names, if images of it can be read.
func ParseFormat(s string) (qcow2.Format, error) {
	if !slices.Contains(Formats(), s) {
		return "", usage.Errorf("format %q: want %s", s, oneOf(Formats()))
	}
	return qcow2.Format(s), nil
}

// disk is the value of a --disk.
type disk struct {
	backup.DiskRequest
	names    pull.Names // an export's
	leaveOut bool       // backup=no
}

// purpose is what disks are named for: keys differ.
type purpose int

const (
	toBackUp purpose = iota
	toExport
	toOpen // the image alone is of interest
)

// parseDisks reads the values of --disk.
func parseDisks(values []string, p purpose, defined bool) ([]disk, error) {
	var all []disk
	for _, v := range values {
		d, err := parseDisk(v, p, defined)
		if err != nil {
			return nil, usage.Errorf("--disk %q: %w", v, err)
		}
		all = append(all, d)
	}
	return all, nil
}

// parseDisk reads the value of a --disk. Beside a definition of the domain it only
// says what differs from that: path and format may be left out.
func parseDisk(value string, p purpose, defined bool) (disk, error) {
	var d disk
	o := splitOptions(value)
	if o.disk == "" || o.hasPath && o.path == "" || !o.hasPath && !defined {
		return d, fmt.Errorf("want %s", DiskForm)
	}
	d.Disk, d.names.Disk, d.Path = o.disk, o.disk, o.path
	given, err := o.read(d.options(p, defined))
	switch {
	case err != nil:
		return d, err
	case p == toOpen && (given["backupmode"] || given["incremental"] || given["bitmap"]):
		return d, errors.New("backupmode, incremental and bitmap are for backups")
	case d.leaveOut && len(given) > 1:
		return d, errors.New("backup=no goes with nothing else")
	case d.Format == "" && !defined:
		return d, errors.New("no format: add format=qcow2 or format=raw (it is never guessed, since a guest can write any header into its disk)")
	}
	return d, nil
}

func (d *disk) options(p purpose, defined bool) []option {
	all := []option{
		{"format", func(val string) (err error) {
			d.Format, err = ParseFormat(val)
			return err
		}},
		text("keyfile", "file", &d.KeyFile),
		word("backupmode", &d.Mode, backup.Full, backup.Incremental),
		text("incremental", "checkpoint", &d.Since),
		text("bitmap", "bitmap", &d.Bitmap),
		yesNo("trustraw", func(yes bool) { d.TrustRawData = &yes }),
	}
	if defined {
		all = append(all, yesNo("backup", func(yes bool) { d.leaveOut = !yes }))
	}
	if p == toExport {
		all = append(all, text("exportname", "export", &d.names.Export), text("exportbitmap", "bitmap", &d.names.Bitmap),
			option{"checkpoint", func(val string) error {
				if d.NoCheckpoint = val == "no"; !d.NoCheckpoint {
					return fmt.Errorf("checkpoint %q: want no", val)
				}
				return nil
			}})
	}
	return all
}

func yesNo(key string, set func(bool)) option {
	var val string
	o := word(key, &val, "yes", "no")
	take := o.set
	o.set = func(v string) error {
		err := take(v)
		if err == nil {
			set(val == "yes")
		}
		return err
	}
	return o
}

// Images reads the values of --disk for a command that only opens the images.
func Images(values []string) ([]backup.DiskRequest, error) {
	disks, err := parseDisks(values, toOpen, false)
	return requests(disks), err
}

func known(all []backup.DiskRequest) (disks []disk) {
	for _, d := range all {
		disks = append(disks, disk{DiskRequest: d, names: pull.Names{Disk: d.Disk}})
	}
	return disks
}

func requests(disks []disk) []backup.DiskRequest {
	var all []backup.DiskRequest
	for _, d := range disks {
		all = append(all, d.DiskRequest)
	}
	return all
}
