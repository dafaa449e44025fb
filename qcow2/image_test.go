// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

func TestConcurrentReads(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source := sourceFile(t, dir)
	rnd := rand.New(rand.NewPCG(21, 4))
	base, path := dir+"/base.qcow2", dir+"/image.qcow2"
	size := int64(3 << 20)
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512,compression_type=zstd", base, fmt.Sprint(size))
	qemuIO(t, "qcow2", base, life(rnd, 30, size, 512, source, true)...)
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", "-b", base, "-F", "qcow2", path)
	qemuIO(t, "qcow2", path, life(rnd, 30, size, 4096, source, true)...)
	o := newOracle(t, path, "qcow2")
	c := mustOpen(t, path, Qcow2)
	var wg sync.WaitGroup
	for i := range uint64(8) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(i, i))
			b := make([]byte, 100000)
			for range 60 {
				off := rnd.Int64N(size)
				n := min(1+rnd.Int64N(int64(len(b)-1)), size-off)
				if err := c.ReadAt(t.Context(), b[:n], off); err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(b[:n], o.content[off:off+n]) {
					t.Errorf("read of %d at %d differs", n, off)
					return
				}
			}
			for e, err := range c.Extents(0, size) {
				if err != nil {
					t.Error(err)
					return
				}
				if e.Kind == Zero || e.Kind == Hole {
					if !allZero(o.content[e.Offset : e.Offset+e.Length]) {
						t.Errorf("%+v is not zero", e)
					}
				}
			}
		})
	}
	wg.Wait()
}

// TestAllocated compares with what was written, layer by layer.
func TestAllocated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	raw, mid, top := dir+"/raw", dir+"/mid", dir+"/top"
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "raw", raw, "1000000")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", mid, "2M")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", mid, "-F", "qcow2", top, "1M")
	qemuIO(t, "qcow2", mid, "write 0 64k", "write -z 64k 64k", "write 256k 1k", "write 2047k 1k")
	qemuIO(t, "qcow2", top, "write -z -u 512k 128k", "write 700k 1")
	c := mustOpen(t, top, Qcow2)
	for layer, want := range []string{
		"[{524288 655360} {655360 720896}]", "[{0 131072} {262144 327680} {2031616 2097152}]", "[{0 1000448}]",
	} {
		runs, err := c.Allocated(t.Context(), layer).Collect()
		if err != nil {
			t.Fatal(err)
		}
		if layer == 0 {
			want = "[{524288 720896}]"
		}
		if got := fmt.Sprint(runs); got != want {
			t.Errorf("layer %d: %s, want %s", layer, got, want)
		}
	}
	if _, err := c.Allocated(t.Context(), 3).Collect(); err == nil {
		t.Error("a layer that is not there")
	}
	var got []string
	for e, err := range c.LayerExtents(0, 0, 1<<20) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(e))
	}
	if want := "{0 524288 hole -1} {524288 131072 zero 0} {655360 65536 data 0} {720896 327680 hole -1}"; strings.Join(got, " ") != want {
		t.Errorf("extents of the active layer: %s, want %s", got, want)
	}
	for _, r := range [][2]int64{{-1, 5}, {5, 4}, {0, 1<<20 + 1}} {
		for _, err := range c.Extents(r[0], r[1]) {
			if err == nil {
				t.Errorf("extents of %v", r)
			}
		}
	}
}

// TestExtentsStop breaks off at each extent.
func TestExtentsStop(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rnd := rand.New(rand.NewPCG(3, 3))
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", dir+"/base", "1M")
	qemuIO(t, "qcow2", dir+"/base", "write 0 64k", "write 128k 64k", "write -z 256k 64k")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "base", "-F", "qcow2", dir+"/top", "2M")
	qemuIO(t, "qcow2", dir+"/top", life(rnd, 10, 2<<20, 4096, sourceFile(t, dir), false)...)
	c := mustOpen(t, dir+"/top", Qcow2)
	total := 0
	for range c.Extents(0, c.Size()) {
		total++
	}
	for stop := 1; stop <= total; stop++ {
		n := 0
		for _, err := range c.Extents(0, c.Size()) {
			if err != nil {
				t.Fatal(err)
			}
			if n++; n == stop {
				break
			}
		}
		n = 0
		for range c.Allocated(t.Context(), 0) {
			if n++; n == stop {
				break
			}
		}
	}
	if total < 6 {
		t.Fatalf("only %d extents", total)
	}
}

// TestHuge walks disks of 16 TiB that hold next to nothing.
//
//nolint:paralleltest // it measures the memory of the whole process
func TestHuge(t *testing.T) {
	for _, cluster := range []string{"64k", "2M"} {
		path := filepath.Join(t.TempDir(), "huge.qcow2")
		testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size="+cluster, path, "16T")
		qemuIO(t, "qcow2", path, "write 0 1", "write 8T 1", "write -z 9T 1G", fmt.Sprintf("write %d 512", int64(16<<40-512)))
		c := mustOpen(t, path, Qcow2)
		before := heap()
		var data, zero, n int64
		for e, err := range c.Extents(0, c.Size()) {
			if err != nil {
				t.Fatal(err)
			}
			n++
			switch e.Kind {
			case Data:
				data += e.Length
			case Zero:
				zero += e.Length
			}
		}
		cs := c.Layers[0].Header.ClusterSize()
		if data+zero != 3*cs+(1<<30) || data < 3*4096 || n < 7 {
			t.Errorf("%d data, %d zero, %d extents", data, zero, n)
		}
		if grown := int64(heap()) - int64(before); grown > c.cache.used+1<<20 || c.cache.used > 10<<20 {
			t.Errorf("memory grew by %d bytes, %d of them tables", grown, c.cache.used)
		}
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestTableCacheIsBounded fills the cache of mapping tables over its limit.
func TestTableCacheIsBounded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	c := newTableCache(false)
	l := &Layer{Path: path, file: &File{path: path, f: f, size: 1 << 30}}
	for off := int64(0); off < 100<<20; off += 64 << 10 {
		if _, err := c.get(l, off, 64<<10, "a table"); err != nil {
			t.Fatal(err)
		}
	}
	held := int64(0)
	for e := c.order.Front(); e != nil; e = e.Next() {
		held += e.Value.(*tableSlice).cost()
	}
	if held != c.used || held > tableCacheBytes || held < tableCacheBytes/2 || len(c.slice) != c.order.Len() {
		t.Fatalf("%d bytes are held, %d counted, %d and %d slices", held, c.used, len(c.slice), c.order.Len())
	}
	for range 2 { // a short slice does not stand in for a longer one
		for _, n := range []int64{100, 500, 300} {
			if b, err := c.get(l, 200<<20, n, "a table"); err != nil || int64(len(b)) != n {
				t.Fatal(len(b), err)
			}
		}
	}
}

func TestReadLimit(t *testing.T) {
	t.Parallel()
	path := smallImage(t, t.TempDir(), "")
	c, err := Open(path, Qcow2, OpenOptions{ReadLimit: rate.NewLimiter(rate.Every(time.Hour), 150<<10)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := make([]byte, 100<<10)
	// Zeros cost nothing; 100 KiB are granted at once; the next 100 KiB are not
	// within any time that a test has.
	for range 3 {
		if err := c.ReadAt(t.Context(), p, 2<<20); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.ReadAt(t.Context(), p, 1<<20); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.ReadAt(ctx, p, 1<<20); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestReadAtEdges(t *testing.T) {
	t.Parallel()
	c := mustOpen(t, smallImage(t, t.TempDir(), ""), Qcow2)
	for _, at := range []int64{0, c.Size()} {
		if err := c.ReadAt(t.Context(), nil, at); err != nil {
			t.Errorf("nothing at %d: %v", at, err)
		}
	}
	p := bytes.Repeat([]byte{1}, 9)
	for _, at := range []int64{-1, -1 << 63, c.Size() - 8, c.Size(), 1 << 62} {
		if err := c.ReadAt(t.Context(), p, at); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("9 bytes at %d: %v", at, err)
		}
	}
}

func TestSnapshotTable(t *testing.T) {
	t.Parallel()
	path := smallImage(t, t.TempDir(), "")
	if s := mustOpen(t, path, Qcow2).Layers[0].Snapshots; len(s) != 0 {
		t.Fatal(s)
	}
	before := time.Now().Add(-2 * time.Second)
	testkit.Tool(t, "qemu-img", "snapshot", "-c", "first", path)
	testkit.Tool(t, "qemu-img", "resize", "-q", path, "6M")
	testkit.Tool(t, "qemu-img", "snapshot", "-c", "zweite Aufnahme ü", path)
	s := mustOpen(t, path, Qcow2).Layers[0].Snapshots
	if len(s) != 2 || s[0].ID != "1" || s[0].Name != "first" || s[0].Size != 4<<20 || s[0].VMStateSize != 0 ||
		s[1].ID != "2" || s[1].Name != "zweite Aufnahme ü" || s[1].Size != 6<<20 {
		t.Fatalf("%+v", s)
	}
	if s[0].Created.Before(before) || s[1].Created.After(time.Now().Add(2*time.Second)) || s[0].VMClock != 0 {
		t.Fatalf("%+v", s)
	}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	base := smallImage(t, dir, "")
	path := filepath.Join(dir, "over.qcow2")
	overlay(t, path, "small.qcow2", "qcow2")
	open := func() (*Layer, FileID) {
		l := mustOpen(t, path, Qcow2).Layers[0]
		id, err := l.Stat()
		if err != nil {
			t.Fatal(err)
		}
		return l, id
	}
	l, id := open()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if now, err := l.PathStat(); err != nil || now != id || id.Size != info.Size() || id.MtimeNs != info.ModTime().UnixNano() || id.Inode == 0 || id.Dev == 0 || id.CtimeNs == 0 {
		t.Fatal(id, now, err)
	}
	digest := l.HeaderDigest()
	if digest == ([32]byte{}) {
		t.Fatal("no digest")
	}
	same := func(what string) {
		t.Helper()
		if l, now := open(); l.HeaderDigest() != digest || now == id {
			t.Errorf("%s: digest %x, identity %+v", what, l.HeaderDigest(), now)
		}
	}
	testkit.Tool(t, "qemu-img", "bitmap", "--add", path, "b")
	same("bitmap added")
	qemuIO(t, "qcow2", path, "write 0 512k", "read 0 1")
	same("written and bitmap moved")
	testkit.Tool(t, "qemu-img", "bitmap", "--remove", path, "b")
	testkit.Tool(t, "qemu-img", "snapshot", "-c", "s", path)
	testkit.Tool(t, "qemu-img", "amend", "-o", "lazy_refcounts=on", path)
	same("snapshot, features")

	differs := func(what string) {
		t.Helper()
		l, _ := open()
		if l.HeaderDigest() == digest {
			t.Errorf("%s: the digest is the same", what)
		}
		digest = l.HeaderDigest()
	}
	testkit.Tool(t, "qemu-img", "resize", "-q", path, "2M")
	differs("resized")
	other := filepath.Join(dir, "other.qcow2")
	if err := os.Rename(base, other); err != nil {
		t.Fatal(err)
	}
	testkit.Tool(t, "qemu-img", "rebase", "-u", "-b", "other.qcow2", "-F", "qcow2", path)
	differs("other backing file")
	testkit.Tool(t, "qemu-img", "rebase", "-u", "-b", "other.qcow2", "-F", "raw", path)
	differs("other backing format")
	testkit.Tool(t, "qemu-img", "rebase", "-u", "-b", "", path)
	differs("no backing file")

	// The open file, and what has taken its place since.
	l, id = open()
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	if open, err := l.Stat(); err != nil || open.Inode != id.Inode {
		t.Fatal(open, err)
	}
	if now, err := l.PathStat(); err != nil || now.Inode == id.Inode {
		t.Fatal(now, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := l.PathStat(); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// TestHeaderDigestIsFixed holds the composition of the digest, which archives
// keep.
func TestHeaderDigestIsFixed(t *testing.T) {
	t.Parallel()
	l := &Layer{Header: &Header{
		Version: 3, ClusterBits: 16, RawSize: 1 << 30, BackingFile: "base", BackingFormat: "raw",
		Incompatible: IncompatDirty | IncompatCorrupt, L1Offset: 77, Autoclear: 1, SnapshotCount: 3,
	}}
	if got := fmt.Sprintf("%x", l.HeaderDigest()); got != headerDigestExample {
		t.Fatal(got)
	}
	if (&Layer{}).HeaderDigest() != [32]byte{} {
		t.Fatal("a raw layer has a digest")
	}
}

// Computed from the documentation of Layer.HeaderDigest, by another program.
const headerDigestExample = "89f43a35a597c794cbc70caac683dda71087f2d364471b2788a4f9ed8c94bff8"

func TestCrossCheck(t *testing.T) {
	t.Parallel()
	source := sourceFile(t, t.TempDir())
	for _, test := range []struct {
		options string
		cluster int64
	}{
		{"cluster_size=512", 512}, {"cluster_size=64k", 64 << 10}, {"cluster_size=2M", 2 << 20},
		{"compat=0.10", 64 << 10}, {"extended_l2=on", 64 << 10}, {"compression_type=zstd", 64 << 10},
	} {
		t.Run(test.options, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			rnd := rand.New(rand.NewPCG(5, 6))
			size := diskSize(test.cluster)
			testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", test.options, dir+"/base", fmt.Sprint(size))
			testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", dir+"/top", fmt.Sprint(size))
			for _, name := range []string{"/base", "/top"} {
				qemuIO(t, "qcow2", dir+name, fmt.Sprintf("write -s %s 0 %d", source, size/4&^511))
				qemuIO(t, "qcow2", dir+name, fmt.Sprintf("write -c -s %s %d %d", source, size/2&^(2<<20-1), max(test.cluster, 64<<10)))
			}
			c := mustOpen(t, dir+"/top", Qcow2)
			n, err := c.crossCheck(t.Context(), 40, rnd)
			if err != nil || n != 40 {
				t.Fatalf("%d compared: %v", n, err)
			}
			if err := c.CrossCheck(t.Context(), 40, rnd); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := c.CrossCheck(ctx, 1, rnd); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		})
	}
}

// TestCrossCheckDisagrees makes our own reader read from the wrong place.
func TestCrossCheckDisagrees(t *testing.T) {
	t.Parallel()
	path := smallImage(t, t.TempDir(), "")
	qemuIO(t, "qcow2", path, "write -P 99 1M 64k")
	c := mustOpen(t, path, Qcow2)
	rnd := rand.New(rand.NewPCG(5, 6))
	if err := c.CrossCheck(t.Context(), 10, rnd); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, e := range c.cache.slice {
		if s := e.Value.(*tableSlice); s.key.offset != c.Layers[0].Header.L1Offset {
			copy(s.data[16*8:], s.data[17*8:18*8])
			found = true
		}
	}
	if !found {
		t.Fatal("no L2 table is cached")
	}
	var disagree *DisagreementError
	if err := c.CrossCheck(t.Context(), 100, rnd); !errors.As(err, &disagree) || disagree.Offset != 1<<20 {
		t.Fatal(err)
	}
}
