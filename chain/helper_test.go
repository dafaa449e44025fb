// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

func newRepository(t *testing.T) *Repository {
	t.Helper()
	r, err := Init(t.Context(), objstore.NewMem(), InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// with returns the same repository through another store.
func (r *Repository) with(s objstore.Store) *Repository {
	return &Repository{Store: s, Config: r.Config}
}

func digest(s string) archive.Digest { return archive.Sum([]byte(s)) }

func mapRef(s string) archive.MapRef {
	return archive.MapRef{Ref: archive.Ref{Name: digest(s), Length: 1000}, DirLength: 100, DirDigest: digest(s + " directory")}
}

func fileRef(s string, size int64) archive.FileRef {
	return archive.FileRef{Object: archive.Ref{Name: digest(s), Length: 99}, Size: size, SHA256: digest(s + " content")}
}

// sample returns a valid manifest with something in every field.
func sample(domain, checkpoint string) *Manifest {
	id := NewUUID()
	return &Manifest{
		Head: Head{Format: ManifestFormat, Version: ManifestVersion},
		Info: []byte(`{"Any": {"thing": [1, null, "x"]}}`),
		Kind: KindArchive, RepositoryID: "7b0f8f1e-6a2c-4a52-9a53-0a3a4a4a4a4a",
		Domain: domain, DomainUUID: "0d1f8f1e-6a2c-4a52-9a53-0a3a4a4a4a4a", Host: Host{Name: "host", ID: "abcd"},
		Checkpoint: checkpoint, UUID: id, Revision: 1, Sequence: 3,
		Parent:  &CheckpointRef{Name: "before", UUID: NewUUID()},
		Created: time.Date(2026, 11, 21, 7, 49, 0, 123456789, time.UTC), Description: "before the <upgrade> & after – ünïcode\nline",
		Tool: "imgbackup 1.0", Locking: LockingQEMU, Requested: ModeAuto,
		Disks: []Disk{{
			Name: "vda", Source: Source{Path: "/images/web.qcow2", Format: "qcow2", Device: 1 << 63, Inode: 1<<64 - 1, Size: 7, Mtime: -5, Ctime: 1 << 60, BootID: "boot",
				DataFile: &FileState{Path: "/images/\xff.data", Device: 1, Inode: 2, Size: 3, Mtime: 4, Ctime: 5}},
			Size: 1 << 40, ClusterSize: 65536, Granularity: 65536,
			Backing:   []Layer{{Path: "/images/base.raw", Format: "raw", FileSize: 1 << 30, Mtime: -5, Ctime: 1 << 60, HeaderDigest: digest("header")}},
			Snapshots: []Snapshot{{ID: "1", Name: "snap", CreatedNS: 17}},
			Requested: ModeAuto, Mode: ModeIncremental, Detection: DetectionBitmap, ReasonCode: "bitmap-ok", Reason: "the bitmap is good",
			IncrementalFrom: &CheckpointRef{Name: "before", UUID: NewUUID()},
			Bitmap:          BitmapName(checkpoint, id),
			Maps:            []archive.MapRef{mapRef("delta"), mapRef("full")},
			DirtyBytes:      5, DataBytes: 4, StoredBytes: 3, ReusedBytes: 2,
			Witnesses: []BitmapRecord{{Name: "before.0123456789abcdef", Layer: 1, LayerPath: "/images/base.raw", Granularity: 65536,
				Size: 1 << 30, DirtyBytes: 65536, Enabled: true, Object: archive.Ref{Name: digest("bitmap"), Length: 77}}},
		}, {
			Name: "vdb", Source: Source{Path: "/dev/vg/data", Format: "raw"}, Size: 513,
			Mode: ModeFull, Detection: DetectionNone, NoBitmapReason: "raw has no bitmaps", Maps: []archive.MapRef{mapRef("vdb")},
			ClusterMap: &ClusterMap{Unit: 65536, Span: 16 << 30, Parts: []archive.Ref{{Name: digest("clusters"), Length: 66}}},
		}},
		Files: []File{
			{Role: RoleDomainXML, FileRef: fileRef("definition", 8<<20)},
			{Role: RoleNVRAM, Path: "/var/lib/nvram/web \xff_VARS.fd", FileRef: fileRef("variables", 64<<20)},
		},
	}
}

// ours returns a sample that belongs to the repository.
func (r *Repository) sample(domain, checkpoint string) *Manifest {
	m := sample(domain, checkpoint)
	m.RepositoryID = r.Config.ID
	return m
}

func commit(t *testing.T, r *Repository, m *Manifest) {
	t.Helper()
	if err := r.Commit(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

// forgetOne forgets a checkpoint, and notes nothing of it.
func forgetOne(ctx context.Context, r *Repository, m *Manifest) error {
	return r.Under(ctx, "forget", func(h *Hold) error { return h.Forget(ctx, m) })
}

// put stores raw bytes.
func put(t *testing.T, s objstore.Store, key string, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), key, strings.NewReader(string(data)), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s objstore.Store, key string) []byte {
	t.Helper()
	data, err := objstore.ReadAll(t.Context(), s, key, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
