// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/seal"
)

// Bounds of what a manifest may hold. Lengths are in bytes.
const (
	maxText        = 4096  // a path or a reason
	maxDescription = 65536 //
	maxShort       = 255   // a host's or tool's name
	maxDisks       = 4096
	maxFiles       = 1 << 16
	maxFileDepth   = 4 // names in the place of a file within a folder
	maxLayers      = 1024
	maxCopied      = 1 << 20 // objects in copied_from
	maxSnapshots   = 65536
	maxWitnesses   = 65535 // QEMU's limit of bitmaps in an image
	maxClusterSize = 2 << 20
	minGranularity = 512 // QEMU's limits
	maxGranularity = 2 << 30
	maxSequence    = 1 << 53 // what every JSON reader takes exactly
)

// checker collects the first thing that is wrong.
type checker struct{ err error }

func (c *checker) that(ok bool, format string, args ...any) {
	if !ok && c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

// in names the part that a later error is about.
func (c *checker) in(name string, f func(c *checker)) {
	if c.err != nil {
		return
	}
	f(c)
	if c.err != nil {
		c.err = fmt.Errorf("%s: %w", name, c.err)
	}
}

func (c *checker) nilErr(field string, err error) {
	if err != nil && c.err == nil {
		c.err = fmt.Errorf("%s: %w", field, err)
	}
}

func (c *checker) oneOf(field, value string, allowed ...string) {
	for _, a := range allowed {
		if value == a {
			return
		}
	}
	c.that(false, "%s is %.80q, not one of %q", field, value, allowed)
}

func (c *checker) text(field, value string, limit int) {
	c.that(len(value) <= limit, "%s is %d bytes long, more than %d", field, len(value), limit)
	c.that(utf8.ValidString(value), "%s is not UTF-8", field)
}

// path: any bytes but NUL.
func (c *checker) path(field, value string) {
	c.that(value != "" && len(value) <= maxText && !strings.Contains(value, "\x00"), "%s is no path: %.80q", field, value)
}

// word: a short name of something that later versions may add to.
func (c *checker) word(field, value string, required bool) {
	ok := len(value) <= 64 && (value != "" || !required)
	for i := range len(value) {
		b := value[i]
		ok = ok && ('a' <= b && b <= 'z' || '0' <= b && b <= '9' || b == '-' || b == '_')
	}
	c.that(ok, "%s is %.80q", field, value)
}

func (c *checker) atLeast(field string, value, low int64) {
	if value < low {
		c.that(false, "%s is %d, below %d", field, value, low)
	}
}

func (c *checker) time(field string, t time.Time) {
	c.that(t.Year() >= 1970 && t.Year() <= 9999 && t.Location() == time.UTC, "%s is %v, which is not a time in UTC", field, t)
}

func (c *checker) powerOfTwo(field string, value, low, high int64) {
	c.that(value >= low && value <= high && value&(value-1) == 0, "%s is %d, not a power of two from %d to %d", field, value, low, high)
}

func (c *checker) ref(field string, r archive.Ref) {
	if r.Name.IsZero() || r.Length < 1 { // there are many, and most are sound
		c.that(!r.Name.IsZero(), "%s has no name", field)
		c.atLeast(field+".length", r.Length, 1)
	}
}

// Validate says what is wrong with a manifest, or nil. Nothing in a manifest
// that passes needs to be bounded again.
func (m *Manifest) Validate() error {
	var c checker
	c.nilErr("head", m.CheckHead(ManifestFormat))
	c.nilErr("info", seal.CheckFree(m.Info))
	c.oneOf("kind", m.Kind, KindArchive, KindCheckpoint)
	c.nilErr("repository_id", validUUID(m.RepositoryID))
	c.nilErr("domain", CheckDomain(m.Domain))
	if m.DomainUUID != "" {
		c.nilErr("domain_uuid", validUUID(m.DomainUUID))
	}
	m.Host.validate(&c)
	c.nilErr("checkpoint", CheckName(m.Checkpoint))
	c.nilErr("uuid", validUUID(m.UUID))
	c.that(m.Revision >= 1 && m.Revision < maxSequence, "revision is %d", m.Revision)
	if m.OverVoid != "" {
		c.nilErr("over_void", validUUID(m.OverVoid))
	}
	if m.Origin != nil {
		c.text("origin.by", m.Origin.By, maxShort)
		c.time("origin.stored", m.Origin.Stored)
	}
	c.that(m.Sequence >= 1 && m.Sequence < maxSequence, "sequence is %d", m.Sequence)
	m.Parent.validate(&c, "parent", m.UUID)
	c.time("created", m.Created)
	c.text("description", m.Description, maxDescription)
	c.nilErr("tags", validTags(m.Tags))
	c.text("tool", m.Tool, maxShort)
	c.oneOf("locking", m.Locking, LockingQEMU, LockingNone)
	c.that(len(m.Ancestors) == 0 || m.Parent != nil, "ancestors without a parent")
	c.that(len(m.Ancestors) <= MaxAncestors, "%d ancestors", len(m.Ancestors))
	for i := range m.Ancestors {
		m.Ancestors[i].validate(&c, "ancestor", m.UUID)
	}
	if m.Kind == KindArchive {
		c.oneOf("requested", m.Requested, ModeAuto, ModeFull, ModeIncremental)
	} else {
		c.that(m.Requested == "", "a checkpoint without data was requested %.80q", m.Requested)
	}
	c.that(len(m.Disks) >= 1 && len(m.Disks) <= maxDisks, "%d disks", len(m.Disks))
	seen := make(map[string]struct{}, len(m.Disks))
	for i := range m.Disks {
		d := &m.Disks[i]
		c.nilErr(fmt.Sprintf("disk %d", i), CheckName(d.Name))
		_, twice := seen[d.Name]
		c.that(!twice, "disk %.80q occurs twice", d.Name)
		seen[d.Name] = struct{}{}
		c.in("disk "+d.Name, func(c *checker) { d.validate(c, m) })
	}
	m.validateFiles(&c)
	c.that(len(m.LeftOut) <= maxDisks, "%d disks left out", len(m.LeftOut))
	for _, l := range m.LeftOut {
		c.that(l.Disk != "", "a disk left out has no name")
		c.text("a disk left out", l.Disk, maxShort)
		c.word("reason_code of a disk left out", l.Code, true)
		c.text("reason of a disk left out", l.Reason, maxText)
	}
	if f := m.CopiedFrom; f != nil {
		c.nilErr("copied_from.repository_id", validUUID(f.Repository))
		c.that(len(f.Objects) <= maxCopied, "copied_from has %d objects", len(f.Objects))
	}
	if m.Imported != nil {
		m.Imported.validate(&c, m)
	}
	if c.err != nil {
		return fmt.Errorf("invalid manifest: %w", c.err)
	}
	return nil
}

// validateFiles: one of each role, but for a TPM's state, which is a folder, a saved memory,
// which is in parts, and files that have names.
func (m *Manifest) validateFiles(c *checker) {
	c.that(len(m.Files) <= maxFiles, "%d files", len(m.Files))
	seen := make(map[string]bool, len(m.Files))
	var saved int64 // bytes of the saved memory so far
	for i := range m.Files {
		f := &m.Files[i]
		f.validate(c)
		switch f.Role {
		case RoleTPM:
			c.nilErr("name of a file of the TPM", CheckFileName(f.Name))
			c.that(f.Offset == 0, "the TPM's file %s begins at %d", f.Name, f.Offset)
		case RoleFile:
			c.nilErr("name of a file", CheckName(f.Name))
			c.that(f.Offset == 0, "the file %s begins at %d", f.Name, f.Offset)
		case RoleManagedSave:
			c.that(f.Offset == saved && saved%archive.MaxFile == 0, "a part of the saved memory begins at %d", f.Offset)
			saved += f.Size
			continue // its parts are of one name
		default:
			c.that(f.Name == "" && f.Offset == 0, "the %s has a name or begins at %d", f.Role, f.Offset)
		}
		at := f.Role + "/" + f.Name
		c.that(!seen[at], "two files are the %s", strings.TrimSuffix(at, "/"))
		seen[at] = true
	}
	for i := range m.Files {
		parts := strings.Split(m.Files[i].Name, "/")
		for n := 1; n < min(len(parts), maxFileDepth); n++ {
			dir := strings.Join(parts[:n], "/")
			c.that(!seen[RoleTPM+"/"+dir], "%s is a file and a folder of the TPM", dir)
		}
	}
}

func (f *File) validate(c *checker) {
	c.oneOf("role of a file", f.Role, RoleDomainXML, RoleNVRAM, RoleLoader, RoleTPM, RoleManagedSave, RoleLima, RolePVE, RoleFile)
	limit := int64(archive.MaxFile)
	if Defines(f.Role) {
		limit = MaxDomainXML
	}
	if f.Path != "" || f.Role != RoleDomainXML {
		c.path("path of the "+f.Role, f.Path)
	}
	c.that(f.Size >= 0 && f.Size <= limit, "the %s has %d bytes", f.Role, f.Size)
	c.that(!f.SHA256.IsZero(), "the %s has no digest", f.Role)
	c.ref("object of the "+f.Role, f.Object)
	c.that(f.Object.Length <= archive.MaxFileObject, "the object of the %s has %d bytes", f.Role, f.Object.Length)
}

// CheckFileName returns an error for what is no file's place in a folder of ours: at
// most four names as checkpoints have them, with slashes between.
func CheckFileName(s string) error {
	parts := strings.Split(s, "/")
	if len(parts) > maxFileDepth {
		return fmt.Errorf("%.80q lies too deep", s)
	}
	for _, part := range parts {
		if err := CheckName(part); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) validate(c *checker) {
	c.that(h.Name != "", "host has no name")
	c.text("host.name", h.Name, maxShort)
	c.text("host.id", h.ID, maxShort)
}

func (r *CheckpointRef) validate(c *checker, field, self string) {
	if r == nil {
		return
	}
	if err := CheckName(r.Name); err != nil {
		c.nilErr(field+".name", err)
	}
	if err := validUUID(r.UUID); err != nil {
		c.nilErr(field+".uuid", err)
	}
	if r.UUID == self {
		c.that(false, "%s is the checkpoint itself", field)
	}
}

func (d *Disk) validate(c *checker, m *Manifest) {
	c.path("source.path", d.Source.Path)
	c.word("source.format", d.Source.Format, true)
	c.atLeast("source.size", d.Source.Size, 0)
	c.text("source.boot_id", d.Source.BootID, maxShort)
	if d.Source.DataFile != nil {
		d.Source.DataFile.validate(c, "source.data_file")
	}
	if d.TrustedData != nil {
		c.path("trusted_data_file.path", d.TrustedData.Path)
		c.word("trusted_data_file.format", d.TrustedData.Format, true)
	}
	c.atLeast("virtual_size", d.Size, 0)
	if d.ClusterSize != 0 {
		c.powerOfTwo("cluster_size", d.ClusterSize, 512, maxClusterSize)
	}
	c.that(len(d.Backing) <= maxLayers, "%d backing files", len(d.Backing))
	for i := range d.Backing {
		l := &d.Backing[i]
		c.path("backing.path", l.Path)
		c.word("backing.format", l.Format, true)
		c.atLeast("backing.file_size", l.FileSize, 0)
	}
	c.that(len(d.Snapshots) <= maxSnapshots, "%d snapshots", len(d.Snapshots))
	for _, s := range d.Snapshots {
		c.that(len(s.ID) <= 65535 && len(s.Name) <= 65535, "a snapshot's name is too long")
	}
	if d.RenamedFrom != "" {
		c.nilErr("renamed_from", CheckName(d.RenamedFrom))
		c.that(d.RenamedFrom != d.Name, "it was renamed from %s, which is its name", d.RenamedFrom)
	}
	if d.Requested != "" {
		c.oneOf("requested", d.Requested, ModeAuto, ModeFull, ModeIncremental)
	}
	if m.Kind == KindArchive {
		c.oneOf("mode", d.Mode, ModeFull, ModeIncremental)
		c.oneOf("detection", d.Detection, DetectionBitmap, DetectionContent, DetectionNone, DetectionUnchanged)
		c.that(d.Detection != DetectionUnchanged || d.Mode == ModeIncremental, "detection unchanged of a full")
	} else {
		c.that(d.Mode == "" && d.Detection == "", "a checkpoint without data has mode %.80q, detection %.80q", d.Mode, d.Detection)
		c.that(d.Bitmap != "", "a checkpoint without data has no bitmap")
	}
	c.word("reason_code", d.ReasonCode, false)
	c.text("reason", d.Reason, maxText)
	c.text("no_bitmap_reason", d.NoBitmapReason, maxText)
	c.that((d.IncrementalFrom != nil) == (d.Mode == ModeIncremental), "mode %s with incremental_from %v", d.Mode, d.IncrementalFrom)
	d.IncrementalFrom.validate(c, "incremental_from", m.UUID)
	d.validateBitmap(c, m)
	d.validateMaps(c, m)
	d.validateLost(c, m.Kind)
	d.validateClusters(c, m)
	c.atLeast("dirty_bytes", d.DirtyBytes, 0)
	c.atLeast("data_bytes", d.DataBytes, 0)
	c.atLeast("stored_bytes", d.StoredBytes, 0)
	c.atLeast("reused_bytes", d.ReusedBytes, 0)
	c.atLeast("zero_bytes", d.ZeroBytes, 0)
	c.that(d.Heat == "" || len(d.Heat) == archive.HeatParts && strings.Trim(d.Heat, "0123456789abcdef") == "", "heat %.80q", d.Heat)
	if d.Habit != nil {
		c.nilErr("habit", d.Habit.Check())
	}
	c.that(len(d.Witnesses) <= maxWitnesses, "%d witnesses", len(d.Witnesses))
	for i := range d.Witnesses {
		d.Witnesses[i].validate(c, len(d.Backing))
	}
	if d.Held != nil {
		c.that(m.Kind == KindCheckpoint && d.Held.Name == d.Bitmap && d.Held.Size == d.Size && d.Held.LayerPath == "",
			"held is %.80q, %d bytes, in %.80q", d.Held.Name, d.Held.Size, d.Held.LayerPath)
		d.Held.validate(c, 0)
	}
}

func (d *Disk) validateMaps(c *checker, m *Manifest) {
	if m.Kind == KindCheckpoint {
		c.that(len(d.Maps) == 0, "a checkpoint without data has maps")
		return
	}
	c.that(len(d.Maps) >= 1 && len(d.Maps) <= MaxMaps, "%d maps, not 1 to %d", len(d.Maps), MaxMaps)
	for _, r := range d.Maps {
		c.ref("map", r.Ref)
		if r.DirLength < 1 || r.DirLength > r.Length || r.DirDigest.IsZero() {
			c.that(false, "map %s: a directory of %d bytes", r.Name, r.DirLength)
		}
	}
}

func (b *BitmapRecord) validate(c *checker, backing int) {
	c.that(b.Name != "" && len(b.Name) <= 1023 && utf8.ValidString(b.Name), "a witness is named %.80q", b.Name)
	c.that(b.Layer >= 0 && b.Layer <= backing, "witness %.80q is in layer %d of %d", b.Name, b.Layer, backing+1)
	c.that(len(b.LayerPath) <= maxText, "witness %.80q has a path of %d bytes", b.Name, len(b.LayerPath))
	c.powerOfTwo("granularity of a witness", b.Granularity, minGranularity, maxGranularity)
	c.atLeast("virtual_size of a witness", b.Size, 0)
	c.that(b.DirtyBytes >= 0 && b.DirtyBytes <= b.Size, "witness %.80q has %d dirty bytes of %d", b.Name, b.DirtyBytes, b.Size)
	if b.Adopted != "" {
		c.nilErr("adopted_checkpoint of a witness", validUUID(b.Adopted))
	}
	c.ref("witness", b.Object)
}
