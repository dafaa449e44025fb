// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/internal/testkit"
)

// qemuIO runs qemu-io commands, one after the other, on an image. A process
// that writes compressed clusters does nothing else: qemu-io 7.2 gives the room
// left beside a compressed cluster away again after that was discarded and
// freed, and so damages the image.
func qemuIO(t rapid.TB, format, path string, commands ...string) {
	t.Helper()
	compressed := func(i int) bool { return strings.HasPrefix(commands[i], "write -c") }
	for len(commands) > 0 {
		n := 1
		for n < len(commands) && compressed(n) == compressed(0) {
			n++
		}
		qemuIORun(t, format, path, commands[:n])
		commands = commands[n:]
	}
}

func qemuIORun(t rapid.TB, format, path string, commands []string) {
	t.Helper()
	args := []string{"-f", format}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err := exec.Command("qemu-io", append(args, path)...).CombinedOutput()
	refused := 0
	for line := range strings.Lines(string(out)) {
		switch {
		case strings.HasPrefix(line, "write failed: Input/output error"):
			refused++ // a compressed write over a cluster that has a place
		case strings.Contains(line, "rror"), strings.Contains(line, "an't"):
			t.Fatalf("qemu-io %q: %s", commands, out)
		}
	}
	if err != nil && refused == 0 {
		t.Fatalf("qemu-io %q: %v\n%s", commands, err, out)
	}
}

// sourceFile writes bytes that compress, but nowhere repeat at a cluster's
// distance, for qemu-io's "write -s".
func sourceFile(t rapid.TB, dir string) string {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 3<<20)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rnd.Uint64()&0x0707070707070707|0x6060606060606060)
	}
	path := filepath.Join(dir, "source")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// life returns n random qemu-io commands on a disk: writes of patterns and of
// source, zeros with and without unmapping, discards, compressed clusters.
func life(rnd *rand.Rand, n int, size, cluster int64, source string, compressed bool) []string {
	var commands []string
	for range n {
		off := rnd.Int64N(size/512) * 512
		most := min(size-off, 5*cluster+4096)
		length := (rnd.Int64N(most/512) + 1) * 512
		switch rnd.IntN(8) {
		case 0, 1, 2:
			commands = append(commands, fmt.Sprintf("write -s %s %d %d", source, off, length))
		case 3:
			commands = append(commands, fmt.Sprintf("write -P %d %d %d", 1+rnd.IntN(255), off, length))
		case 4:
			commands = append(commands, fmt.Sprintf("write -z %d %d", off, length))
		case 5:
			commands = append(commands, fmt.Sprintf("write -z -u %d %d", off, length))
		case 6:
			commands = append(commands, fmt.Sprintf("discard %d %d", off, length))
		case 7:
			if !compressed {
				continue
			}
			for k := range int64(4) {
				at := off/cluster*cluster + k*cluster
				if at+cluster <= size {
					commands = append(commands, fmt.Sprintf("write -c -s %s %d %d", source, at, cluster))
				}
			}
		}
	}
	return commands
}

// mapEntry is what qemu-img map tells of a range.
type mapEntry struct {
	Start, Length int64
	Depth         int
	Present       bool
	Zero, Data    bool
}

// oracle holds what QEMU says of an image.
type oracle struct {
	path    string
	content []byte
	entries []mapEntry
}

func newOracle(t rapid.TB, path, format string) *oracle {
	t.Helper()
	raw := path + ".oracle"
	testkit.Tool(t, "qemu-img", "convert", "-f", format, "-O", "raw", path, raw)
	content, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(raw)
	o := &oracle{path: path, content: content}
	out := testkit.Tool(t, "qemu-img", "map", "--output=json", "-f", format, path)
	if err := json.Unmarshal([]byte(out), &o.entries); err != nil {
		t.Fatal(err)
	}
	return o
}

// check compares everything that the chain says with the oracle.
func (o *oracle) check(t rapid.TB, c *Image, rnd *rand.Rand) {
	t.Helper()
	if c.Size() != int64(len(o.content)) {
		t.Fatalf("%s: size is %d, QEMU says %d", o.path, c.Size(), len(o.content))
	}
	if rnd.IntN(2) == 0 { // what a survey kept says the same as the tables
		for _, l := range c.Layers {
			l.survey(context.Background())
		}
	}
	o.checkReads(t, c, rnd)
	checkDataIn(t, c, rnd)
	o.checkExtents(t, c, 0, c.Size())
	for range 20 {
		if c.Size() > 0 {
			a, b := rnd.Int64N(c.Size()+1), rnd.Int64N(c.Size()+1)
			o.checkExtents(t, c, min(a, b), max(a, b))
		}
	}
	o.checkMap(t, c)
	checkMapped(t, c)
}

// checkMapped checks that what is mapped and what is not are the whole disk, that all data is
// mapped, and that nothing else holds any.
func checkMapped(t rapid.TB, c *Image) {
	t.Helper()
	ctx := context.Background()
	for what, set := range map[string]bitmapstore.Runs{
		"is neither mapped nor unmapped": bitmapstore.Subtract(bitmapstore.Between(0, c.Size()), bitmapstore.Union(c.Mapped(ctx), c.Unmapped(ctx))),
		"is both mapped and unmapped":    bitmapstore.Intersect(c.Mapped(ctx), c.Unmapped(ctx)),
		"is data and unmapped":           bitmapstore.Intersect(c.Data(ctx), c.Unmapped(ctx)),
	} {
		if runs, err := set.Collect(); err != nil || len(runs) > 0 {
			t.Fatalf("%v, %v %s", runs, err, what)
		}
	}
}

// checkDataIn compares the data in a set with the extents of its runs.
func checkDataIn(t rapid.TB, c *Image, rnd *rand.Rand) {
	t.Helper()
	var set []bitmapstore.Run
	for range 1 + rnd.IntN(8) {
		start := rnd.Int64N(c.Size() + 1)
		set = append(set, bitmapstore.Run{Start: start, End: start + rnd.Int64N(c.Size()/4+2)})
	}
	runs := bitmapstore.Of(set...)
	got, err := c.DataIn(context.Background(), runs).Collect()
	if err != nil {
		t.Fatal(err)
	}
	var data []bitmapstore.Run
	for run := range runs.Clip(c.Size()) {
		for e := range c.Extents(run.Start, run.End) {
			if e.Kind == Data || e.Kind == Compressed {
				data = append(data, bitmapstore.Run{Start: e.Offset, End: e.Offset + e.Length})
			}
		}
	}
	want, err := bitmapstore.Of(data...).Collect()
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("data in %v: %v, want %v, %v", set, got, want, err)
	}
}

func (o *oracle) checkReads(t rapid.TB, c *Image, rnd *rand.Rand) {
	t.Helper()
	got := make([]byte, len(o.content))
	for off := 0; off < len(got); off += 1 << 20 {
		part := got[off:min(len(got), off+1<<20)]
		if err := c.ReadAt(context.Background(), part, int64(off)); err != nil {
			t.Fatalf("%s: read at %d: %v", o.path, off, err)
		}
	}
	o.same(t, got, 0)
	for range 50 {
		off := rnd.IntN(len(got) + 1)
		n := rnd.IntN(min(len(got)-off, 300000) + 1)
		if err := c.ReadAt(context.Background(), got[:n], int64(off)); err != nil {
			t.Fatalf("%s: read %d at %d: %v", o.path, n, off, err)
		}
		o.same(t, got[:n], off)
	}
	beyond := make([]byte, 700)
	if err := c.ReadAt(context.Background(), beyond, max(0, c.Size()-100)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("%s: read over the end: %v", o.path, err)
	}
}

func (o *oracle) same(t rapid.TB, got []byte, off int) {
	t.Helper()
	want := o.content[off : off+len(got)]
	if bytes.Equal(got, want) {
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: byte %d is %#x, QEMU reads %#x", o.path, off+i, got[i], want[i])
		}
	}
}

// checkExtents checks that extents cover a range, differ from their
// neighbours, and that those said to be zero are.
func (o *oracle) checkExtents(t rapid.TB, c *Image, start, end int64) {
	t.Helper()
	pos := start
	last := Extent{Layer: -2}
	for e, err := range c.Extents(start, end) {
		if err != nil {
			t.Fatalf("%s: extents: %v", o.path, err)
		}
		if e.Offset != pos || e.Length <= 0 || pos+e.Length > end {
			t.Fatalf("%s: extent %+v does not follow %d in [%d, %d)", o.path, e, pos, start, end)
		}
		if e.Kind == last.Kind && e.Layer == last.Layer {
			t.Fatalf("%s: extents %+v and %+v should be one", o.path, last, e)
		}
		if (e.Kind == Hole) != (e.Layer == -1) {
			t.Fatalf("%s: extent %+v has the wrong layer", o.path, e)
		}
		if e.Kind == Hole || e.Kind == Zero {
			if !allZero(o.content[pos : pos+e.Length]) {
				t.Fatalf("%s: extent %+v holds data", o.path, e)
			}
		}
		last = e
		pos += e.Length
	}
	if pos != end {
		t.Fatalf("%s: extents end at %d, not %d", o.path, pos, end)
	}
}

func allZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// checkMap compares extents with qemu-img map.
func (o *oracle) checkMap(t rapid.TB, c *Image) {
	t.Helper()
	i := 0
	for e, err := range c.Extents(0, c.Size()) {
		if err != nil {
			t.Fatal(err)
		}
		for pos := e.Offset; pos < e.Offset+e.Length; {
			for i < len(o.entries) && o.entries[i].Start+o.entries[i].Length <= pos {
				i++
			}
			if i == len(o.entries) {
				t.Fatalf("%s: qemu-img map ends before %d", o.path, pos)
			}
			if m := o.entries[i]; !o.agrees(c, e, m, pos) {
				t.Fatalf("%s: at %d: extent %+v, qemu-img map %+v", o.path, pos, e, m)
			}
			pos = o.entries[i].Start + o.entries[i].Length
		}
	}
}

func (o *oracle) agrees(c *Image, e Extent, m mapEntry, pos int64) bool {
	switch e.Kind {
	case Hole:
		// What QEMU makes up beyond the end of a short layer, it takes for
		// allocated there.
		return !m.Present && m.Zero || m.Zero && !m.Data && pos >= c.Layers[m.Depth].Size
	case Zero:
		if f := c.Layers[e.Layer]; f.data != f.file {
			return m.Present && m.Depth == e.Layer // QEMU takes a raw data file as it is
		}
		// What was allocated and never written is a hole, until it has been read through the
		// page cache; QEMU does not look.
		return m.Present && m.Depth == e.Layer && (m.Zero || allZero(o.content[pos:min(e.Offset+e.Length, m.Start+m.Length)]))
	default: // QEMU tells shorter holes in files apart than we do
		return m.Present && m.Depth == e.Layer
	}
}

// mustOpen opens a chain that the test closes.
func mustOpen(t testing.TB, path string, format Format) *Image {
	t.Helper()
	c, err := Open(path, format, OpenOptions{})
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

// diskSize is a virtual size that goes with a cluster size: several L2 tables
// for small clusters, and an end inside a cluster.
func diskSize(cluster int64) int64 {
	switch {
	case cluster <= 512:
		return 200<<10 + 512
	case cluster <= 4<<10:
		return 5<<20 + 1536
	case cluster <= 64<<10:
		return 12<<20 + 33*512
	}
	return 21<<20 + 7*512
}

type variant struct {
	name       string
	options    string // of qemu-img create, beyond cluster size
	compressed bool   // the format allows compressed clusters
	v2         bool   // exists in version 2, too
	minCluster int64
	prepare    func(t *testing.T, path string, size int64) []string // arguments of create that name other files
	after      func(t *testing.T, path string)
}

func variants(source string, rnd func() *rand.Rand) []variant {
	base := func(format, options string, change int64) func(t *testing.T, path string, size int64) []string {
		return func(t *testing.T, path string, size int64) []string {
			name := path + ".base." + format
			size = max(4096, (size+change)&^511)
			args := []string{"create", "-q", "-f", format}
			if options != "" {
				args = append(args, "-o", options)
			}
			testkit.Tool(t, "qemu-img", append(args, name, fmt.Sprint(size))...)
			qemuIO(t, format, name, life(rnd(), 12, size, 4096, source, false)...)
			return []string{"-b", name, "-F", format}
		}
	}
	snapshot := func(t *testing.T, path string) {
		testkit.Tool(t, "qemu-img", "snapshot", "-c", "before", path)
		size := createQemuInfo(t, path).VirtualSize
		qemuIO(t, "qcow2", path, life(rnd(), 6, size, 65536, source, false)...)
	}
	return []variant{
		{name: "plain", compressed: true, v2: true},
		{name: "zstd", options: "compression_type=zstd", compressed: true},
		{name: "extended", options: "extended_l2=on", compressed: true, minCluster: 16 << 10},
		{name: "extended over base", options: "extended_l2=on", minCluster: 16 << 10, prepare: base("qcow2", "cluster_size=512", 0)},
		{name: "lazy", options: "lazy_refcounts=on", compressed: true},
		{name: "over raw", compressed: true, v2: true, prepare: base("raw", "", 0)},
		{name: "over larger raw", compressed: true, prepare: base("raw", "", 100<<10)},
		{name: "over small clusters", compressed: true, v2: true, prepare: base("qcow2", "cluster_size=4096", 0)},
		{name: "over large clusters", prepare: base("qcow2", "cluster_size=2M", 0)},
		{name: "over shorter", compressed: true, v2: true, prepare: base("qcow2", "", -70<<10)},
		{name: "over longer", compressed: true, prepare: base("qcow2", "", 3<<20)},
		{name: "over extended", prepare: base("qcow2", "extended_l2=on", 0)},
		{name: "metadata", options: "preallocation=metadata", compressed: false},
		{name: "falloc", options: "preallocation=falloc", v2: true},
		{name: "full", options: "preallocation=full"},
		{name: "snapshots", compressed: true, v2: true, after: snapshot},
		{name: "data file", prepare: func(t *testing.T, path string, size int64) []string {
			return []string{"-o", "data_file=" + path + ".data"}
		}},
		{name: "data file raw", prepare: func(t *testing.T, path string, size int64) []string {
			return []string{"-o", "data_file_raw=on,data_file=" + path + ".data"}
		}},
	}
}

func TestReadAsQEMU(t *testing.T) {
	t.Parallel()
	source := sourceFile(t, t.TempDir())
	seed := uint64(0)
	for _, cluster := range []int64{512, 4 << 10, 64 << 10, 2 << 20} {
		for _, version := range []int{2, 3} {
			seed++
			seed := seed
			rnd := func() *rand.Rand { return rand.New(rand.NewPCG(seed, 7)) }
			for _, v := range variants(source, rnd) {
				if cluster < v.minCluster || version == 2 && !v.v2 {
					continue
				}
				t.Run(fmt.Sprintf("%s-%d-v%d", v.name, cluster, version), func(t *testing.T) {
					t.Parallel()
					size := diskSize(cluster)
					path := filepath.Join(t.TempDir(), "image.qcow2")
					compat := map[int]string{2: "compat=0.10", 3: "compat=1.1"}[version]
					options := fmt.Sprintf("%s,cluster_size=%d", compat, cluster)
					if v.options != "" {
						options += "," + v.options
					}
					args := []string{"create", "-q", "-f", "qcow2", "-o", options}
					if v.prepare != nil {
						args = append(args, v.prepare(t, path, size)...)
					}
					testkit.Tool(t, "qemu-img", append(args, path, fmt.Sprint(size))...)
					qemuIO(t, "qcow2", path, life(rnd(), 25, size, cluster, source, v.compressed)...)
					if v.after != nil {
						v.after(t, path)
					}
					c := mustOpen(t, path, Qcow2)
					if c.Layers[0].Header.Version != version || c.Layers[0].Header.ClusterSize() != cluster {
						t.Fatalf("header: %+v", c.Layers[0].Header)
					}
					if r, err := c.Layers[0].CheckRefcounts(t.Context()); err != nil || r.Odd != "" || r.Leaks != 0 {
						t.Errorf("refcounts: %+v, %v", r, err)
					}
					newOracle(t, path, "qcow2").check(t, c, rnd())
				})
			}
		}
	}
}

// TestReadWhollyCompressed covers long runs of compressed clusters.
func TestReadWhollyCompressed(t *testing.T) {
	t.Parallel()
	source := sourceFile(t, t.TempDir())
	for _, cluster := range []int64{512, 16 << 10, 64 << 10, 2 << 20} {
		for _, compression := range []string{"zlib", "zstd"} {
			t.Run(fmt.Sprint(cluster, compression), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				raw, path := filepath.Join(dir, "raw"), filepath.Join(dir, "image.qcow2")
				size := diskSize(cluster)
				testkit.Tool(t, "qemu-img", "create", "-q", "-f", "raw", raw, fmt.Sprint(size))
				rnd := rand.New(rand.NewPCG(uint64(cluster), 3))
				qemuIO(t, "raw", raw, fmt.Sprintf("write -s %s 0 %d", source, size/2&^511))
				qemuIO(t, "raw", raw, life(rnd, 20, size, 64<<10, source, false)...)
				testkit.Tool(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2",
					"-o", fmt.Sprintf("cluster_size=%d,compression_type=%s", cluster, compression), raw, path)
				c := mustOpen(t, path, Qcow2)
				newOracle(t, path, "qcow2").check(t, c, rnd)
				var compressed int64
				for e, err := range c.Extents(0, c.Size()) {
					if err != nil {
						t.Fatal(err)
					}
					if e.Kind == Compressed {
						compressed += e.Length
					}
				}
				if compressed < size/4 {
					t.Fatalf("only %d bytes are compressed", compressed)
				}
			})
		}
	}
}

func TestReadRaw(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{0, 1, 511, 512, 1000, 1<<20 + 77, 3 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "disk.raw")
			content := make([]byte, size)
			rnd := rand.New(rand.NewPCG(uint64(size), 5))
			for i := range content {
				content[i] = byte(rnd.Uint32())
			}
			// A file with a hole in the middle.
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			clear(content[size/3 : size*2/3])
			f.WriteAt(content[:size/3], 0)
			f.WriteAt(content[size*2/3:], size*2/3)
			f.Truncate(size)
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			c := mustOpen(t, path, Raw)
			newOracle(t, path, "raw").check(t, c, rnd)
		})
	}
}

// TestReadLongChain reads through a chain of differing cluster sizes and
// versions.
func TestReadLongChain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source := sourceFile(t, dir)
	rnd := rand.New(rand.NewPCG(9, 9))
	below := filepath.Join(dir, "0.raw")
	format := "raw"
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "raw", below, "3M")
	qemuIO(t, "raw", below, life(rnd, 10, 3<<20, 4096, source, false)...)
	clusters := []int64{512, 65536, 4096, 2 << 20, 1024, 32768}
	for i, cluster := range clusters {
		path := filepath.Join(dir, fmt.Sprint(i+1, ".qcow2"))
		size := int64(2<<20 + rnd.IntN(2<<20))
		testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", fmt.Sprint("cluster_size=", cluster),
			"-b", filepath.Base(below), "-F", format, path, fmt.Sprint(size))
		qemuIO(t, "qcow2", path, life(rnd, 8, size&^511, cluster, source, true)...)
		below, format = path, "qcow2"
	}
	c := mustOpen(t, below, Qcow2)
	if len(c.Layers) != len(clusters)+1 {
		t.Fatalf("%d layers", len(c.Layers))
	}
	newOracle(t, below, "qcow2").check(t, c, rnd)
}

// TestResized covers L1 tables that are longer than the disk needs, and disks
// that were made larger over a longer backing file.
func TestResized(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source := sourceFile(t, dir)
	rnd := rand.New(rand.NewPCG(11, 9))
	base, path := filepath.Join(dir, "base"), filepath.Join(dir, "image")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "raw", base, "2M")
	qemuIO(t, "raw", base, fmt.Sprintf("write -s %s 0 2M", source))
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "-b", base, "-F", "raw", path, "1M")
	qemuIO(t, "qcow2", path, life(rnd, 10, 1<<20, 512, source, true)...)
	for _, size := range []string{"300032", "1M", "1500160"} {
		testkit.Tool(t, "qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", path, size)
		func() {
			c, err := Open(path, Qcow2, OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			newOracle(t, path, "qcow2").check(t, c, rnd)
		}()
	}
}
