// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// testRepo is a repository in memory, filled without the backup engine.
type testRepo struct {
	store objstore.Store
	repo  *chain.Repository
}

func newTestRepo(t rapid.TB) *testRepo {
	t.Helper()
	store := objstore.NewMem()
	repo, err := chain.Init(context.Background(), store, chain.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return &testRepo{store: store, repo: repo}
}

// testDisk is a disk with its content now and its maps so far, newest first.
type testDisk struct {
	name    string
	content []byte
	maps    []archive.MapRef
	dirty   [][2]int64 // since the newest map; only used if there is one
	floor   int64      // smallest size since the newest map
}

func (d *testDisk) size() int64 { return int64(len(d.content)) }

// write changes a range; a nil rng writes zeros.
func (d *testDisk) write(start, end int64, rng *rand.Rand) {
	for i := start; i < end; i++ {
		d.content[i] = 0
		if rng != nil {
			d.content[i] = byte(rng.Uint32())
		}
	}
	d.dirty = append(d.dirty, [2]int64{start, end})
}

// resize cuts the disk or adds zeros.
func (d *testDisk) resize(size int64) {
	d.floor = min(d.floor, size)
	d.content = slices.Clip(d.content[:min(size, d.size())])
	d.content = append(d.content, make([]byte, size-d.size())...)
}

// changed returns what a delta has to hold: the dirty ranges and all beyond the
// smallest size in between, sorted and disjoint.
func (d *testDisk) changed() [][2]int64 {
	mark := make([]bool, d.size()/512)
	for _, r := range append(d.dirty, [2]int64{d.floor, d.size()}) {
		for s := r[0] / 512; s < min((r[1]+511)/512, d.size()/512); s++ {
			mark[s] = true
		}
	}
	var out [][2]int64
	for s := 0; s < len(mark); {
		e := s
		for e < len(mark) && mark[e] == mark[s] {
			e++
		}
		if mark[s] {
			out = append(out, [2]int64{int64(s) * 512, int64(e) * 512})
		}
		s = e
	}
	return out
}

// archive stores what changed in the disks and returns a checkpoint of them.
func (r *testRepo) archive(t rapid.TB, disks ...*testDisk) *chain.Manifest {
	t.Helper()
	ctx := context.Background()
	w, err := archive.NewWriter(ctx, r.store, archive.WriterOptions{Workers: 2, PackSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, d := range disks {
		full := len(d.maps) == 0
		m := w.NewMap(d.name, d.size(), full)
		ranges := [][2]int64{{0, d.size()}}
		if !full {
			ranges = d.changed()
		}
		for _, rg := range ranges {
			for pos := rg[0]; pos < rg[1]; {
				end := min(rg[1], (pos/archive.GridSize+1)*archive.GridSize)
				content := slices.Clone(d.content[pos:end])
				at := pos
				if err := m.Add(ctx, pos, end-pos, func(context.Context, []byte) ([]archive.Piece, error) {
					return []archive.Piece{{Offset: at, Length: int64(len(content)), Data: content}}, nil
				}); err != nil {
					t.Fatal(err)
				}
				pos = end
			}
		}
		if _, err := m.Close(ctx); err != nil {
			t.Fatal(err)
		}
	}
	refs, _, err := w.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	m := &chain.Manifest{Domain: "dom", Checkpoint: "cp", Kind: chain.KindArchive}
	for i, d := range disks {
		d.maps = slices.Insert(slices.Clone(d.maps), 0, refs[i])
		d.dirty, d.floor = nil, d.size()
		m.Disks = append(m.Disks, chain.Disk{Name: d.name, Size: d.size(), ClusterSize: 64 << 10, Granularity: 64 << 10,
			Bitmap: "cp.0123456789abcdef", Maps: d.maps})
	}
	return m
}

// live makes a random change.
func (d *testDisk) live(t *rapid.T, rng *rand.Rand) {
	sector := func(name string) int64 { return 512 * rapid.Int64Range(0, d.size()/512).Draw(t, name) }
	switch rapid.SampledFrom([]string{"data", "data", "zeros", "resize"}).Draw(t, "change") {
	case "data":
		start := sector("start")
		d.write(start, min(d.size(), start+512*rapid.Int64Range(0, 300).Draw(t, "sectors")), rng)
	case "zeros":
		start := sector("start")
		d.write(start, min(d.size(), start+512*rapid.Int64Range(0, 3000).Draw(t, "sectors")), nil)
	case "resize":
		d.resize(512 * rapid.Int64Range(0, 3<<20/512).Draw(t, "size"))
	}
}

func newTestDisk(name string, size int64, rng *rand.Rand) *testDisk {
	d := &testDisk{name: name, content: make([]byte, size)}
	for pos := int64(0); pos < size; pos += 192 << 10 {
		d.write(pos, min(size, pos+128<<10), rng)
	}
	d.dirty = nil
	return d
}

// empty asserts that a folder holds nothing at all.
func empty(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("left behind: %s", filepath.Join(dir, e.Name()))
	}
}
