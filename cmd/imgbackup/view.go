// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/habit"
)

// diskNames are what a disk is called in every JSON: docs/json.md says disk, and target
// is what some commands called it before.
type diskNames struct {
	Disk   string `json:"disk"`
	Target string `json:"target"`
}

func diskNamed(name string) diskNames { return diskNames{name, name} }

// checkpointNames are what a checkpoint is called, likewise.
type checkpointNames struct {
	Checkpoint string `json:"checkpoint"`
	Name       string `json:"name"`
}

func checkpointNamed(name string) checkpointNames { return checkpointNames{name, name} }

// diskJSON is one disk of a checkpoint as --json shows it. Sizes are in bytes.
type diskJSON struct {
	diskNames
	RenamedFrom     string       `json:"renamed_from,omitempty"`
	Source          string       `json:"source"`
	Format          string       `json:"format"`
	VirtualSize     int64        `json:"virtual_size"`
	BackupMode      string       `json:"backupmode"` // what was asked for
	Mode            string       `json:"mode"`       // what was done: full or incremental
	Detection       string       `json:"detection"`  // bitmap, content or none
	ReasonCode      string       `json:"reason_code"`
	Reason          string       `json:"reason"`
	IncrementalFrom string       `json:"incremental_from,omitempty"`
	Bitmap          string       `json:"bitmap,omitempty"`
	LibvirtBitmap   string       `json:"libvirt_bitmap,omitempty"`
	Adopted         *time.Time   `json:"adopted,omitempty"`
	NoBitmapReason  string       `json:"no_bitmap_reason,omitempty"`
	DirtyBytes      int64        `json:"dirty_bytes"`
	DataBytes       int64        `json:"data_bytes"`
	StoredBytes     int64        `json:"stored_bytes"`
	ReusedBytes     int64        `json:"reused_bytes"`
	ZeroBytes       int64        `json:"zero_bytes,omitempty"`
	Maps            int          `json:"maps"` // that a restore reads
	LostRanges      int          `json:"lost_ranges,omitempty"`
	LostBytes       int64        `json:"lost_bytes,omitempty"`
	Lost            []chain.Lost `json:"lost,omitempty"` // of a backup only
	// Unusual is what is unlike the backups before, likewise.
	Unusual []habit.Finding `json:"unusual,omitempty"`
	*auditJSON
}

func viewDisk(d *chain.Disk) diskJSON {
	out := diskJSON{
		diskNames: diskNamed(d.Name), RenamedFrom: d.RenamedFrom, Source: d.Source.Path, Format: d.Source.Format, VirtualSize: d.Size,
		BackupMode: d.Requested, Mode: d.Mode, Detection: d.Detection, ReasonCode: d.ReasonCode, Reason: d.Reason,
		Bitmap: d.Bitmap, LibvirtBitmap: d.LibvirtBitmap, Adopted: d.Adopted, NoBitmapReason: d.NoBitmapReason,
		DirtyBytes: d.DirtyBytes, DataBytes: d.DataBytes, StoredBytes: d.StoredBytes, ReusedBytes: d.ReusedBytes, ZeroBytes: d.ZeroBytes,
		Maps: len(d.Maps), LostRanges: len(d.Lost), LostBytes: d.LostBytes(),
	}
	if d.IncrementalFrom != nil {
		out.IncrementalFrom = d.IncrementalFrom.Name
	}
	return out
}

// checkpointJSON is one checkpoint as list --json shows it.
type checkpointJSON struct {
	Domain string `json:"domain"`
	checkpointNames
	UUID        string     `json:"uuid"`
	Parent      string     `json:"parent,omitempty"`
	Sequence    int64      `json:"sequence"`
	Created     time.Time  `json:"created"`
	Kind        string     `json:"kind"`
	Description string     `json:"description,omitempty"`
	Tags        []string   `json:"tags,omitempty"`
	Host        chain.Host `json:"host"` // that made it
	Disks       []diskJSON `json:"disks"`
	Files       []fileJSON `json:"files,omitempty"` // beside the disks
	// Imported says what it was made of, if that were no images of a VM.
	Imported *importedFrom `json:"imported,omitempty"`
	// Unchanged is when the domain was last seen to be as the checkpoint has it.
	Unchanged *time.Time `json:"unchanged_until,omitempty"`
	// Drill is the last one of it.
	Drill *lastDrillJSON `json:"last_drill,omitempty"`
	signedJSON
}

// fileJSON is a file of a checkpoint as list --json shows it.
type fileJSON struct {
	Role string `json:"role"`
	Name string `json:"name,omitempty"`
	Size int64  `json:"size"` // bytes
}

// signedJSON says who has signed a checkpoint, in an encrypted repository.
type signedJSON struct {
	By    string `json:"signed_by,omitempty"`    // whose key
	First string `json:"first_signed,omitempty"` // whose, of the first revision, if that was another's
	Doubt string `json:"time_doubt,omitempty"`   // why its time is not believed
}

func viewSigned(m *chain.Manifest) signedJSON {
	s := signedJSON{By: m.By, Doubt: m.Doubt()}
	if m.Origin != nil && m.Origin.By != m.By {
		s.First = m.Origin.By
	}
	return s
}

// String says it in words; "": nothing is signed here.
func (s signedJSON) String() string {
	switch {
	case s.By == "":
		return ""
	case s.First != "":
		return "by " + s.First + ", and its revision by " + s.By
	}
	return "by " + s.By
}

// importedFrom is what list says of an imported checkpoint; show has its files, too.
type importedFrom struct {
	At   time.Time `json:"at"`
	From string    `json:"from"`
	Time string    `json:"time_from"`
}

func viewCheckpoint(m *chain.Manifest) checkpointJSON {
	out := checkpointJSON{
		Domain: m.Domain, checkpointNames: checkpointNamed(m.Checkpoint), UUID: m.UUID, Sequence: m.Sequence,
		Created: m.Created, Kind: m.Kind, Description: m.Description, Tags: m.Tags, Host: m.Host, signedJSON: viewSigned(m),
	}
	if im := m.Imported; im != nil {
		out.Imported = &importedFrom{im.At, im.From, im.Time}
	}
	if m.Parent != nil {
		out.Parent = m.Parent.Name
	}
	for i := range m.Disks {
		out.Disks = append(out.Disks, viewDisk(&m.Disks[i]))
	}
	for i := range m.Files {
		f := &m.Files[i]
		out.Files = append(out.Files, fileJSON{f.Role, f.Name, f.Size})
	}
	return out
}
