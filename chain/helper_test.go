// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/objstore"
)

func newRepository(t *testing.T) *Repository {
	t.Helper()
	r, err := Init(t.Context(), objstore.NewMem())
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
		Format: ManifestFormat, Version: ManifestVersion,
		Info: []byte(`{"Any": {"thing": [1, null, "x"]}}`),
		Kind: KindArchive, RepositoryID: "7b0f8f1e-6a2c-4a52-9a53-0a3a4a4a4a4a",
		Domain: domain, DomainUUID: "0d1f8f1e-6a2c-4a52-9a53-0a3a4a4a4a4a", Host: Host{Name: "host", ID: "abcd"},
		Checkpoint: checkpoint, UUID: id, Revision: 1, Sequence: 3,
		Parent:  &CheckpointRef{Name: "before", UUID: NewUUID()},
		Created: time.Date(2026, 11, 21, 7, 49, 0, 123456789, time.UTC), Description: "before the <upgrade> & after – ünïcode\nline",
		Tool: "imgbackup 1.0", Locking: LockingQEMU, Requested: ModeAuto,
		Disks: []Disk{{
			Name: "vda", Source: Source{Path: "/images/web.qcow2", Format: "qcow2", Device: 1 << 63, Inode: 1<<64 - 1},
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

// put stores raw bytes.
func put(t *testing.T, s objstore.Store, key string, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), key, strings.NewReader(string(data)), objstore.Replace); err != nil {
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

// random returns n bytes that do not compress.
func random(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed, 9}).Read(b) // never fails
	return b
}

// piece is guest data at an offset.
type piece struct {
	off  int64
	data []byte
}

// backup archives one disk of a domain, as a full or as a delta over parent.
func backup(t *testing.T, r *Repository, domain, checkpoint string, size int64, parent *Manifest, pieces ...piece) *Manifest {
	t.Helper()
	ctx := t.Context()
	w, err := archive.NewWriter(ctx, r.Store, archive.WriterOptions{Workers: 2, PackSize: 64 << 10, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	mw := w.NewMap("vda", size, parent == nil)
	for _, p := range pieces {
		err := mw.Add(ctx, p.off, int64(len(p.data)), func(context.Context, []byte) ([]archive.Piece, error) {
			return []archive.Piece{{Offset: p.off, Length: int64(len(p.data)), Data: p.data}}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := mw.Close(ctx); err != nil {
		t.Fatal(err)
	}
	h := bitmapstore.Header{Name: "first.0123456789abcdef", Granularity: 65536, Size: size}
	dirty := bitmapstore.Of(bitmapstore.Run{Start: 0, End: min(size, 65536)})
	bitmap, err := w.PutBitmap(ctx, h, dirty)
	if err != nil {
		t.Fatal(err)
	}
	definition, err := w.PutFile(ctx, strings.NewReader("<domain><name>"+domain+"</name></domain>"))
	if err != nil {
		t.Fatal(err)
	}
	refs, _, err := w.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	m := r.sample(domain, checkpoint)
	m.Files = []File{{Role: RoleDomainXML, FileRef: definition}}
	d := m.Disks[0]
	d.Size, d.Backing = size, nil
	d.Witnesses = []BitmapRecord{{Name: h.Name, Granularity: h.Granularity, Size: size, DirtyBytes: min(size, 65536), Object: bitmap}}
	d.Maps = refs
	m.Parent, m.Sequence = nil, 1
	d.Mode, d.IncrementalFrom = ModeFull, nil
	if parent != nil {
		m.Parent, m.Sequence = parent.Ref(), parent.Sequence+1
		d.Mode, d.IncrementalFrom = ModeIncremental, parent.Ref()
		d.Maps = append(d.Maps, parent.Disks[0].Maps...)
	}
	m.Disks = []Disk{d}
	commit(t, r, m)
	return m
}
