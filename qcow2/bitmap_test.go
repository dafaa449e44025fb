// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/internal/testkit"
)

// Every granularity and several cluster sizes: what we read is what QEMU says.
func TestBitmapsAgainstQEMU(t *testing.T) {
	t.Parallel()
	clusters := []int64{512, 4096, 65536, 2 << 20}
	for bits := minGranularityBits; bits <= maxGranularityBits; bits++ {
		granularity := int64(1) << bits
		cluster := clusters[bits%len(clusters)]
		t.Run(fmt.Sprintf("granularity %d cluster %d", granularity, cluster), func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 1))
			size := min(granularity*(1+rng.Int64N(300)), 20<<30, 20000*cluster)&^511 + 512*rng.Int64N(3)
			size = max(size, 1024)
			path := filepath.Join(t.TempDir(), "d.qcow2")
			bmCreate(t, path, fmt.Sprintf("cluster_size=%d", cluster), size)
			bmAdd(t, path, "first", granularity)
			bmIO(t, path, bmRandomWrites(rng, size, 1+rng.IntN(8))...)
			bmAdd(t, path, "second", 512<<rng.IntN(8))
			bmIO(t, path, bmRandomWrites(rng, size, 1+rng.IntN(8))...)
			testkit.Tool(t, "qemu-img", "bitmap", "--disable", "-f", "qcow2", path, "first")

			c := bmOpen(t, path)
			first, second := bmFind(t, c, "first"), bmFind(t, c, "second")
			if first.Granularity != granularity || first.Enabled || !second.Enabled || first.InUse || second.InUse {
				t.Fatalf("%+v\n%+v", first, second)
			}
			bmWant(t, first, bmOracle(t, path, "first"))
			bmWant(t, second, bmOracle(t, path, "second"))
			if err := c.Layers[0].CheckAddBitmap(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// All-ones entries are not written by QEMU, but read.
func TestBitmapAllOnes(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{3 << 20, 3<<20 - 512, 1 << 20} {
		path := filepath.Join(t.TempDir(), "d.qcow2")
		bmCreate(t, path, "cluster_size=512", size)
		bmAdd(t, path, "a", 512) // a cluster of bits covers 2 MiB
		bmIO(t, path, "write 0 512", fmt.Sprintf("write %d 512", size-4096))
		m := bmLoad(t, path)
		entries := bitmapTableEntries(size, 512, 512)
		for mask := range 1 << entries {
			p := m.clone()
			for i := range entries {
				if mask>>i&1 != 0 {
					p.put64(p.table(0)+8*i, 1)
				}
			}
			patched := p.save(t, t.TempDir())
			want := bmOracle(t, patched, "a")
			if mask == 1<<entries-1 && !slices.Equal(want, []bitmapstore.Run{{Start: 0, End: size}}) {
				t.Fatalf("the oracle says %v", want)
			}
			bmWant(t, bmFind(t, bmOpen(t, patched), "a"), want)
		}
	}
}

// Set bits beyond the end of the disk are no bits.
func TestBitmapTailBits(t *testing.T) {
	t.Parallel()
	const size = 1<<20 + 512 // 17 granules, the last of 512 bytes
	path := filepath.Join(t.TempDir(), "d.qcow2")
	bmCreate(t, path, "", size)
	bmAdd(t, path, "a", 65536)
	bmIO(t, path, "write 0 512", fmt.Sprintf("write %d 512", 1<<20))
	m := bmLoad(t, path)
	data := int64(m.u64(m.table(0)))
	for i := data + 2; i < data+m.cluster; i++ {
		m.data[i] = 0xff
	}
	patched := m.save(t, t.TempDir())
	want := []bitmapstore.Run{{Start: 0, End: 65536}, {Start: 1 << 20, End: size}}
	if got := bmOracle(t, patched, "a"); !slices.Equal(got, want) {
		t.Fatalf("the oracle says %v", got)
	}
	m.data[data+2] = 1 // for ours: the rest of the last byte as well
	bmWant(t, bmFind(t, bmOpen(t, patched), "a"), want)
}

func TestBitmapNames(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "d.qcow2")
	bmCreate(t, path, "", 1<<20)
	names := []string{"x", "cp.0123456789abcdef", "with space/and slash", "ünï", "\xff\xfe", strings.Repeat("n", maxBitmapName), "-dash", "a,b"}
	for _, n := range names {
		testkit.Tool(t, "qemu-img", "bitmap", "--add", "--", path, n)
	}
	c := bmOpen(t, path)
	var got []string
	for _, b := range c.Layers[0].Bitmaps {
		if b.Problem != nil {
			t.Errorf("%q: %v", b.Name, b.Problem)
		}
		got = append(got, b.Name)
	}
	slices.Sort(names)
	slices.Sort(got)
	if !slices.Equal(got, names) {
		t.Fatalf("got %q, want %q", got, names)
	}
	if c.Layers[0].Bitmap("nobody") != nil {
		t.Fatal("a bitmap that is not there was found")
	}
}

// StoredBytes is what qemu-img measures, less the directory.
func TestBitmapStoredBytes(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "d.qcow2")
	bmCreate(t, path, "cluster_size=4096", 1<<30)
	bmAdd(t, path, "a", 512) // 2 Mi bits: 64 clusters of bits
	bmIO(t, path, "write 0 4k", "write 512M 64k")
	b := bmFind(t, bmOpen(t, path), "a")
	if want := int64(4096 + 2*4096); b.StoredBytes != want {
		t.Fatalf("%d bytes, want %d", b.StoredBytes, want)
	}
}

// A disk of 16 TiB with few dirty bits: only clusters of bits that are there are read.
func TestBitmapHugeDisk(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "d.qcow2")
	const size = 16 << 40
	bmCreate(t, path, "", size)
	bmAdd(t, path, "a", 65536)
	bmIO(t, path, "write 0 64k", "write 8T 1M", fmt.Sprintf("write %d 512", int64(size-512)))
	want := []bitmapstore.Run{{Start: 0, End: 65536}, {Start: 8 << 40, End: 8<<40 + 1<<20}, {Start: size - 65536, End: size}}
	bmWant(t, bmFind(t, bmOpen(t, path), "a"), want)
}

func TestBitmapInUse(t *testing.T) {
	t.Parallel()
	m := bmLoad(t, bmTwo(t))
	for i := range m.entries {
		m.put32(m.entries[i]+12, m.flags(i)|bitmapInUse)
		// The table of such a bitmap is nobody's business.
		m.put64(m.entries[i], uint64(m.cluster*12345))
		m.put32(m.entries[i]+8, 7)
	}
	path := m.save(t, t.TempDir())
	testkit.Tool(t, "qemu-img", "info", path)
	c := bmOpen(t, path)
	for _, b := range c.Layers[0].Bitmaps {
		if !b.InUse || !errors.Is(b.Problem, ErrBitmapInUse) {
			t.Errorf("%+v", b)
		}
		if _, err := b.DirtyBytes(); !errors.Is(err, ErrBitmapInUse) {
			t.Errorf("DirtyBytes: %v", err)
		}
	}
	if c.Layers[0].BitmapsErr != nil || len(c.Layers[0].Bitmaps) != 2 {
		t.Fatalf("%v, %d bitmaps", c.Layers[0].BitmapsErr, len(c.Layers[0].Bitmaps))
	}
	if err := c.Layers[0].CheckAddBitmap(); err != nil {
		t.Fatal(err)
	}
}

// hostile is one way to spoil bitmap metadata.
type hostile struct {
	name  string
	spoil func(m *bmImage)
	err   bool // BitmapsErr: no bitmap is usable
	first bool // else only bitmap "a" has a Problem
	qemu  bool // QEMU opens it all the same
}

func hostileRecipes() []hostile {
	entry := func(change func(m *bmImage, e int64)) func(*bmImage) {
		return func(m *bmImage) { change(m, m.entries[0]) }
	}
	firstTableEntry := func(v uint64) func(*bmImage) {
		return func(m *bmImage) { m.put64(m.table(0), v) }
	}
	return []hostile{
		{name: "no bitmaps", err: true, spoil: func(m *bmImage) { m.put32(m.ext, 0) }},
		{name: "too many bitmaps", err: true, spoil: func(m *bmImage) { m.put32(m.ext, 65536) }},
		{name: "one bitmap more", err: true, spoil: func(m *bmImage) { m.put32(m.ext, 3) }},
		{name: "one bitmap less", err: true, spoil: func(m *bmImage) { m.put32(m.ext, 1) }},
		{name: "reserved", err: true, spoil: func(m *bmImage) { m.put32(m.ext+4, 1) }},
		{name: "directory of 0", err: true, spoil: func(m *bmImage) { m.put64(m.ext+8, 0) }},
		{name: "directory too large", err: true, spoil: func(m *bmImage) { m.put64(m.ext+8, maxBitmapDirectory+1) }},
		{name: "directory huge", err: true, spoil: func(m *bmImage) { m.put64(m.ext+8, 1<<63) }},
		{name: "directory longer", err: true, spoil: func(m *bmImage) { m.put64(m.ext+8, m.u64(m.ext+8)+8) }},
		{name: "directory shorter", err: true, spoil: func(m *bmImage) { m.put64(m.ext+8, m.u64(m.ext+8)-8) }},
		{name: "directory unaligned", err: true, spoil: func(m *bmImage) { m.put64(m.ext+16, uint64(m.dir)+8) }},
		{name: "directory at 0", err: true, spoil: func(m *bmImage) { m.put64(m.ext+16, 0) }},
		{name: "directory beyond the end", err: true, spoil: func(m *bmImage) { m.put64(m.ext+16, 1<<40) }},
		{name: "directory at the top", err: true, spoil: func(m *bmImage) { m.put64(m.ext+16, 1<<64-65536) }},
		{name: "extension of another length", err: true, spoil: func(m *bmImage) { m.put32(m.ext-4, 20) }},
		{name: "autoclear bit clear", err: true, qemu: true, spoil: func(m *bmImage) { m.put64(88, m.u64(88)&^AutoclearBitmaps) }},
		{name: "no extension", err: true, qemu: true, spoil: func(m *bmImage) { m.put32(m.ext-8, 0x12345678) }},
		{name: "same name twice", err: true, spoil: func(m *bmImage) { m.data[m.entries[1]+24] = 'a' }},
		{name: "name of 0", err: true, spoil: entry(func(m *bmImage, e int64) { m.put16(e+18, 0) })},
		{name: "name of 1024", err: true, spoil: entry(func(m *bmImage, e int64) { m.put16(e+18, 1024) })},
		{name: "name beyond the directory", err: true, spoil: entry(func(m *bmImage, e int64) { m.put16(e+18, 1000) })},
		{name: "extra data beyond the directory", err: true, spoil: entry(func(m *bmImage, e int64) { m.put32(e+20, 1<<32-1) })},
		{name: "tables in one another", err: true, qemu: true, spoil: func(m *bmImage) { m.put64(m.entries[0], uint64(m.table(1))) }},
		{name: "table in the directory", err: true, qemu: true, spoil: func(m *bmImage) { m.put64(m.entries[0], uint64(m.dir)) }},

		{name: "table at 0", first: true, spoil: entry(func(m *bmImage, e int64) { m.put64(e, 0) })},
		{name: "table unaligned", first: true, spoil: entry(func(m *bmImage, e int64) { m.put64(e, m.u64(e)+512) })},
		{name: "table beyond the end", first: true, qemu: true, spoil: entry(func(m *bmImage, e int64) { m.put64(e, 1<<40) })},
		{name: "table at the top", first: true, spoil: entry(func(m *bmImage, e int64) { m.put64(e, 1<<64-65536) })},
		{name: "table of 0", first: true, spoil: entry(func(m *bmImage, e int64) { m.put32(e+8, 0) })},
		{name: "table of one more", first: true, spoil: entry(func(m *bmImage, e int64) { m.put32(e+8, 2) })},
		{name: "table huge", first: true, spoil: entry(func(m *bmImage, e int64) { m.put32(e+8, 1<<32-1) })},
		{name: "table at its limit", first: true, spoil: entry(func(m *bmImage, e int64) { m.put32(e+8, maxBitmapTable) })},
		{name: "flag 2", qemu: false, spoil: entry(func(m *bmImage, e int64) { m.put32(e+12, m.u32(e+12)|bitmapExtraCompat) })},
		{name: "flag 3", first: true, spoil: entry(func(m *bmImage, e int64) { m.put32(e+12, m.u32(e+12)|8) })},
		{name: "flag 31", first: true, spoil: entry(func(m *bmImage, e int64) { m.put32(e+12, m.u32(e+12)|1<<31) })},
		{name: "type 0", first: true, spoil: entry(func(m *bmImage, e int64) { m.data[e+16] = 0 })},
		{name: "type 2", first: true, spoil: entry(func(m *bmImage, e int64) { m.data[e+16] = 2 })},
		{name: "granularity 2^8", first: true, spoil: entry(func(m *bmImage, e int64) { m.data[e+17] = 8 })},
		{name: "granularity 2^32", first: true, spoil: entry(func(m *bmImage, e int64) { m.data[e+17] = 32 })},
		{name: "granularity 2^255", first: true, spoil: entry(func(m *bmImage, e int64) { m.data[e+17] = 255 })},
		{name: "zero byte in the name", first: true, qemu: true, spoil: func(m *bmImage) {
			// The entry of a one-byte name is padded with 7 bytes: room for a longer name.
			m.put16(m.entries[0]+18, 3)
			copy(m.data[m.entries[0]+24:], "x\x00t")
		}},
		{name: "extra data", first: true, spoil: func(m *bmImage) {
			m.put32(m.entries[0]+20, 4)
			copy(m.data[m.entries[0]+24:], "....a")
		}},
		{name: "extra data that need not be known", spoil: func(m *bmImage) {
			m.put32(m.entries[0]+12, m.flags(0)|bitmapExtraCompat)
			m.put32(m.entries[0]+20, 4)
			copy(m.data[m.entries[0]+24:], "....a")
		}},

		{name: "entry with bit 0 and an offset", first: true, spoil: func(m *bmImage) { m.data[m.table(0)+7] |= 1 }},
		{name: "entry with bit 1", first: true, spoil: firstTableEntry(2)},
		{name: "entry with bit 8", first: true, spoil: func(m *bmImage) { m.data[m.table(0)+6] |= 1 }},
		{name: "entry with bit 56", first: true, spoil: func(m *bmImage) { m.data[m.table(0)] |= 1 }},
		{name: "entry with bit 63", first: true, spoil: func(m *bmImage) { m.data[m.table(0)] |= 0x80 }},
		{name: "entry unaligned", first: true, spoil: firstTableEntry(65536 + 512)},
		{name: "entry beyond the end", first: true, qemu: true, spoil: firstTableEntry(1 << 40)},
		{name: "entry at the top", first: true, qemu: true, spoil: firstTableEntry(tableEntryOffset &^ 0xffff)},
	}
}

// Each way to spoil bitmap metadata is seen, none makes the guest's data unreadable, and no bitmap
// is added to an image that QEMU refuses.
func TestBitmapHostile(t *testing.T) {
	t.Parallel()
	good := bmLoad(t, bmTwo(t))
	dir := t.TempDir()
	for _, h := range hostileRecipes() {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			m := good.clone()
			h.spoil(m)
			if bytes.Equal(m.data, good.data) {
				t.Fatal("the recipe changes nothing")
			}
			path := m.save(t, dir)
			out, err := bmTry("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 7 128k 64k", path)
			if (err == nil) != h.qemu {
				t.Fatalf("QEMU says %v: %s", err, out)
			}
			c := bmOpen(t, path)
			l := c.Layers[0]
			data := make([]byte, 65536)
			if err := c.ReadAt(t.Context(), data, 131072); err != nil || !bytes.Equal(data, bytes.Repeat([]byte{7}, len(data))) {
				t.Fatalf("the guest's data: %v", err)
			}
			if (l.BitmapsErr != nil) != h.err {
				t.Fatalf("BitmapsErr: %v", l.BitmapsErr)
			}
			if h.err && len(l.Bitmaps) != 0 {
				t.Fatalf("%d bitmaps in spite of %v", len(l.Bitmaps), l.BitmapsErr)
			}
			if !h.err {
				if len(l.Bitmaps) != 2 || l.Bitmap("b") == nil || (l.Bitmaps[0].Problem != nil) != h.first {
					t.Fatalf("bitmaps %+v", l.Bitmaps)
				}
				bmWant(t, l.Bitmap("b"), []bitmapstore.Run{{Start: 512 << 10, End: 516 << 10}})
				var damage *DamageError
				if _, err := l.Bitmaps[0].DirtyBytes(); (err != nil) != h.first || h.first && !errors.As(err, &damage) {
					t.Fatalf("bitmap a: %v", err)
				}
			}
			dead := h.name == "autoclear bit clear"
			if err := l.CheckAddBitmap(); (err == nil) != dead {
				t.Fatalf("CheckAddBitmap: %v", err)
			}
			if errors.Is(l.BitmapsErr, ErrBitmapsDead) != dead {
				t.Fatalf("BitmapsErr: %v", l.BitmapsErr)
			}
		})
	}
}

// A file may end inside the cluster of the directory, but not inside the directory, a table or a
// cluster of bits.
func TestBitmapCutShort(t *testing.T) {
	t.Parallel()
	m := bmLoad(t, bmTwo(t))
	dir := t.TempDir()
	size := int64(len(m.data))
	good := 0
	for cut := size; cut > m.cluster*5 && cut > size-8*m.cluster; cut -= 8192 {
		p := m.clone()
		p.data = p.data[:cut]
		l, err := bmTopLayer(t, p.save(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		end := int64(m.u64(m.ext+8)) + m.dir
		if (l.BitmapsErr == nil) != (cut >= end) {
			t.Fatalf("%d of %d bytes, directory ends at %d: %v", cut, size, end, l.BitmapsErr)
		}
		for i, b := range l.Bitmaps {
			whole := m.table(i)+8 <= cut && int64(m.u64(m.table(i)))+m.cluster <= cut
			if (b.Problem == nil) != whole {
				t.Fatalf("%d of %d bytes, bitmap %q: %v", cut, size, b.Name, b.Problem)
			}
			if whole {
				good++
			}
		}
	}
	if good == 0 {
		t.Fatal("no bitmap was ever whole")
	}
}

// bmTopLayer opens only what a look at bitmaps needs: the rest of the image may be cut off.
func bmTopLayer(t testing.TB, path string) (*Layer, error) {
	var layer *Layer
	err := WithTopLayer(path, func(l *Layer) error {
		layer = l
		return nil
	})
	return layer, err
}

// What is cut off while the image is open is damage, not a clean bitmap.
func TestBitmapCutWhileOpen(t *testing.T) {
	t.Parallel()
	path := bmTwo(t)
	m := bmLoad(t, path)
	b := bmFind(t, bmOpen(t, path), "a")
	if err := os.Truncate(path, int64(m.u64(m.table(0)))); err != nil {
		t.Fatal(err)
	}
	var damage *DamageError
	if _, err := b.DirtyBytes(); !errors.As(err, &damage) {
		t.Fatalf("got %v", err)
	}
}

// An image that was made one of version 2 keeps the extension, which is dead.
func TestBitmapsOfVersion2(t *testing.T) {
	t.Parallel()
	path := bmTwo(t)
	testkit.Tool(t, "qemu-img", "amend", "-f", "qcow2", "-o", "compat=0.10", path)
	l := bmOpen(t, path).Layers[0]
	if !errors.Is(l.BitmapsErr, ErrBitmapsDead) || len(l.Bitmaps) != 0 {
		t.Fatalf("%v, %d bitmaps", l.BitmapsErr, len(l.Bitmaps))
	}
	if err := l.CheckAddBitmap(); err == nil {
		t.Fatal("a bitmap could be added to an image of version 2")
	}
}

func TestBitmapGranularityIsQEMUs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		cluster int64
		size    int64
	}{{512, 1 << 20}, {4096, 1 << 20}, {32768, 1 << 20}, {65536, 1 << 30}, {2 << 20, 1 << 30}, {2 << 20, 256 << 40}} {
		path := filepath.Join(t.TempDir(), "d.qcow2")
		bmCreate(t, path, fmt.Sprintf("cluster_size=%d", c.cluster), c.size)
		testkit.Tool(t, "qemu-img", "bitmap", "--add", path, "a")
		chain := bmOpen(t, path)
		if got, want := chain.Layers[0].BitmapGranularity(), bmFind(t, chain, "a").Granularity; got != want {
			t.Errorf("cluster %d, size %d: %d, QEMU takes %d", c.cluster, c.size, got, want)
		}
	}
	big := Layer{Size: 1 << 50}
	if got := big.BitmapGranularity(); got != 1<<18 {
		t.Errorf("1 PiB: %d", got)
	}
}
