// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

func TestManifestRoundTrip(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	m := r.sample("web", "one")
	// What comes from images and file systems may be any bytes.
	m.Disks[0].Source.Path = "/images/\xff\\x41\nü.qcow2"
	m.Disks[0].Backing[0].Path = "/images/\xfe"
	m.Disks[0].Snapshots[0].Name = "a\x00b\xc3"
	m.Disks[0].Witnesses[0].LayerPath = "\xfe"
	m.Disks[0].Reason = "in \xff"
	m.Files[1].Path = "/nvram/\xfd\\"
	m.Created = m.Created.In(time.FixedZone("somewhere", 3600))
	commit(t, r, m)
	if m.Disks[0].Source.Path != "/images/\xff\\x41\nü.qcow2" || m.Disks[0].Reason != "in \uFFFD" {
		t.Errorf("commit changed the manifest: %+v", m.Disks[0])
	}
	got, err := r.Manifest(t.Context(), "web", "one")
	if err != nil {
		t.Fatal(err)
	}
	var info, want bytes.Buffer
	for _, b := range got.Info {
		if b != ' ' && b != '\n' {
			info.WriteByte(b)
		}
	}
	for _, b := range m.Info {
		if b != ' ' {
			want.WriteByte(b)
		}
	}
	if info.String() != want.String() {
		t.Errorf("info %s, want %s", info.String(), want.String())
	}
	got.Info, m.Info = nil, nil
	if !reflect.DeepEqual(got, m) {
		t.Errorf("got\n%+v\nwant\n%+v", got, m)
	}
}

func TestCommitFillsIn(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	m := r.sample("web", "one")
	m.Format, m.Version, m.RepositoryID, m.Revision = "", 0, "", 0
	commit(t, r, m)
	if m.Format != ManifestFormat || m.Version != 1 || m.RepositoryID != r.Config.ID || m.Revision != 1 {
		t.Errorf("%+v", m)
	}
}

func TestDiskByExactTarget(t *testing.T) {
	t.Parallel()
	m := sample("web", "one")
	m.Disks[1].Name = "vdaa"
	if d, ok := m.Disk("vda"); !ok || d != &m.Disks[0] {
		t.Error("vda")
	}
	if d, ok := m.Disk("vdaa"); !ok || d != &m.Disks[1] {
		t.Error("vdaa")
	}
	for _, target := range []string{"vd", "vdab", "", "VDA"} {
		if _, ok := m.Disk(target); ok {
			t.Error(target)
		}
	}
}

// stateFiles makes the manifest's files those of a TPM, under these names.
func stateFiles(m *Manifest, names ...string) {
	f := m.Files[1]
	m.Files = nil
	for _, name := range names {
		f.Role, f.Name = RoleTPM, name
		m.Files = append(m.Files, f)
	}
}

func TestValidateState(t *testing.T) {
	t.Parallel()
	m := sample("web", "one")
	m.LeftOut = []LeftOut{{Disk: "sda", Code: LeftOutCdrom, Reason: "a cdrom"}}
	stateFiles(m, "tpm2/tpm2-00.permall", "tpm2/tpm2-00.volatilestate", "a/b/c/d", "x")
	if err := m.Validate(); err != nil {
		t.Error(err)
	}
	part := m.Files[0]
	part.Role, part.Name, part.Size = RoleManagedSave, "", archive.MaxFile
	m.Files = []File{part, part, part}
	m.Files[1].Offset, m.Files[2].Offset, m.Files[2].Size = archive.MaxFile, 2*archive.MaxFile, 1
	if err := m.Validate(); err != nil {
		t.Error(err)
	}
	m.Files[1].Size--
	m.Files[2].Offset--
	if err := m.Validate(); err == nil {
		t.Error("a part in the middle is shorter")
	}
}

// Files that a person has named, and what is no such name.
func TestValidateNamedFiles(t *testing.T) {
	t.Parallel()
	m := sample("web", "one")
	named := func(names ...string) {
		m = sample("web", "one")
		stateFiles(m, names...)
		for i := range m.Files {
			m.Files[i].Role = RoleFile
		}
	}
	named("a", "b.sh", "-x")
	if err := m.Validate(); err != nil {
		t.Error(err)
	}
	if got := m.Files[1].Called(); got != "file b.sh" {
		t.Error(got)
	}
	for _, wrong := range [][]string{{""}, {"a", "a"}, {"a/b"}, {".."}, {".a"}, {"a\x00"}, {strings.Repeat("a", MaxName+1)}} {
		named(wrong...)
		if err := m.Validate(); err == nil {
			t.Errorf("%q: valid", wrong)
		}
	}
	named("a")
	m.Files[0].Offset = 1
	if err := m.Validate(); err == nil {
		t.Error("a file that begins at 1")
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	if err := sample("web", "one").Validate(); err != nil {
		t.Fatal(err)
	}
	for name, break_ := range map[string]func(m *Manifest){
		"format":              func(m *Manifest) { m.Format = "x" },
		"version":             func(m *Manifest) { m.Version = 2 },
		"requires":            func(m *Manifest) { m.Requires = []string{"x"} },
		"info":                func(m *Manifest) { m.Info = []byte("[1]") },
		"info, too deep":      func(m *Manifest) { m.Info = []byte(`{"a": ` + strings.Repeat("[", 31) + strings.Repeat("]", 31) + "}") },
		"kind":                func(m *Manifest) { m.Kind = "" },
		"repository":          func(m *Manifest) { m.RepositoryID = "x" },
		"domain":              func(m *Manifest) { m.Domain = "a/b" },
		"domain uuid":         func(m *Manifest) { m.DomainUUID = strings.ToUpper(m.UUID) },
		"host":                func(m *Manifest) { m.Host.Name = "" },
		"checkpoint":          func(m *Manifest) { m.Checkpoint = "../x" },
		"uuid":                func(m *Manifest) { m.UUID = "{" + m.UUID + "}" },
		"revision":            func(m *Manifest) { m.Revision = 0 },
		"sequence":            func(m *Manifest) { m.Sequence = 0 },
		"large sequence":      func(m *Manifest) { m.Sequence = 1 << 60 },
		"parent's name":       func(m *Manifest) { m.Parent.Name = "" },
		"parent's uuid":       func(m *Manifest) { m.Parent.UUID = "" },
		"own parent":          func(m *Manifest) { m.Parent.UUID = m.UUID },
		"no time":             func(m *Manifest) { m.Created = time.Time{} },
		"local time":          func(m *Manifest) { m.Created = m.Created.In(time.FixedZone("x", 60)) },
		"description":         func(m *Manifest) { m.Description = strings.Repeat("x", 70000) },
		"tool":                func(m *Manifest) { m.Tool = "\xff" },
		"locking":             func(m *Manifest) { m.Locking = "" },
		"requested":           func(m *Manifest) { m.Requested = "maybe" },
		"file role":           func(m *Manifest) { m.Files[0].Role = "x" },
		"role twice":          func(m *Manifest) { m.Files = append(m.Files, m.Files[1]) },
		"name of firmware":    func(m *Manifest) { m.Files[1].Name = "x" },
		"absolute file":       func(m *Manifest) { stateFiles(m, "/x") },
		"file above":          func(m *Manifest) { stateFiles(m, "a/../../x") },
		"file without a name": func(m *Manifest) { stateFiles(m, "") },
		"file with a slash":   func(m *Manifest) { stateFiles(m, "a/") },
		"deep file":           func(m *Manifest) { stateFiles(m, "a/b/c/d/e") },
		"file twice":          func(m *Manifest) { stateFiles(m, "a/b", "a/b") },
		"file and folder":     func(m *Manifest) { stateFiles(m, "a/b", "a") },
		"many files":          func(m *Manifest) { m.Files = make([]File, 1<<17) },
		"part out of order": func(m *Manifest) {
			stateFiles(m, "", "")
			for i := range m.Files {
				m.Files[i].Role = RoleManagedSave
			}
			m.Files[1].Offset = 1
		},
		"left out, no code":   func(m *Manifest) { m.LeftOut = []LeftOut{{Disk: "vdz"}} },
		"left out, no name":   func(m *Manifest) { m.LeftOut = []LeftOut{{Code: LeftOutEmpty}} },
		"no disks":            func(m *Manifest) { m.Disks = nil },
		"too many disks":      func(m *Manifest) { m.Disks = make([]Disk, 5000) },
		"disk twice":          func(m *Manifest) { m.Disks[1].Name = "vda" },
		"target":              func(m *Manifest) { m.Disks[0].Name = "../vda" },
		"no path":             func(m *Manifest) { m.Disks[0].Source.Path = "" },
		"path with NUL":       func(m *Manifest) { m.Disks[0].Source.Path = "a\x00" },
		"source size":         func(m *Manifest) { m.Disks[0].Source.Size = -1 },
		"boot":                func(m *Manifest) { m.Disks[0].Source.BootID = strings.Repeat("x", 300) },
		"data file":           func(m *Manifest) { m.Disks[0].Source.DataFile.Path = "" },
		"unchanged full":      func(m *Manifest) { m.Disks[1].Detection = DetectionUnchanged },
		"source format":       func(m *Manifest) { m.Disks[0].Source.Format = "QCOW 2" },
		"size":                func(m *Manifest) { m.Disks[0].Size = -1 },
		"cluster size":        func(m *Manifest) { m.Disks[0].ClusterSize = 65537 },
		"large clusters":      func(m *Manifest) { m.Disks[0].ClusterSize = 4 << 20 },
		"granularity":         func(m *Manifest) { m.Disks[0].Granularity = 256 },
		"no granularity":      func(m *Manifest) { m.Disks[0].Granularity = 0 },
		"no bitmap":           func(m *Manifest) { m.Disks[0].Bitmap = "" },
		"foreign bitmap":      func(m *Manifest) { m.Disks[0].Bitmap = "one.0000000000000000" },
		"too many layers":     func(m *Manifest) { m.Disks[0].Backing = make([]Layer, 2000) },
		"layer's path":        func(m *Manifest) { m.Disks[0].Backing[0].Path = "" },
		"layer's size":        func(m *Manifest) { m.Disks[0].Backing[0].FileSize = -1 },
		"snapshot":            func(m *Manifest) { m.Disks[0].Snapshots[0].Name = strings.Repeat("x", 70000) },
		"disk's requested":    func(m *Manifest) { m.Disks[0].Requested = "x" },
		"mode":                func(m *Manifest) { m.Disks[0].Mode = ModeAuto },
		"detection":           func(m *Manifest) { m.Disks[0].Detection = "" },
		"reason code":         func(m *Manifest) { m.Disks[0].ReasonCode = "a reason" },
		"reason":              func(m *Manifest) { m.Disks[0].Reason = strings.Repeat("x", 5000) },
		"full from":           func(m *Manifest) { m.Disks[0].Mode = ModeFull },
		"renamed from ?":      func(m *Manifest) { m.Disks[0].RenamedFrom = "a/b" },
		"renamed from itself": func(m *Manifest) { m.Disks[0].RenamedFrom = m.Disks[0].Name },
		"incremental from ?":  func(m *Manifest) { m.Disks[0].IncrementalFrom = nil },
		"no maps":             func(m *Manifest) { m.Disks[0].Maps = nil },
		"too many maps":       func(m *Manifest) { m.Disks[0].Maps = make([]archive.MapRef, 66) },
		"map's name":          func(m *Manifest) { m.Disks[0].Maps[0].Name = archive.Digest{} },
		"map's length":        func(m *Manifest) { m.Disks[0].Maps[0].Length = 0 },
		"map's directory":     func(m *Manifest) { m.Disks[0].Maps[0].DirLength = 2000 },
		"directory's digest":  func(m *Manifest) { m.Disks[0].Maps[0].DirDigest = archive.Digest{} },
		"maps without data":   func(m *Manifest) { m.Kind = KindCheckpoint },
		"dirty":               func(m *Manifest) { m.Disks[0].DirtyBytes = -1 },
		"data":                func(m *Manifest) { m.Disks[0].DataBytes = -1 },
		"stored":              func(m *Manifest) { m.Disks[0].StoredBytes = -1 },
		"reused":              func(m *Manifest) { m.Disks[0].ReusedBytes = -1 },
		"witness's name":      func(m *Manifest) { m.Disks[0].Witnesses[0].Name = "" },
		"witness's layer":     func(m *Manifest) { m.Disks[0].Witnesses[0].Layer = 2 },
		"witness's grain":     func(m *Manifest) { m.Disks[0].Witnesses[0].Granularity = 0 },
		"witness's dirt":      func(m *Manifest) { m.Disks[0].Witnesses[0].DirtyBytes = 1 << 50 },
		"witness's object":    func(m *Manifest) { m.Disks[0].Witnesses[0].Object.Length = -1 },
		"map's unit":          func(m *Manifest) { m.Disks[1].ClusterMap.Unit = 4096 },
		"map's span":          func(m *Manifest) { m.Disks[1].ClusterMap.Span-- },
		"map's parts":         func(m *Manifest) { m.Disks[1].ClusterMap.Parts = nil },
		"map's second part":   func(m *Manifest) { m.Disks[1].ClusterMap.Parts = make([]archive.Ref, 2) },
		"map's many parts":    func(m *Manifest) { m.Disks[0].ClusterMap = &ClusterMap{Unit: 65536, Span: 8 << 30} },
		"map's object":        func(m *Manifest) { m.Disks[1].ClusterMap.Parts[0].Name = archive.Digest{} },
		"map's large object":  func(m *Manifest) { m.Disks[1].ClusterMap.Parts[0].Length = 1 << 40 },
		"map of no bytes":     func(m *Manifest) { m.Disks[1].Size = 0 },
		"file's role":         func(m *Manifest) { m.Files[0].Role = "diary" },
		"two of a role":       func(m *Manifest) { m.Files[1].Role = RoleDomainXML },
		"file without path":   func(m *Manifest) { m.Files[1].Path = "" },
		"definition's size":   func(m *Manifest) { m.Files[0].Size = 8<<20 + 1 },
		"configuration's size": func(m *Manifest) {
			m.Files[0].Role, m.Files[0].Path, m.Files[0].Size = RolePVE, "/etc/pve/qemu-server/100.conf", 8<<20+1
		},
		"instance without path": func(m *Manifest) { m.Files[0].Role, m.Files[0].Path = RoleLima, "" },
		"file's size":           func(m *Manifest) { m.Files[1].Size = 64<<20 + 1 },
		"negative file":         func(m *Manifest) { m.Files[1].Size = -1 },
		"file's digest":         func(m *Manifest) { m.Files[1].SHA256 = archive.Digest{} },
		"file's name":           func(m *Manifest) { m.Files[1].Object.Name = archive.Digest{} },
		"file's object":         func(m *Manifest) { m.Files[1].Object.Length = 100 << 20 },
	} {
		m := sample("web", "one")
		break_(m)
		if err := m.Validate(); err == nil {
			t.Errorf("%s: valid", name)
		}
		// The same from a store is damage, unless it is of a newer version.
		r := newRepository(t)
		if m.RepositoryID == sample("a", "b").RepositoryID {
			m.RepositoryID = r.Config.ID
		}
		if name == "tool" || name == "no time" {
			continue // can't be written so
		}
		stored, err := m.mapTexts(escapeText)
		if err != nil {
			t.Fatal(err)
		}
		data, err := Seal(stored)
		if err != nil {
			t.Fatal(name, err)
		}
		_, err = r.parseManifest(data, "web", "one")
		var newer *NewerError
		if wantNewer := name == "version" || name == "requires"; wantNewer != errors.As(err, &newer) || wantNewer == archive.IsDamage(err) {
			t.Errorf("%s: reading: %v", name, err)
		}
		if err := r.Commit(t.Context(), m); err == nil && name != "local time" && name != "description" && name != "reason" && name != "revision" {
			t.Errorf("%s: was committed", name)
		}
	}
}

// However large a disk is, its cluster map has few parts, which cover it.
func TestClusterMapParts(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{512, 65536, 16 << 30, 16<<30 + 512, 1 << 40, 1<<40 + 512, 1<<63 - 512} {
		for _, cluster := range []int64{512, 64 << 10, 2 << 20} {
			c := NewClusterMap(size, cluster)
			var at int64
			for i := range c.Parts {
				start, end, h := c.Part(i, size)
				if start != at || end <= start || (end-start+c.Unit-1)/c.Unit != h.Units {
					t.Errorf("%d bytes, part %d: %d to %d, %+v", size, i, start, end, h)
				}
				at = end
			}
			if at != size || len(c.Parts) > maxClusterParts || c.Unit != max(65536, cluster) {
				t.Errorf("%d bytes: %d parts of %d", size, len(c.Parts), c.Span)
			}
		}
	}
}

func TestManifestErrors(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	commit(t, r, r.sample("web", "one"))
	data := get(t, r.Store, ManifestKey("web", "one"))

	_, err := r.Manifest(t.Context(), "web", "two")
	if !errors.Is(err, ErrNoCheckpoint) || !errors.Is(err, objstore.ErrNotFound) || !strings.Contains(err.Error(), "imgbackup list") {
		t.Errorf("absent: %v", err)
	}
	for _, name := range [][2]string{{"../x", "one"}, {"web", "../one"}, {"", "one"}, {"web", ""}} {
		if _, err := r.Manifest(t.Context(), name[0], name[1]); err == nil || errors.Is(err, objstore.ErrNotFound) {
			t.Errorf("%q: %v", name, err)
		}
	}
	// The same manifest under another key, or from another repository.
	put(t, r.Store, ManifestKey("web", "two"), data)
	put(t, r.Store, ManifestKey("db", "one"), data)
	for _, name := range [][2]string{{"web", "two"}, {"db", "one"}} {
		if _, err := r.Manifest(t.Context(), name[0], name[1]); !archive.IsDamage(err) {
			t.Errorf("%q: %v, want damage", name, err)
		}
	}
	other := newRepository(t)
	put(t, other.Store, ManifestKey("web", "one"), data)
	if _, err := other.Manifest(t.Context(), "web", "one"); !archive.IsDamage(err) || !strings.Contains(err.Error(), r.Config.ID) {
		t.Errorf("another repository's: %v, want damage", err)
	}
}
