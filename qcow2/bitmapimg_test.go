// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/internal/testkit"
)

// Helpers of the tests of bitmaps, locks and qemu-img.

func bmTry(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

// bmCreate makes an image with the options (of -o).
func bmCreate(t testing.TB, path, options string, size int64) {
	t.Helper()
	args := []string{"create", "-q", "-f", "qcow2"}
	if options != "" {
		args = append(args, "-o", options)
	}
	testkit.Tool(t, "qemu-img", append(args, path, fmt.Sprint(size))...)
}

// bmAdd adds a bitmap with qemu-img itself.
func bmAdd(t testing.TB, path, name string, granularity int64) {
	t.Helper()
	testkit.Tool(t, "qemu-img", "bitmap", "--add", "-g", fmt.Sprint(granularity), "-f", "qcow2", path, name)
}

// bmIO runs qemu-io commands.
func bmIO(t testing.TB, path string, commands ...string) {
	t.Helper()
	args := []string{"-f", "qcow2"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	// qemu-io ends with 0 even when a command fails.
	if out := testkit.Tool(t, "qemu-io", append(args, path)...); strings.Contains(out, "failed") || strings.Contains(out, "invalid") {
		t.Fatalf("qemu-io %q: %s", commands, out)
	}
}

// bmOracle asks QEMU for the dirty runs of a bitmap.
func bmOracle(t testing.TB, path, name string) []bitmapstore.Run {
	t.Helper()
	out := testkit.Tool(t, "nbdinfo", "--json", "--map=qemu:dirty-bitmap:"+name, "--", "[", "qemu-nbd", "-r", "-f", "qcow2", "-B", name, path, "]")
	var extents []struct{ Offset, Length, Type int64 }
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		t.Fatalf("nbdinfo: %v\n%s", err, out)
	}
	var runs []bitmapstore.Run
	for _, e := range extents {
		if e.Type == 1 {
			runs = append(runs, bitmapstore.Run{Start: e.Offset, End: e.Offset + e.Length})
		}
	}
	runs, err := bitmapstore.Of(runs...).Collect()
	if err != nil {
		t.Fatal(err)
	}
	return runs
}

// bmOpen opens a qcow2 image for the length of the test.
func bmOpen(t testing.TB, path string) *Image {
	t.Helper()
	c, err := Open(path, Qcow2, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// bmFind gives a bitmap of the active layer.
func bmFind(t testing.TB, c *Image, name string) *Bitmap {
	t.Helper()
	if err := c.Layers[0].BitmapsErr; err != nil {
		t.Fatal(err)
	}
	b := c.Layers[0].Bitmap(name)
	if b == nil {
		t.Fatalf("no bitmap %q", name)
	}
	return b
}

// bmWant compares a bitmap with runs, twice: it can be iterated again.
func bmWant(t testing.TB, b *Bitmap, want []bitmapstore.Run) {
	t.Helper()
	if b.Problem != nil {
		t.Fatalf("bitmap %q: %v", b.Name, b.Problem)
	}
	var sum int64
	for _, r := range want {
		sum += r.Len()
	}
	for range 2 {
		got, err := b.Runs().Collect()
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("bitmap %q: got %v, want %v", b.Name, got, want)
		}
	}
	if n, err := b.DirtyBytes(); err != nil || n != sum {
		t.Fatalf("bitmap %q: %d dirty bytes, %v, want %d", b.Name, n, err, sum)
	}
}

// bmRandomWrites are qemu-io commands that write n times somewhere into a disk.
func bmRandomWrites(rng *rand.Rand, size int64, n int) []string {
	commands := make([]string, n)
	for i := range commands {
		length := min(1+rng.Int64N(4096)*rng.Int64N(60), size)
		offset := rng.Int64N(size - length + 1)
		if rng.IntN(5) == 0 {
			offset = size - length // the last granule may be a part of one
		}
		switch rng.IntN(4) {
		case 0:
			commands[i] = fmt.Sprintf("write -z %d %d", offset, length)
		case 1:
			offset, length = offset&^511, (length+511)&^511
			commands[i] = fmt.Sprintf("discard %d %d", offset, min(length, size-offset))
		default:
			commands[i] = fmt.Sprintf("write -P %d %d %d", 1+rng.IntN(255), offset, length)
		}
	}
	return commands
}

// bmImage is the file of an image, to be patched, and where its bitmap metadata lies.
type bmImage struct {
	data    []byte
	cluster int64
	ext     int64 // of the data of the bitmaps extension
	dir     int64
	entries []int64 // offsets of directory entries
}

func bmLoad(t testing.TB, path string) *bmImage {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	m := &bmImage{data: data, cluster: 1 << be.Uint32(data[20:])}
	for pos := int64(be.Uint32(data[100:])); ; {
		kind, n := be.Uint32(data[pos:]), int64(be.Uint32(data[pos+4:]))
		if kind == bitmapsExtension {
			m.ext = pos + 8
			break
		}
		if kind == 0 {
			t.Fatalf("%s has no bitmaps extension", path)
		}
		pos += 8 + (n+7)&^7
	}
	m.dir = int64(be.Uint64(data[m.ext+16:]))
	pos := m.dir
	for range be.Uint32(data[m.ext:]) {
		m.entries = append(m.entries, pos)
		pos += (24 + int64(be.Uint16(data[pos+18:])) + int64(be.Uint32(data[pos+20:])) + 7) &^ 7
	}
	return m
}

func (m *bmImage) u64(offset int64) uint64      { return binary.BigEndian.Uint64(m.data[offset:]) }
func (m *bmImage) u32(offset int64) uint32      { return binary.BigEndian.Uint32(m.data[offset:]) }
func (m *bmImage) put64(offset int64, v uint64) { binary.BigEndian.PutUint64(m.data[offset:], v) }
func (m *bmImage) put32(offset int64, v uint32) { binary.BigEndian.PutUint32(m.data[offset:], v) }
func (m *bmImage) put16(offset int64, v uint16) { binary.BigEndian.PutUint16(m.data[offset:], v) }
func (m *bmImage) table(i int) int64            { return int64(m.u64(m.entries[i])) }
func (m *bmImage) flags(i int) uint32           { return m.u32(m.entries[i] + 12) }
func (m *bmImage) save(t testing.TB, dir string) string {
	t.Helper()
	f, err := os.CreateTemp(dir, "patched-*.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(m.data); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func (m *bmImage) clone() *bmImage {
	c := *m
	c.data = slices.Clone(m.data)
	return &c
}

// bmTwo makes an image of 1 MiB with the bitmaps "a" (64 KiB, some dirty, one run) and "b" (4 KiB,
// all clean but the last written), and known data at 128 KiB.
func bmTwo(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "two.qcow2")
	bmCreate(t, path, "", 1<<20)
	bmAdd(t, path, "a", 65536)
	bmIO(t, path, "write -P 7 128k 64k")
	bmAdd(t, path, "b", 4096)
	bmIO(t, path, "write -P 9 512k 4k")
	return path
}
