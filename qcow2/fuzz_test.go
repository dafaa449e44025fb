// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// fuzzImages are small images of every kind, as seeds. Files that they name
// are in dir.
func fuzzImages(f *testing.F, dir string) [][]byte {
	f.Helper()
	var seeds [][]byte
	for _, options := range []string{
		"cluster_size=512", "cluster_size=512,compat=0.10", "cluster_size=512,compression_type=zstd",
		"cluster_size=16k,extended_l2=on", "cluster_size=512,backing_file=b,backing_fmt=raw", "cluster_size=512,data_file=" + dir + "/d",
	} {
		path := filepath.Join(dir, "seed")
		testkit.Tool(f, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-o", options, path, "100k")
		if err := os.WriteFile(filepath.Join(dir, "b"), make([]byte, 512), 0o600); err != nil {
			f.Fatal(err)
		}
		qemuIO(f, "qcow2", path, "write 0 3k", "write -z 8k 8k")
		if !strings.Contains(options, "data_file") {
			qemuIO(f, "qcow2", path, "write -c 48k 16k")
			testkit.Tool(f, "qemu-img", "snapshot", "-c", "name", path)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		seeds = append(seeds, b)
	}
	for _, s := range seeds {
		if len(s) < 2048 {
			f.Fatalf("a seed has %d bytes only", len(s))
		}
		if _, err := parseHeader(bytes.NewReader(s), int64(len(s)), "seed"); err != nil {
			f.Fatal(err)
		}
	}
	return seeds
}

// declared reports whether an error is of a kind that a hostile image may cause.
func declared(err error) bool {
	return isDamage(err) || isUnsupported(err) || isPolicy(err) || errors.Is(err, ErrNotQcow2) || errors.Is(err, os.ErrNotExist)
}

func FuzzHeader(f *testing.F) {
	for _, s := range fuzzImages(f, f.TempDir()) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(bytes.NewReader(b), int64(len(b)), "fuzz")
		if err != nil {
			if !declared(err) {
				t.Fatal(err)
			}
			return
		}
		if h.ClusterBits < 9 || h.ClusterBits > 21 || h.L1Entries*8 > 32<<20 || h.L1Entries < h.neededL1() || h.RawSize < 0 || h.SnapshotCount > 65536 {
			t.Fatalf("%+v", h)
		}
		total := 0
		for _, e := range h.Extensions {
			total += len(e.Data)
		}
		if total > len(b) {
			t.Fatalf("%d bytes of extensions from %d", total, len(b))
		}
	})
}

func FuzzSnapshots(f *testing.F) {
	for _, s := range fuzzImages(f, f.TempDir()) {
		h, err := parseHeader(bytes.NewReader(s), int64(len(s)), "seed")
		if err != nil {
			f.Fatal(err)
		}
		list, err := readSnapshots(bytes.NewReader(s), int64(len(s)), "seed", h)
		if err != nil || len(list) != h.SnapshotCount {
			f.Fatal(list, err)
		}
		if h.SnapshotCount == 0 {
			continue
		}
		f.Add(s[h.SnapshotsOffset:], h.SnapshotCount)
	}
	f.Fuzz(func(t *testing.T, b []byte, count int) {
		if count < 0 || count > maxSnapshots {
			return
		}
		list, err := readSnapshots(bytes.NewReader(b), int64(len(b)), "fuzz", &Header{SnapshotCount: count})
		if err != nil {
			if !isDamage(err) {
				t.Fatal(err)
			}
			return
		}
		total := 0
		for _, s := range list {
			total += snapshotHeader + len(s.ID) + len(s.Name)
		}
		if len(list) != count || total > len(b) {
			t.Fatalf("%d snapshots with %d bytes from %d", len(list), total, len(b))
		}
	})
}

// FuzzImage opens whole images, walks them and reads from them. Whatever the
// bytes say, that ends soon, in bounded memory, and extents, data and a second
// pass agree.
func FuzzImage(f *testing.F) {
	dir := f.TempDir()
	for _, s := range fuzzImages(f, dir) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		file, err := os.CreateTemp(dir, "image")
		if err != nil {
			t.Fatal(err)
		}
		defer os.Remove(file.Name())
		defer file.Close()
		if _, err := file.Write(b); err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		fuzzRead(t, file.Name())
		runtime.ReadMemStats(&after)
		if held := int64(after.HeapAlloc) - int64(before.HeapAlloc); held > 128<<20 {
			t.Fatalf("%d bytes of memory for an image of %d", held, len(b))
		}
	})
}

func fuzzRead(t *testing.T, path string) {
	c, err := Open(path, Qcow2, OpenOptions{})
	if err != nil {
		if !declared(err) {
			t.Fatal(err)
		}
		return
	}
	defer c.Close()
	var before []Extent
	for e, err := range c.Extents(0, c.Size()) {
		if err != nil || len(before) > 100000 {
			break
		}
		before = append(before, e)
	}
	// A survey, and counting, are as bounded, and change nothing of what is read.
	if _, err := c.Layers[0].CheckRefcounts(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := 0
	p := make([]byte, 4096)
	pos := int64(0)
	for e, err := range c.Extents(0, c.Size()) {
		if err != nil {
			if !declared(err) {
				t.Fatal(err)
			}
			break
		}
		if e.Offset != pos || e.Length <= 0 {
			t.Fatalf("%+v does not follow %d", e, pos)
		}
		pos += e.Length
		if n < len(before) && e != before[n] {
			t.Fatalf("%+v, and before a survey %+v", e, before[n])
		}
		if n++; n > 200000 {
			t.Fatal("too many extents")
		}
		if n > 500 {
			continue
		}
		got := p[:min(e.Length, int64(len(p)))]
		if err := c.ReadAt(t.Context(), got, e.Offset); err != nil {
			if !declared(err) {
				t.Fatal(err)
			}
			continue
		}
		if (e.Kind == Zero || e.Kind == Hole) && !allZero(got) {
			t.Fatalf("%+v holds data", e)
		}
	}
	if err := c.CrossCheck(t.Context(), 2, rand.New(rand.NewPCG(1, 1))); err != nil && !declared(err) && !errors.As(err, new(*DisagreementError)) {
		t.Fatal(err)
	}
	for _, b := range c.Layers[0].Bitmaps {
		for _, err := range b.Runs() {
			if err != nil {
				break
			}
		}
	}
}
