// SPDX-License-Identifier: Apache-2.0

package check_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/clustermap"
	"github.com/imgbackup/imgbackup/objstore"
)

var errOutage = errors.New("outage")

func newRepository(t *testing.T) *chain.Repository { return newRepositoryOf(t, nil) }

// newRepositoryOf makes one with these keys; nil: a plain one.
func newRepositoryOf(t *testing.T, keys *chaintest.Keys) *chain.Repository {
	t.Helper()
	r, err := chaintest.Init(t.Context(), objstore.NewMem(), keys)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// plainAndEncrypted does a test with repositories of both kinds.
func plainAndEncrypted(t *testing.T, do func(t *testing.T, keys *chaintest.Keys)) {
	t.Run("plain", func(t *testing.T) {
		t.Parallel()
		do(t, nil)
	})
	t.Run("encrypted", func(t *testing.T) {
		t.Parallel()
		do(t, chaintest.NewKeys(t))
	})
}

// with returns the same repository through another store.
func with(r *chain.Repository, s objstore.Store) *chain.Repository {
	if archive.KeysOf(s) == nil {
		s = archive.Encrypted(s, archive.KeysOf(r.Store))
	}
	return &chain.Repository{Store: s, Config: r.Config, Access: r.Access}
}

func commit(t *testing.T, r *chain.Repository, m *chain.Manifest) {
	t.Helper()
	if err := r.Commit(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

// put stores raw bytes, also where an encrypted store would refuse them.
func put(t *testing.T, s objstore.Store, key string, data []byte) {
	t.Helper()
	if below, ok := s.(interface{ Unwrap() objstore.Store }); ok && archive.KeysOf(s) != nil {
		s = below.Unwrap()
	}
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

// random returns n bytes that do not compress.
func random(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed, 9}).Read(b) // never fails
	return b
}

func intent(domain string) *chain.Intent {
	id := chain.NewUUID()
	return &chain.Intent{
		UUID: chain.NewUUID(), Domain: domain, Checkpoint: "one", CheckpointUUID: id,
		Process: chain.Process{Host: chain.Host{Name: "host", ID: "id"}, BootID: "boot", PID: 17}, Created: time.Now(),
		Images: []chain.IntentImage{{Disk: "vda", Path: "/images/web.qcow2", Add: chain.BitmapName("one", id)}},
	}
}

func lease(t *testing.T) *chain.Lease {
	t.Helper()
	l, err := (&chain.Repository{}).NewLease("test")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// manifest describes a disk and no data yet.
func manifest(domain, checkpoint string, size int64) *chain.Manifest {
	return &chain.Manifest{
		Kind: chain.KindArchive, Domain: domain, Host: chain.Host{Name: "host"}, Checkpoint: checkpoint, UUID: chain.NewUUID(),
		Sequence: 1, Created: time.Unix(1e9, 0).UTC(), Locking: chain.LockingQEMU, Requested: chain.ModeAuto,
		Disks: []chain.Disk{{
			Name: "vda", Source: chain.Source{Path: "/images/web.qcow2", Format: "qcow2"}, Size: size,
			Requested: chain.ModeAuto, Mode: chain.ModeFull, Detection: chain.DetectionNone,
		}},
	}
}

// piece is guest data at an offset.
type piece struct {
	off  int64
	data []byte
}

// backup archives one disk of a domain, as a full or as a delta over parent.
func backup(t *testing.T, r *chain.Repository, domain, checkpoint string, size int64, parent *chain.Manifest, pieces ...piece) *chain.Manifest {
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
	bitmap, content, err := w.PutBitmap(ctx, h, dirty)
	if err != nil {
		t.Fatal(err)
	}
	clusters := chain.NewClusterMap(size, 65536)
	_, _, part := clusters.Part(0, size)
	c, err := archive.EncodeClusters(part, func(yield func(clustermap.Run, error) bool) {
		yield(clustermap.Run{Kind: clustermap.Data, Count: part.Units, Host: 1 << 20}, nil)
	}, t.TempDir(), archive.KeysOf(r.Store))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := w.PutClusters(ctx, c, false); err != nil {
		t.Fatal(err)
	}
	clusters.Parts[0] = c.Ref
	definition, err := w.PutFile(ctx, strings.NewReader("<domain><name>"+domain+"</name></domain>"))
	if err != nil {
		t.Fatal(err)
	}
	refs, _, err := w.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	m := manifest(domain, checkpoint, size)
	m.Files = []chain.File{{Role: chain.RoleDomainXML, FileRef: definition}}
	d := &m.Disks[0]
	d.Witnesses = []chain.BitmapRecord{{Name: h.Name, Granularity: h.Granularity, Size: size, DirtyBytes: min(size, 65536), Object: bitmap, Content: content}}
	d.Maps, d.ClusterMap = refs, clusters
	if parent != nil {
		m.Parent, m.Sequence = parent.Ref(), parent.Sequence+1
		d.Mode, d.Detection, d.IncrementalFrom = chain.ModeIncremental, chain.DetectionBitmap, parent.Ref()
		d.Maps = append(d.Maps, parent.Disks[0].Maps...)
	}
	commit(t, r, m)
	return m
}
