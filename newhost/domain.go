// SPDX-License-Identifier: Apache-2.0

package newhost

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/restore"
)

// State is what is known of a domain, or has come of it.
type State string

// The states of a domain.
const (
	Waits    State = "waits"    // is to be restored
	Restored State = "restored" // by this run
	Stands   State = "stands"   // was restored by an earlier run
	Skipped  State = "skipped"  // there is nothing of it to restore, nor was then
	Failed   State = "failed"   // could not be restored
)

// Domain is one domain of the repository. Its fields are set by [Host.Plan], and some again
// by [Host.Restore].
type Domain struct {
	Name     string
	State    State
	Why      string          // why it is skipped
	Err      error           // why it failed
	Manifest *chain.Manifest // the checkpoint; nil: there is none, or it stands, and was not asked for
	Folder   string          // where it goes: absolute; empty: its name can be no folder's
	InTheWay []string        // why all is refused, in words for a person

	Data    int64 // guest data and files' bytes that are to be written
	Targets []restore.Target
	// Definition is what the definition will say; nil: there is none, or WrongDefinition says
	// why it stays as it was.
	Definition      *dom.Adjusted
	WrongDefinition error
	// SharesDisks are disks of others that were the same files or devices as disks of it, in
	// words for a person: they are copies from here on.
	SharesDisks []string

	UUID    string // in the definition, with [Request.Libvirt]; empty: libvirt makes one
	OwnTPM  bool   // the definition says where its TPM's state is
	Defined bool   // libvirt has it, with these disks

	libvirtID string // the UUID that libvirt knows it by, once it is defined

	// Begun: an earlier run has begun to recover it.
	Begun bool
	// Record is what stands in the folder.
	Record *Record
	// Changed are the files of Record that were written to since, relative to Folder.
	Changed []string
}

func (d *Domain) inTheWay(format string, args ...any) {
	d.InTheWay = append(d.InTheWay, fmt.Sprintf(format, args...))
}

func (d *Domain) fail(err error) { d.State, d.Err = Failed, err }

// targets are where the disks go, in a folder.
func (d *Domain) targets(dir string, format qcow2.Format) ([]restore.Target, error) {
	targets, err := restore.TargetsIn(d.Manifest, nil, dir, qcow2.Raw)
	if err != nil {
		return nil, err
	}
	for i := range targets {
		t := &targets[i]
		if t.Format = format; format == "" {
			disk, _ := d.Manifest.Disk(t.Disk)
			t.Format = formatOf(disk)
		}
		t.Path = filepath.Join(dir, t.Disk+"."+string(t.Format))
	}
	return targets, nil
}

// formatOf is the disk's own format, if that is one that is written here, and libvirt and
// QEMU work best with.
func formatOf(d *chain.Disk) qcow2.Format {
	if f := qcow2.Format(d.Source.Format); f == qcow2.Raw || f == qcow2.Qcow2 {
		return f
	}
	return qcow2.Qcow2
}

// files are the checkpoint's files beside the disks, in a folder dir that will be d.Folder.
func (d *Domain) files(dir string, targets []restore.Target) []restore.FileTarget {
	files := restore.FilesIn(d.Manifest, d.Name, dir, targets)
	if d.WrongDefinition != nil {
		return files
	}
	moved := d.moved(dir, targets, files)
	for i := range files {
		if files[i].File.Role == chain.RoleDomainXML {
			files[i].Adjust = func(data []byte) ([]byte, error) {
				a, err := dom.Adjust(data, moved)
				if err != nil {
					return nil, err
				}
				return a.XML, nil
			}
		}
	}
	return files
}

// moved says where the files will be that are written to dir.
func (d *Domain) moved(dir string, targets []restore.Target, files []restore.FileTarget) dom.Moved {
	moved := dom.Moved{Disks: make(map[string]dom.Image)}
	for _, t := range targets {
		disk, _ := d.Manifest.Disk(t.Disk)
		moved.Disks[t.Disk] = dom.Image{Path: d.finally(dir, t.Path), Format: string(t.Format), Decrypted: disk.Decrypted()}
	}
	for i := range files {
		switch path := d.finally(dir, files[i].Path); files[i].File.Role {
		case chain.RoleNVRAM:
			moved.NVRAM = path
		case chain.RoleLoader:
			moved.Loader = path
		}
	}
	return moved
}

// finally is where a file will be that is now at a path in dir.
func (d *Domain) finally(dir, path string) string {
	if rest, ok := strings.CutPrefix(path, dir+"/"); ok {
		return filepath.Join(d.Folder, rest)
	}
	return path
}
