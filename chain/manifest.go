// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/habit"
)

// ManifestFormat is the value of a manifest's field "format".
const ManifestFormat = "imgbackup-manifest"

// ManifestVersion is the version of manifests that this package writes.
const ManifestVersion = 1

// The kinds of manifests.
const (
	KindArchive    = "archive"    // disks with data
	KindCheckpoint = "checkpoint" // bitmaps only
)

// What a backup may be asked to do, and what it did.
const (
	ModeAuto        = "auto"
	ModeFull        = "full"
	ModeIncremental = "incremental"
)

// How the changes of a disk were found.
const (
	DetectionBitmap  = "bitmap"  // by a persistent dirty bitmap
	DetectionContent = "content" // by reading and comparing everything
	DetectionNone    = "none"    // everything is stored
	// DetectionUnchanged: no file of the image was touched, so nothing was read but samples.
	DetectionUnchanged = "unchanged"
)

// How images were kept from being written to while they were read.
const (
	LockingQEMU = "qemu" // by QEMU's image locks
	LockingNone = "none" // not at all
)

// MaxMaps is the largest number of maps that one disk's replay may have: a full
// one and 64 deltas.
const MaxMaps = 65

// Manifest describes one checkpoint of a domain. Its key is
// domains/DOMAIN/checkpoints/CHECKPOINT.json.
type Manifest struct {
	Head
	Info         json.RawMessage `json:"info,omitempty"` // free, an object; ignored
	Kind         string          `json:"kind"`
	RepositoryID string          `json:"repository_id"` // Commit fills it in
	Domain       string          `json:"domain"`
	DomainUUID   string          `json:"domain_uuid,omitempty"`
	Autostart    bool            `json:"autostart,omitempty"` // libvirt started it with its host
	Host         Host            `json:"host"`
	Checkpoint   string          `json:"checkpoint"`
	UUID         string          `json:"uuid"`
	Revision     int             `json:"revision"` // from 1 on; Commit fills it in, and Revise
	// OverVoid is the uuid of the void that the manifest took the place of, or stands
	// for: to forget it is to put a void there. Commit fills it in.
	OverVoid    string          `json:"over_void,omitempty"`
	Sequence    int64           `json:"sequence"` // from 1 on; see NextSequence
	Parent      *CheckpointRef  `json:"parent,omitempty"`
	Ancestors   []CheckpointRef `json:"ancestors,omitempty"` // the parent's parent and so on, at most MaxAncestors
	Created     time.Time       `json:"created"`             // UTC
	Description string          `json:"description,omitempty"`
	Tags        []string        `json:"tags,omitempty"` // sorted, none twice; see CheckTag
	Tool        string          `json:"tool,omitempty"`
	Locking     string          `json:"locking"`
	Requested   string          `json:"requested,omitempty"` // the mode that the user asked for; of an archive only
	Disks       []Disk          `json:"disks"`
	Files       []File          `json:"files,omitempty"` // that belong to the domain beside its disks
	LeftOut     []LeftOut       `json:"left_out,omitempty"`
	// CopiedFrom is of what a copy has made, whose objects are others than those that it was
	// copied from: it was in a repository with other keys, or none. Only a later copy asks.
	CopiedFrom *CopiedFrom `json:"copied_from,omitempty"`
	// Imported is of what somebody else had left. nil: it was made of a VM's images.
	Imported *Imported `json:"imported,omitempty"`

	// Origin is what is known of the first revision, where a host had signed it and this is
	// another's.
	Origin *Origin `json:"origin,omitempty"`

	// By is whose key has signed this revision; empty: nothing is signed here.
	By string `json:"-"`
	// ByHost says that this is a host's key, and Stored, where a listing has told, when the store
	// took the object then.
	ByHost bool      `json:"-"`
	Stored time.Time `json:"-"`
}

// CopiedFrom says which objects of another repository those of a manifest were made of.
type CopiedFrom struct {
	Repository string         `json:"repository_id"`
	Objects    []CopiedObject `json:"objects"` // those that the manifest no longer names mean nothing
}

// CopiedObject is one object here, and the one there.
type CopiedObject struct {
	Name archive.Digest `json:"name"`
	Of   archive.Digest `json:"of"`
}

// LeftOut is a disk of the domain that is not in the checkpoint, and why.
type LeftOut struct {
	Disk   string `json:"disk"`
	Code   string `json:"reason_code"`
	Reason string `json:"reason"`
}

// Why a disk of a domain can be left out of its backup.
const (
	LeftOutByRequest = "excluded"
	LeftOutCdrom     = "cdrom"
	LeftOutEmpty     = "empty" // it has no medium
	LeftOutReadOnly  = "read-only"
)

// The roles of files.
const (
	RoleDomainXML = "domain-xml" // the domain's definition, as it was given
	RoleNVRAM     = "nvram"      // the firmware's variables
	RoleLoader    = "loader"     // the firmware

	RoleTPM         = "tpm"          // state of an emulated TPM: a file of it
	RoleManagedSave = "managed-save" // the memory of a domain that libvirt has saved: a part of it

	RoleLima = "lima-yaml" // the definition of an instance of Lima's
	RolePVE  = "pve-conf"  // the configuration of a VM of Proxmox VE's

	RoleFile = "file" // any other that has a name: a person, or the VM's manager, named it
)

// Defines reports whether a file of the role is a domain's definition, whoever manages it.
func Defines(role string) bool {
	return role == RoleDomainXML || role == RoleLima || role == RolePVE
}

// MaxDomainXML bounds a domain's definition, bytes; other files have at most
// [archive.MaxFile].
const MaxDomainXML = 8 << 20

// File is a file that was archived with the disks.
type File struct {
	Role string `json:"role"`
	Path string `json:"path,omitempty"` // where it was; a definition may have come from nowhere
	// Name is the file's place in a TPM's state: slash-separated names; or what a person
	// has called a RoleFile: one name.
	Name string `json:"name,omitempty"`
	// Offset is where a part of a saved memory begins, bytes.
	Offset int64 `json:"offset,omitempty"`
	archive.FileRef
}

// Called is what a file is called where it is told of: its role, and of those that are
// named its name.
func (f *File) Called() string {
	if f.Role == RoleFile {
		return f.Role + " " + f.Name
	}
	return f.Role
}

// CheckpointRef names another checkpoint of the same domain.
type CheckpointRef struct {
	Name string `json:"name"`
	UUID string `json:"uuid"`
}

// Disk is one disk of a checkpoint. Sizes and counts are in bytes.
type Disk struct {
	Name        string     `json:"target"`
	RenamedFrom string     `json:"renamed_from,omitempty"` // its name before this checkpoint, if it had another
	Source      Source     `json:"source"`
	Size        int64      `json:"virtual_size"`
	ClusterSize int64      `json:"cluster_size,omitempty"` // 0: the format has none
	Granularity int64      `json:"granularity,omitempty"`  // of the bitmap that was added; 0: none was
	Backing     []Layer    `json:"backing,omitempty"`      // below the active layer, topmost first
	Snapshots   []Snapshot `json:"snapshots,omitempty"`    // internal ones of the active layer
	// TrustedData is the image's raw data file, if its bitmaps are to be believed since a
	// person says that only QEMU writes to it. nil: there is none, or nobody says so.
	TrustedData *Source `json:"trusted_data_file,omitempty"`

	Requested       string         `json:"requested,omitempty"`
	Mode            string         `json:"mode,omitempty"`      // of an archive only
	Detection       string         `json:"detection,omitempty"` // likewise
	ReasonCode      string         `json:"reason_code,omitempty"`
	Reason          string         `json:"reason,omitempty"`
	IncrementalFrom *CheckpointRef `json:"incremental_from,omitempty"`
	Bitmap          string         `json:"bitmap,omitempty"` // the one that was added; empty: none was
	// LibvirtBitmap is a second one beside it, which was added for libvirt: it demands that
	// a checkpoint's bitmap has the checkpoint's name alone. Empty: none was.
	LibvirtBitmap string `json:"libvirt_bitmap,omitempty"`
	// Adopted is when the bitmap was put on record that another program had made, and
	// named. nil: it is ours.
	Adopted        *time.Time `json:"adopted,omitempty"`
	NoBitmapReason string     `json:"no_bitmap_reason,omitempty"`

	Maps        []archive.MapRef `json:"maps,omitempty"` // of the replay, newest first; the last is full
	DirtyBytes  int64            `json:"dirty_bytes"`
	DataBytes   int64            `json:"data_bytes"`
	StoredBytes int64            `json:"stored_bytes"`
	ReusedBytes int64            `json:"reused_bytes"`
	ZeroBytes   int64            `json:"zero_bytes,omitempty"` // of an incremental: that were data before, or may have been
	// Heat is where an incremental found changes: see [archive.Heat.Text].
	Heat string `json:"heat,omitempty"`
	// Habit is that of the disk's backups before this one. nil: there was none.
	Habit *habit.Habit `json:"habit,omitempty"`
	// Lost is what the maps hold as zeros, or name what is gone of, and is not so:
	// see [Losses]. The next backup reads it again.
	Lost []Lost `json:"lost,omitempty"`

	Witnesses []BitmapRecord `json:"witnesses,omitempty"` // bitmaps of ours as they were read
	// Held is where a disk of a checkpoint without data held data; it bears the
	// name of the checkpoint's bitmap, and DirtyBytes is how much. nil: not known.
	Held *BitmapRecord `json:"held,omitempty"`
	// ClusterMap is where the disk's data lay in the image, of a qcow2 image's archive.
	ClusterMap *ClusterMap `json:"cluster_map,omitempty"`
	// RecordsLost says that some of these were damaged, and a repair took them out: no bitmap
	// of this or an older state of the disk is to be believed.
	RecordsLost bool `json:"records_lost,omitempty"`
}

// Records returns all stored bitmaps of the disk.
func (d *Disk) Records() []BitmapRecord {
	if d.Held == nil {
		return d.Witnesses
	}
	return append(slices.Clip(d.Witnesses), *d.Held)
}

// Decrypted reports whether the archive holds what was in the image, if that was encrypted. Only a raw one is
// archived as it lies there.
func (d *Disk) Decrypted() bool { return d.Source.Format != "raw" }

// Source is the image that a disk was read from, as it was when reading began and still at the
// end. A block device has no times, and the size is not told.
type Source struct {
	Path   string `json:"path"`
	Format string `json:"format"`
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	Size   int64  `json:"size,omitempty"`     // of the file, bytes
	Mtime  int64  `json:"mtime_ns,omitempty"` // ns since 1970
	Ctime  int64  `json:"ctime_ns,omitempty"`

	DataFile *FileState `json:"data_file,omitempty"` // an external one

	// BootID is the boot of the host that saw it so. It is empty unless each file of the chain
	// is described, and had not been touched for two seconds when reading began: then the same
	// times mean, on that boot, the same content.
	BootID string `json:"boot_id,omitempty"`
}

// Layer is an image below the active one.
type Layer struct {
	Path         string         `json:"path"`
	Format       string         `json:"format"`
	Device       uint64         `json:"device"`
	Inode        uint64         `json:"inode"`
	FileSize     int64          `json:"file_size"`
	Mtime        int64          `json:"mtime_ns"` // ns since 1970
	Ctime        int64          `json:"ctime_ns"`
	HeaderDigest archive.Digest `json:"header_sha256"`
}

// Snapshot is an internal snapshot of an image.
type Snapshot struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	CreatedNS int64  `json:"created_ns"` // ns since 1970
}

// BitmapRecord is a bitmap of ours that was found in an image, as it was read.
type BitmapRecord struct {
	Name        string `json:"name"`
	Layer       int    `json:"layer"` // 0: the active one
	LayerPath   string `json:"layer_path,omitempty"`
	Granularity int64  `json:"granularity"`
	Size        int64  `json:"virtual_size"` // of its layer
	DirtyBytes  int64  `json:"dirty_bytes"`
	Enabled     bool   `json:"enabled"`
	// Sound says that the bitmap stood every check when it was read, and that
	// it tells alone what changed in the disk since its checkpoint.
	Sound bool `json:"sound,omitempty"`
	// Adopted is the uuid of the adopted checkpoint whose bitmap it is: the name of
	// such a bitmap is no identity. Empty: it is ours.
	Adopted string      `json:"adopted_checkpoint,omitempty"`
	Object  archive.Ref `json:"object"`
	// Content is, in an encrypted repository, the keyed digest of what the object holds.
	Content archive.Digest `json:"content,omitzero"`
}

// Header returns the header that the stored bitmap has.
func (b *BitmapRecord) Header() bitmapstore.Header {
	return bitmapstore.Header{Name: b.Name, Granularity: b.Granularity, Size: b.Size, DirtyBytes: b.DirtyBytes}
}

// MaxAncestors bounds the ancestors that a manifest names beside its parent.
const MaxAncestors = 64

// Follow makes parent the manifest's parent, which may be nil. It names the
// ancestors as well, so that the tree holds together when one is deleted.
func (m *Manifest) Follow(parent *Manifest) {
	m.Parent, m.Ancestors = nil, nil
	if parent == nil {
		return
	}
	m.Parent = parent.Ref()
	if parent.Parent != nil {
		m.Ancestors = append([]CheckpointRef{*parent.Parent}, parent.Ancestors...)
		m.Ancestors = m.Ancestors[:min(len(m.Ancestors), MaxAncestors)]
	}
}

// Ref returns the reference by which another checkpoint names this one.
func (m *Manifest) Ref() *CheckpointRef { return &CheckpointRef{Name: m.Checkpoint, UUID: m.UUID} }

// Disk returns the disk with exactly this target.
func (m *Manifest) Disk(target string) (*Disk, bool) {
	for i := range m.Disks {
		if m.Disks[i].Name == target {
			return &m.Disks[i], true
		}
	}
	return nil, false
}

// File returns the file of that role.
func (m *Manifest) File(role string) (*File, bool) {
	for i := range m.Files {
		if m.Files[i].Role == role {
			return &m.Files[i], true
		}
	}
	return nil, false
}

// mapTexts returns a copy of m in which every text that comes out of an image or
// a file system, and so may be any bytes, went through f.
func (m *Manifest) mapTexts(f func(string) (string, error)) (*Manifest, error) {
	c := *m
	c.Disks, c.Files = slices.Clone(m.Disks), slices.Clone(m.Files)
	var texts []*string
	for i := range c.Disks {
		d := &c.Disks[i]
		d.Backing = slices.Clone(d.Backing)
		d.Snapshots = slices.Clone(d.Snapshots)
		d.Witnesses = slices.Clone(d.Witnesses)
		texts = append(texts, &d.Source.Path)
		if f := d.Source.DataFile; f != nil {
			data := *f
			d.Source.DataFile = &data
			texts = append(texts, &data.Path)
		}
		if d.TrustedData != nil {
			data := *d.TrustedData
			d.TrustedData = &data
			texts = append(texts, &data.Path)
		}
		for j := range d.Backing {
			texts = append(texts, &d.Backing[j].Path)
		}
		for j := range d.Snapshots {
			texts = append(texts, &d.Snapshots[j].ID, &d.Snapshots[j].Name)
		}
		for j := range d.Witnesses {
			texts = append(texts, &d.Witnesses[j].LayerPath)
		}
	}
	for i := range c.Files {
		texts = append(texts, &c.Files[i].Path)
	}
	if c.Imported != nil {
		im := *c.Imported
		im.Files = slices.Clone(im.Files)
		c.Imported = &im
		for i := range im.Files {
			texts = append(texts, &im.Files[i].Path)
		}
	}
	return &c, mapAll(texts, f)
}
