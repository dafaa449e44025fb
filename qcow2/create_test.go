// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// createCheckClean asserts that qemu-img finds neither errors nor leaks.
func createCheckClean(t rapid.TB, path string) {
	t.Helper()
	out := testkit.Tool(t, "qemu-img", "check", "-f", "qcow2", path)
	if !strings.Contains(out, "No errors were found on the image.") {
		t.Fatalf("qemu-img check: %s", out)
	}
}

type createInfo struct {
	VirtualSize int64 `json:"virtual-size"`
	ClusterSize int64 `json:"cluster-size"`
	Specific    struct {
		Data struct {
			Bitmaps []struct {
				Name        string
				Granularity int64
				Flags       []string
			}
		}
	} `json:"format-specific"`
}

func createQemuInfo(t rapid.TB, path string) createInfo {
	t.Helper()
	var info createInfo
	out := testkit.Tool(t, "qemu-img", "info", "--output=json", "-f", "qcow2", path)
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return info
}

// createImage makes an image whose ranges hold the bytes of model.
func createImage(t rapid.TB, path string, o CreateOptions, model []byte, ranges [][2]int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	c, err := NewCreator(f, o)
	if err != nil {
		t.Fatal(err)
	}
	var todo []HostRun
	for _, r := range ranges {
		runs, err := c.Allocate(r[0], r[1])
		if err != nil {
			t.Fatal(err)
		}
		pos := r[0]
		for _, run := range runs {
			if run.Guest != pos || run.Length <= 0 {
				t.Fatalf("range %v is given as %v", r, runs)
			}
			pos += run.Length
		}
		if pos != r[1] {
			t.Fatalf("range %v is given as %v", r, runs)
		}
		todo = append(todo, runs...)
	}
	// Guest data may be written in any order.
	rand.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
	for _, run := range todo {
		if _, err := f.WriteAt(model[run.Guest:run.Guest+run.Length], run.Host); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Finish(); err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if st.Size()%o.ClusterSize != 0 || st.Size() != c.FileSize() {
		t.Fatalf("the file has %d bytes, the creator says %d", st.Size(), c.FileSize())
	}
}

func TestCreatorMatchesModel(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		cs := int64(512) << rapid.IntRange(0, 12).Draw(t, "cluster bits")
		// Enough for several L2 tables where they are small.
		size := 512 * rapid.Int64Range(0, min(4*cs*cs/8, 8<<20)/512+3).Draw(t, "sectors")
		o := CreateOptions{Size: size, ClusterSize: cs}
		if size > 0 && rapid.Bool().Draw(t, "with bitmap") {
			o.Bitmap = &CreateBitmap{
				Name:        strings.Repeat("n", rapid.SampledFrom([]int{1, 7, 8, 600, 1023}).Draw(t, "name length")),
				Granularity: int64(512) << rapid.IntRange(0, 22).Draw(t, "granularity bits"),
			}
		}
		model := make([]byte, size)
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		var ranges [][2]int64
		for pos := int64(0); pos < size; {
			start := pos + rng.Int64N(3*cs)*rng.Int64N(2)
			end := min(size, start+1+rng.Int64N(3*cs))
			if start >= end {
				break
			}
			ranges = append(ranges, [2]int64{start, end})
			for i := start; i < end; i++ {
				model[i] = byte(rng.Uint32())
			}
			pos = end
		}
		raw, img := filepath.Join(dir, "model.raw"), filepath.Join(dir, "made.qcow2")
		if err := os.WriteFile(raw, model, 0o600); err != nil {
			t.Fatal(err)
		}
		createImage(t, img, o, model, ranges)
		createCheckClean(t, img)
		testkit.Tool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", img, raw)
		info := createQemuInfo(t, img)
		if info.VirtualSize != size || info.ClusterSize != cs {
			t.Fatalf("info: %+v", info)
		}
		bitmaps := info.Specific.Data.Bitmaps
		if o.Bitmap == nil {
			if len(bitmaps) != 0 {
				t.Fatalf("unexpected bitmaps %+v", bitmaps)
			}
			return
		}
		if len(bitmaps) != 1 || bitmaps[0].Name != o.Bitmap.Name || bitmaps[0].Granularity != o.Bitmap.Granularity ||
			fmt.Sprint(bitmaps[0].Flags) != "[auto]" {
			t.Fatalf("bitmaps %+v, want %+v", bitmaps, *o.Bitmap)
		}
	})
}

// createDirty returns the dirty ranges of a bitmap as qemu-nbd serves them.
func createDirty(t *testing.T, path, bitmap string) [][2]int64 {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	sock := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	defer func() { _ = l.Close() }()
	listening, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listening.Close() }()
	// It gets a socket that listens already (as systemd gives it), and ends
	// with its first client: there is nothing to wait for but its end.
	nbd := exec.Command("sh", "-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec qemu-nbd -r -f qcow2 -B "$1" "$2"`, "sh", bitmap, path)
	nbd.ExtraFiles = []*os.File{listening}
	if err := nbd.Start(); err != nil {
		t.Fatal(err)
	}
	// From here on the socket is its alone: if it fails, its client does.
	_ = l.Close()
	_ = listening.Close()
	out := testkit.Tool(t, "qemu-img", "map", "--output=json", "--image-opts",
		"driver=nbd,server.type=unix,server.path="+sock+",x-dirty-bitmap=qemu:dirty-bitmap:"+bitmap)
	if err := nbd.Wait(); err != nil {
		t.Fatal(err)
	}
	var extents []struct {
		Start, Length int64
		Data          bool
	}
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	var dirty [][2]int64
	for _, e := range extents {
		if !e.Data {
			dirty = append(dirty, [2]int64{e.Start, e.Start + e.Length})
		}
	}
	return dirty
}

func TestCreatorImageIsWritableAndBitmapRecords(t *testing.T) {
	t.Parallel()
	for _, cs := range []int64{512, 64 << 10, 2 << 20} {
		t.Run(fmt.Sprint(cs), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			raw, img := filepath.Join(dir, "model.raw"), filepath.Join(dir, "made.qcow2")
			model := make([]byte, 8<<20)
			for i := 1 << 20; i < 3<<20; i++ {
				model[i] = byte(i>>12) | 1
			}
			createImage(t, img, CreateOptions{Size: 8 << 20, ClusterSize: cs, Bitmap: &CreateBitmap{Name: "cp.0123", Granularity: 64 << 10}},
				model, [][2]int64{{1 << 20, 2 << 20}, {2 << 20, 3 << 20}})
			if dirty := createDirty(t, img, "cp.0123"); len(dirty) != 0 {
				t.Fatalf("dirty before any write: %v", dirty)
			}
			testkit.Tool(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 1100k 4k", "-c", "write -P 9 5M 128k", "-c", "flush", img)
			copy(model[1100<<10:], bytes.Repeat([]byte{7}, 4<<10))
			copy(model[5<<20:], bytes.Repeat([]byte{9}, 128<<10))
			if err := os.WriteFile(raw, model, 0o600); err != nil {
				t.Fatal(err)
			}
			testkit.Tool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", img, raw)
			createCheckClean(t, img)
			want := fmt.Sprint([][2]int64{{1088 << 10, 1152 << 10}, {5 << 20, 5<<20 + 128<<10}})
			if dirty := createDirty(t, img, "cp.0123"); fmt.Sprint(dirty) != want {
				t.Fatalf("dirty %v, want %v", dirty, want)
			}
		})
	}
}

// createSpy records what reaches the file, and in which order.
type createSpy struct {
	*os.File
	log     []string
	failAt  int // the n-th call fails, 0: none
	written int64
}

var errCreateInjected = errors.New("injected")

func (s *createSpy) call(what string) error {
	s.log = append(s.log, what)
	if len(s.log) == s.failAt {
		return errCreateInjected
	}
	return nil
}

func (s *createSpy) WriteAt(p []byte, off int64) (int, error) {
	what := "write"
	if off < createHeaderLength {
		what = "header"
	}
	if err := s.call(what); err != nil {
		return 0, err
	}
	s.written += int64(len(p))
	return s.File.WriteAt(p, off)
}

func (s *createSpy) Truncate(size int64) error {
	if err := s.call("truncate"); err != nil {
		return err
	}
	return s.File.Truncate(size)
}

func (s *createSpy) Sync() error { return s.call("sync") }

func TestCreatorWritesHeaderLast(t *testing.T) {
	t.Parallel()
	make := func(failAt int) (*createSpy, error) {
		f, err := os.Create(filepath.Join(t.TempDir(), "i"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		s := &createSpy{File: f, failAt: failAt}
		c, err := NewCreator(s, CreateOptions{Size: 1 << 20, ClusterSize: 512, Bitmap: &CreateBitmap{Name: "b", Granularity: 512}})
		if err != nil {
			return s, err
		}
		for off := int64(0); off < 1<<20; off += 64 << 10 {
			if _, err := c.Allocate(off, off+1000); err != nil {
				return s, err
			}
		}
		return s, c.Finish()
	}
	s, err := make(0)
	if err != nil {
		t.Fatal(err)
	}
	n := len(s.log)
	if got := strings.Join(s.log[n-4:], " "); got != "truncate sync header sync" || strings.Contains(strings.Join(s.log[:n-2], " "), "header") {
		t.Fatalf("order of writing: %v", s.log)
	}
	for i := 1; i <= n; i++ {
		s, err := make(i)
		if !errors.Is(err, errCreateInjected) {
			t.Fatalf("failure of call %d (%s) is reported as %v", i, s.log[i-1], err)
		}
		if i == n { // only the last sync has failed: the image is there
			continue
		}
		var magic [4]byte
		_, _ = s.ReadAt(magic[:], 0)
		if magic != [4]byte{} {
			t.Fatalf("a header stands after call %d failed", i)
		}
	}
}

func TestCreatorSparse16TiB(t *testing.T) {
	t.Parallel()
	const size = 16 << 40
	path := filepath.Join(t.TempDir(), "big.qcow2")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	s := &createSpy{File: f}
	c, err := NewCreator(s, CreateOptions{Size: size, ClusterSize: 64 << 10, Bitmap: &CreateBitmap{Name: "b", Granularity: 64 << 10}})
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 1 << 40, 9 << 40, size - 512} {
		runs, err := c.Allocate(off, off+512)
		if err != nil || len(runs) != 1 {
			t.Fatal(runs, err)
		}
		if _, err := f.WriteAt(bytes.Repeat([]byte{0x5a}, 512), runs[0].Host); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Finish(); err != nil {
		t.Fatal(err)
	}
	if s.written > 64<<10 {
		t.Fatalf("%d bytes of metadata written for four clusters", s.written)
	}
	createCheckClean(t, path)
	out := testkit.Tool(t, "qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x5a 9T 512", "-c", fmt.Sprintf("read -P 0x5a %d 512", int64(size-512)),
		"-c", "read -P 0 5T 1M", "-c", fmt.Sprintf("read -P 0 %d 64k", 9<<40+512), path)
	if strings.Contains(out, "verification failed") || strings.Count(out, "read ") != 4 {
		t.Fatal(out)
	}
}

// The refcount blocks and their table count themselves: file lengths around
// the capacity of a block and of a table's cluster are the hard ones.
func TestCreatorRefcountsCoverThemselves(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	check := func(n int64) {
		path := filepath.Join(dir, fmt.Sprint(n))
		createImage(t, path, CreateOptions{Size: 64 << 20, ClusterSize: 512}, make([]byte, n*512), [][2]int64{{0, n * 512}})
		createCheckClean(t, path)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	// With clusters of 512 bytes, a block counts 256 clusters and a table's
	// cluster holds 64 blocks; the L1 table has 32 clusters.
	for n := int64(210); n <= 226; n++ {
		check(n)
	}
	for n := int64(16000); n <= 16064; n += 4 {
		check(n)
	}
}

func TestCreatorRefuses(t *testing.T) {
	t.Parallel()
	name := func(n int) *CreateBitmap { return &CreateBitmap{Name: strings.Repeat("x", n), Granularity: 65536} }
	for what, o := range map[string]CreateOptions{
		"cluster size 256":        {Size: 512, ClusterSize: 256},
		"cluster size 4 MiB":      {Size: 512, ClusterSize: 4 << 20},
		"cluster size 1000":       {Size: 512, ClusterSize: 1000},
		"negative cluster size":   {Size: 512, ClusterSize: -512},
		"negative size":           {Size: -512},
		"half a sector":           {Size: 1000},
		"L1 over 32 MiB":          {Size: 129 << 30, ClusterSize: 512},
		"refcounts over 8 MiB":    {Size: 128 << 30, ClusterSize: 512},
		"16 TiB in 512":           {Size: 16 << 40, ClusterSize: 512},
		"8 EiB":                   {Size: 1<<63 - 512, ClusterSize: 2 << 20},
		"bitmap without name":     {Size: 1 << 20, Bitmap: name(0)},
		"bitmap with a long name": {Size: 1 << 20, Bitmap: name(1024)},
		"bitmap with NUL":         {Size: 1 << 20, Bitmap: &CreateBitmap{Name: "a\x00b", Granularity: 65536}},
		"bitmap of a size 0 disk": {Bitmap: name(1)},
		"granularity 256":         {Size: 1 << 20, Bitmap: &CreateBitmap{Name: "a", Granularity: 256}},
		"granularity 4 GiB":       {Size: 1 << 20, Bitmap: &CreateBitmap{Name: "a", Granularity: 4 << 30}},
		"granularity 1000":        {Size: 1 << 20, Bitmap: &CreateBitmap{Name: "a", Granularity: 1000}},
		"bitmap of over 512 MiB":  {Size: 256<<40 + 512, ClusterSize: 2 << 20, Bitmap: name(1)},
		"backing without name":    {Size: 1 << 20, Backing: &CreateBacking{Format: Raw}},
		"backing without format":  {Size: 1 << 20, Backing: &CreateBacking{File: "b"}},
		"backing in vmdk":         {Size: 1 << 20, Backing: &CreateBacking{File: "b", Format: "vmdk"}},
		"backing with NUL":        {Size: 1 << 20, Backing: &CreateBacking{File: "a\x00b", Format: Raw}},
		"backing in json":         {Size: 1 << 20, Backing: &CreateBacking{File: `json:{"driver":"raw"}`, Format: Raw}},
		"backing over NBD":        {Size: 1 << 20, Backing: &CreateBacking{File: "nbd://host/x", Format: Raw}},
		"backing of 1024 bytes":   {Size: 1 << 20, Backing: &CreateBacking{File: strings.Repeat("b", 1024), Format: Raw}},
		"backing in 512 bytes":    {Size: 1 << 20, ClusterSize: 512, Backing: &CreateBacking{File: strings.Repeat("b", 377), Format: Raw}},
		"backing and bitmap":      {Size: 1 << 20, Backing: &CreateBacking{File: "b", Format: Raw}, Bitmap: name(1)},
	} {
		f, err := os.Create(filepath.Join(t.TempDir(), "i"))
		if err != nil {
			t.Fatal(err)
		}
		spy := &createSpy{File: f}
		if _, err := NewCreator(spy, o); err == nil || len(spy.log) > 0 {
			t.Errorf("%s: error %v after %v", what, err, spy.log)
		}
		_ = f.Close()
	}
}

func TestCreatorRefusesRangesOutOfOrder(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "i"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	c, err := NewCreator(f, CreateOptions{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Allocate(1000, 2000); err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]int64{{0, 10}, {1999, 2001}, {3000, 2999}, {1 << 20, 1<<20 + 1}} {
		if runs, err := c.Allocate(r[0], r[1]); err == nil {
			t.Errorf("range %v was taken: %v", r, runs)
		}
	}
	if err := c.Finish(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Allocate(1<<19, 1<<20); err == nil {
		t.Error("allocated after the end")
	}
	if err := c.Finish(); err == nil {
		t.Error("finished twice")
	}
}

func TestClusterSizeFor(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ size, wanted, want int64 }{
		{0, 0, 64 << 10}, {1 << 40, 0, 64 << 10}, {16 << 40, 64 << 10, 64 << 10}, {1 << 30, 512, 512}, {1 << 30, 700, 1024},
		{128 << 30, 512, 1024}, {16 << 40, 512, 8 << 10}, {1 << 30, 1 << 30, 2 << 20}, {1 << 30, -1, 512},
	} {
		got, err := ClusterSizeFor(c.size, c.wanted)
		if err != nil || got != c.want {
			t.Errorf("ClusterSizeFor(%d, %d) = %d, %v; want %d", c.size, c.wanted, got, err, c.want)
		}
		// What it promises, qemu-img takes too.
		testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", fmt.Sprintf("cluster_size=%d", got), filepath.Join(t.TempDir(), "i"), fmt.Sprint(c.size))
	}
	for _, size := range []int64{-1, 1<<63 - 1} {
		if got, err := ClusterSizeFor(size, 0); err == nil {
			t.Errorf("ClusterSizeFor(%d) = %d", size, got)
		}
	}
}
