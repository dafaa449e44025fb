// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qemu"
)

// qiStates describes the bitmaps of an image as it is now.
func qiStates(t testing.TB, path string) []BitmapState {
	t.Helper()
	var states []BitmapState
	err := WithTopLayer(path, func(l *Layer) (err error) {
		states, err = l.BitmapStates()
		return errors.Join(err, l.BitmapsErr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return states
}

// verifyAdded is [Layer.VerifyBitmapAdded] for an image by its path.
func verifyAdded(path string, before []BitmapState, name string, granularity int64) error {
	return WithTopLayer(path, func(l *Layer) error { return l.VerifyBitmapAdded(before, granularity, name) })
}

func TestBitmapAddAndRemove(t *testing.T) {
	t.Parallel()
	path := bmTwo(t)
	before := qiStates(t, path)
	if len(before) != 2 {
		t.Fatalf("%+v", before)
	}
	if err := (qemu.Img{Wait: qemu.LockWait}).BitmapAdd(t.Context(), path, "-new, one", 32768); err != nil {
		t.Fatal(err)
	}
	if err := verifyAdded(path, before, "-new, one", 32768); err != nil {
		t.Fatal(err)
	}
	if err := verifyAdded(path, before, "-new, one", 65536); err == nil {
		t.Fatal("another granularity was not noticed")
	}
	if err := (qemu.Img{Wait: qemu.LockWait}).BitmapAdd(t.Context(), path, "-new, one", 32768); err == nil || !strings.Contains(err.Error(), "already exists") {
		t.Fatalf("a second time: %v", err)
	}
	after := qiStates(t, path)
	if err := (qemu.Img{Wait: qemu.LockWait}).BitmapRemove(t.Context(), path, "-new, one"); err != nil {
		t.Fatal(err)
	}
	if err := VerifyBitmapRemoved(path, after, "-new, one"); err != nil {
		t.Fatal(err)
	}
	if got := qiStates(t, path); !slices.Equal(got, before) {
		t.Fatalf("got %+v, want %+v", got, before)
	}
	if err := (qemu.Img{Wait: qemu.LockWait}).BitmapRemove(t.Context(), path, "-new, one"); err == nil {
		t.Fatal("a bitmap that is not there was removed")
	}
	for _, name := range []string{"a", "b"} {
		states := qiStates(t, path)
		if err := (qemu.Img{Wait: qemu.LockWait}).BitmapRemove(t.Context(), path, name); err != nil {
			t.Fatal(err)
		}
		if err := VerifyBitmapRemoved(path, states, name); err != nil {
			t.Fatal(err)
		}
	}
}

// The first bitmap of an image whose backing file is not even there: only the image itself is
// opened.
func TestBitmapAddToOverlay(t *testing.T) {
	t.Parallel()
	base, top := lkChain(t)
	info, err := os.Stat(base)
	if err != nil {
		t.Fatal(err)
	}
	digest := bmOpen(t, top).Layers[0].HeaderDigest()
	if err := (qemu.Img{Wait: qemu.LockWait}).BitmapAdd(t.Context(), top, "x", 65536); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(base)
	if err != nil || after.ModTime() != info.ModTime() {
		t.Fatalf("the backing file was touched (%v)", err)
	}
	c := bmOpen(t, top)
	if len(c.Layers) != 2 || c.Layers[0].HeaderDigest() != digest {
		t.Fatal("the header has changed")
	}
	if err := c.Layers[0].VerifyBitmapAdded(nil, 65536, "x"); err != nil {
		t.Fatal(err)
	}
}

// QEMU looks for a data file with a relative name where it runs: that must be beside the image,
// where we look for it.
func TestBitmapAddBesideDataFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "d.qcow2", "1M")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	path := filepath.Join(dir, "d.qcow2")
	if err := (qemu.Img{Wait: qemu.LockWait}).BitmapAdd(t.Context(), path, "x", 65536); err != nil {
		t.Fatal(err)
	}
	if err := verifyAdded(path, nil, "x", 65536); err != nil {
		t.Fatal(err)
	}
	if r, err := (qemu.Img{}).CheckRefcounts(t.Context(), path); err != nil || r.Err() != nil {
		t.Fatalf("%+v, %v", r, err)
	}
}

// No path is taken for anything but a path.
func TestBitmapAddPaths(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a,b", "-x", "nbd:foo", "json:{}", "a b", "ünï", "file:x", "x=y", "a%b", "bad\xff\xfe", "new\nline", ",,", "driver=raw"} {
		path := filepath.Join(t.TempDir(), name)
		plain := filepath.Join(t.TempDir(), "plain")
		bmCreate(t, plain, "", 1<<20)
		if err := os.Rename(plain, path); err != nil {
			t.Fatal(err)
		}
		if err := (qemu.Img{Wait: qemu.LockWait}).BitmapAdd(t.Context(), path, "x", 65536); err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if err := verifyAdded(path, nil, "x", 65536); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if r, err := (qemu.Img{}).CheckRefcounts(t.Context(), path); err != nil || r.Err() != nil {
			t.Errorf("%q: %+v, %v", name, r, err)
		}
	}
}

func TestBitmapAddRefuses(t *testing.T) {
	t.Parallel()
	path := bmTwo(t)
	for _, granularity := range []int64{0, -1, 256, 513, 1 << 32} {
		if err := (qemu.Img{Wait: qemu.LockWait}).BitmapAdd(t.Context(), path, "x", granularity); err == nil {
			t.Errorf("granularity %d", granularity)
		}
	}
	for _, name := range []string{"", "a\x00b", strings.Repeat("x", 1024)} {
		if err := (qemu.Img{Wait: qemu.LockWait}).BitmapAdd(t.Context(), path, name, 65536); err == nil {
			t.Errorf("name %q was added", name)
		}
		if err := (qemu.Img{Wait: qemu.LockWait}).BitmapRemove(t.Context(), path, name); err == nil {
			t.Errorf("name %q was removed", name)
		}
	}
	if err := (qemu.Img{Wait: qemu.LockWait}).BitmapAdd(t.Context(), filepath.Join(t.TempDir(), "none"), "x", 65536); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no image: %v", err)
	}
	if err := (qemu.Img{Wait: qemu.LockWait}).BitmapAdd(t.Context(), t.TempDir(), "x", 65536); err == nil {
		t.Error("a bitmap was added to a directory")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (qemu.Img{Wait: qemu.LockWait}).BitmapAdd(ctx, path, "x", 65536); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if got := qiStates(t, path); len(got) != 2 {
		t.Errorf("%+v", got)
	}
}

func TestBitmapAddInUse(t *testing.T) {
	t.Parallel()
	_, top := lkChain(t)
	h := testkit.HoldWithIO(t, top)
	var q qemu.Img
	lkWantInUse(t, q.BitmapAdd(t.Context(), top, "x", 65536), top, "qemu-io, process")
	lkWantInUse(t, q.BitmapRemove(t.Context(), top, "x"), top, "qemu-io, process")
	_, err := q.CheckRefcounts(t.Context(), top)
	lkWantInUse(t, err, top, "qemu-io, process")
	// It waits for a program that is just ending.
	result := make(chan error, 1)
	q.Wait = time.Minute
	go func() { result <- q.BitmapAdd(t.Context(), top, "x", 65536) }()
	h.End()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if err := verifyAdded(top, nil, "x", 65536); err != nil {
		t.Fatal(err)
	}
}

func TestCheckRefcounts(t *testing.T) {
	t.Parallel()
	path := bmTwo(t)
	good, err := qemu.Img{}.CheckRefcounts(t.Context(), path)
	if err != nil || good.Err() != nil || good.Leaks != 0 {
		t.Fatalf("%+v, %v", good, err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	block := be.Uint64(data[be.Uint64(data[48:]):])
	l2 := be.Uint64(data[be.Uint64(data[40:]):]) & tableEntryOffset
	for name, c := range map[string]struct {
		spoil func(image []byte)
		fine  bool
	}{
		"leak":             {func(image []byte) { be.PutUint64(image[l2+2*8:], 0) }, true},
		"refcount too low": {func(image []byte) { be.PutUint16(image[block+l2/65536*2:], 0) }, false},
	} {
		patched := slices.Clone(data)
		c.spoil(patched)
		file := filepath.Join(t.TempDir(), "patched.qcow2")
		if err := os.WriteFile(file, patched, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := qemu.Img{}.CheckRefcounts(t.Context(), file)
		if err != nil || (r.Err() == nil) != c.fine || c.fine && r.Leaks != 1 || !c.fine && r.Corruptions == 0 {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		if again, err := os.ReadFile(file); err != nil || !slices.Equal(again, patched) {
			t.Errorf("%s: the image was changed (%v)", name, err)
		}
	}
	none := filepath.Join(t.TempDir(), "none.qcow2")
	if err := os.WriteFile(none, make([]byte, 65536), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := (qemu.Img{}).CheckRefcounts(t.Context(), none); err == nil {
		t.Errorf("no qcow2 image: %+v", r)
	}
}

// No bitmap is added to an image that was not closed, or is marked corrupt, or has no room for one.
func TestCheckAddBitmap(t *testing.T) {
	t.Parallel()
	path := bmTwo(t)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, bit := range map[string]uint64{"dirty": IncompatDirty, "corrupt": IncompatCorrupt} {
		patched := slices.Clone(data)
		binary.BigEndian.PutUint64(patched[72:], bit)
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, patched, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := bmOpen(t, file).Layers[0].CheckAddBitmap(); err == nil {
			t.Errorf("%s: a bitmap could be added", name)
		}
	}
	empty := filepath.Join(t.TempDir(), "empty")
	bmCreate(t, empty, "", 0)
	if err := bmOpen(t, empty).Layers[0].CheckAddBitmap(); err == nil {
		t.Error("empty disk: a bitmap could be added")
	}
	if err := (&Layer{Format: Raw}).CheckAddBitmap(); err == nil {
		t.Error("raw: a bitmap could be added")
	}
	if err := bmOpen(t, path).Layers[0].CheckAddBitmap(); err != nil {
		t.Error(err)
	}
	if err := bmOpen(t, path).Layers[0].CheckWritable(); err != nil {
		t.Error(err)
	}
	if err := (&Layer{Path: filepath.Join(t.TempDir(), "none")}).CheckWritable(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestCheckRoom(t *testing.T) {
	t.Parallel()
	l := bmOpen(t, bmTwo(t)).Layers[0]
	var stored int64
	for _, b := range l.Bitmaps {
		stored += b.StoredBytes
	}
	if stored != 4*65536 {
		t.Fatalf("%d bytes stored", stored)
	}
	need := spaceFor(l, 65536)
	if least := 2*stored + 16*65536 + 2*65536; need < least || need > least+3*65536 {
		t.Fatalf("%d bytes are asked for, the rule gives %d", need, least)
	}
	if without := spaceFor(l, 0); without >= need || without < 2*stored+16*65536 {
		t.Fatalf("%d bytes to remove one, %d to add one", without, need)
	}
	asked := int64(-1)
	answer := func(err error) func(*os.File, int64) error {
		return func(f *os.File, n int64) error {
			if f.Name() != l.Path {
				t.Errorf("asked for %s", f.Name())
			}
			asked = n
			return err
		}
	}
	if err := l.checkRoom(65536, answer(nil)); err != nil || asked != need {
		t.Errorf("%d bytes asked for: %v", asked, err)
	}
	for _, refusal := range []error{unix.ENOSPC, unix.EDQUOT, unix.EFBIG, unix.EIO} {
		var no *NoBitmapError
		if err := l.checkRoom(65536, answer(refusal)); !errors.Is(err, refusal) || !errors.As(err, &no) || no.Path != l.Path {
			t.Errorf("%v: %v", refusal, err)
		}
		if err := l.checkRoom(0, answer(refusal)); !errors.Is(err, refusal) || errors.As(err, &no) {
			t.Errorf("none is added, %v: %v", refusal, err)
		}
	}
	if err := l.CheckRoom(65536); err != nil {
		t.Error(err)
	}
}

// The end of the image, which tells how much room a block device has left, is what qemu-img says.
func TestImageEnd(t *testing.T) {
	t.Parallel()
	for _, options := range []string{"", "cluster_size=512", "refcount_bits=1", "refcount_bits=64,cluster_size=4096", "cluster_size=512,refcount_bits=2"} {
		path := filepath.Join(t.TempDir(), "d.qcow2")
		bmCreate(t, path, options, 16<<20)
		bmIO(t, path, "write 0 512", "write 3M 300k", "write 9M 4k")
		want, err := qemu.Img{}.CheckRefcounts(t.Context(), path)
		if err != nil || want.ImageEnd == 0 {
			t.Fatalf("%+v, %v", want, err)
		}
		if got, err := bmOpen(t, path).Layers[0].imageEnd(); err != nil || got != want.ImageEnd {
			t.Errorf("%q: %d, %v, want %d", options, got, err, want.ImageEnd)
		}
	}
}

// Everything that can change between the look before and the look after is noticed.
func TestVerifyBitmapAdded(t *testing.T) {
	t.Parallel()
	path := bmTwo(t)
	before := qiStates(t, path)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const name = "new"
	add := func(t *testing.T, path string) { bmAdd(t, path, name, 65536) }
	for what, spoil := range map[string]func(t *testing.T, path string){
		"nothing done":   func(*testing.T, string) {},
		"written before": func(t *testing.T, path string) { bmIO(t, path, "write 0 512"); add(t, path) },
		"written after":  func(t *testing.T, path string) { add(t, path); bmIO(t, path, "write 0 512") },
		"disabled": func(t *testing.T, path string) {
			add(t, path)
			testkit.Tool(t, "qemu-img", "bitmap", "--disable", path, "a")
		},
		"new one disabled": func(t *testing.T, path string) {
			add(t, path)
			testkit.Tool(t, "qemu-img", "bitmap", "--disable", path, name)
		},
		"removed": func(t *testing.T, path string) {
			add(t, path)
			testkit.Tool(t, "qemu-img", "bitmap", "--remove", path, "a")
		},
		"cleared": func(t *testing.T, path string) {
			add(t, path)
			testkit.Tool(t, "qemu-img", "bitmap", "--clear", path, "a")
		},
		"another one":       func(t *testing.T, path string) { add(t, path); bmAdd(t, path, "other", 65536) },
		"other granularity": func(t *testing.T, path string) { bmAdd(t, path, name, 4096) },
		"in use": func(t *testing.T, path string) {
			add(t, path)
			m := bmLoad(t, path)
			for _, e := range m.entries {
				m.put32(e+12, m.u32(e+12)|bitmapInUse)
			}
			if err := os.WriteFile(path, m.data, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"dead": func(t *testing.T, path string) {
			add(t, path)
			m := bmLoad(t, path)
			m.put64(88, 0)
			if err := os.WriteFile(path, m.data, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "d.qcow2")
			if err := os.WriteFile(path, good, 0o600); err != nil {
				t.Fatal(err)
			}
			spoil(t, path)
			err := verifyAdded(path, before, name, 65536)
			var changed *BitmapChangedError
			if err == nil || what != "dead" && !errors.As(err, &changed) {
				t.Fatalf("got %v", err)
			}
			t.Log(err)
		})
	}
	// A bitmap that was broken by a crash before stays so.
	m := bmLoad(t, path)
	m.put32(m.entries[0]+12, m.flags(0)|bitmapInUse)
	crashed := m.save(t, t.TempDir())
	states := qiStates(t, crashed)
	if err := (qemu.Img{Wait: qemu.LockWait}).BitmapAdd(t.Context(), crashed, name, 65536); err != nil {
		t.Fatal(err)
	}
	if err := verifyAdded(crashed, states, name, 65536); err != nil {
		t.Fatal(err)
	}
}

// Bitmaps that are dead do not come back and are not in the way.
func TestBitmapAddAfterDeadOnes(t *testing.T) {
	t.Parallel()
	m := bmLoad(t, bmTwo(t))
	m.put64(88, 0)
	path := m.save(t, t.TempDir())
	before, err := bmOpen(t, path).Layers[0].BitmapStates()
	if err != nil || len(before) != 0 {
		t.Fatalf("%+v, %v", before, err)
	}
	if err := (qemu.Img{Wait: qemu.LockWait}).BitmapAdd(t.Context(), path, "new", 65536); err != nil {
		t.Fatal(err)
	}
	if err := verifyAdded(path, before, "new", 65536); err != nil {
		t.Fatal(err)
	}
}

// TestBitmapAddHelper is the process that TestBitmapAddInterrupted interrupts; by itself it does
// nothing.
func TestBitmapAddHelper(t *testing.T) {
	path := os.Getenv("QCOW2_TEST_ADD_TO")
	if path == "" {
		return
	}
	ctx := context.Background()
	if os.Getenv("QCOW2_TEST_ADD_CAREFULLY") != "" {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGINT)
		defer stop()
	}
	fmt.Println("ready")
	if err := (qemu.Img{Wait: qemu.LockWait}).BitmapAdd(ctx, path, "new", 65536); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// Ctrl-C reaches every process of the group, at any moment: no bitmap is ever left in use.
func TestBitmapAddInterrupted(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	original := bmTwo(t)
	for i := range 12 {
		bmAdd(t, original, fmt.Sprint("old", i), 4096)
	}
	bmIO(t, original, "write 0 1M")
	before := qiStates(t, original)
	data, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	added, moments := 0, map[string]int{}
	for round := range 60 {
		path := filepath.Join(t.TempDir(), "d.qcow2")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		moment := qiInterrupt(t, path, rng, round%2 == 0, round%3 == 0)
		moments[moment]++
		qiWaitForQemuImg(t, path)
		states := qiStates(t, path)
		if len(states) == len(before) {
			if !slices.Equal(states, before) {
				t.Fatalf("interrupted %s: got %+v, want %+v", moment, states, before)
			}
			continue
		}
		added++
		if err := verifyAdded(path, before, "new", 65536); err != nil {
			t.Fatalf("interrupted %s: %v", moment, err)
		}
	}
	t.Logf("added %d times; moments %v", added, moments)
	if moments["while the bitmaps were in use"] == 0 {
		t.Fatal("no interrupt ever came while qemu-img was at work")
	}
}

// qiInterrupt runs the helper and interrupts its process group at a random moment, which it
// describes.
func qiInterrupt(t *testing.T, path string, rng *rand.Rand, careful, kill bool) string {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestBitmapAddHelper$", "-test.count=1")
	cmd.Env = append(os.Environ(), "QCOW2_TEST_ADD_TO="+path)
	if careful {
		cmd.Env = append(cmd.Env, "QCOW2_TEST_ADD_CAREFULLY=1")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() && lines.Text() != "ready" {
	}
	moment := "at the beginning"
	if rng.IntN(5) > 0 {
		moment = qiAwaitWork(t, path, rng.IntN(30))
	}
	sig := syscall.SIGINT
	if kill {
		sig = syscall.SIGKILL
	}
	if err := syscall.Kill(-cmd.Process.Pid, sig); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return moment
}

// qiAwaitWork waits until qemu-img has marked the bitmaps in use, and looks a number of times more
// at the image.
func qiAwaitWork(t *testing.T, path string, more int) string {
	t.Helper()
	m := bmLoad(t, path)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags := make([]byte, 4)
	for range 100_000 {
		if _, err := f.ReadAt(flags, m.entries[0]+12); err != nil {
			t.Fatal(err)
		}
		if flags[3]&bitmapInUse == 0 {
			continue
		}
		for range more {
			if _, err := f.ReadAt(flags, m.entries[0]+12); err != nil {
				t.Fatal(err)
			}
		}
		return "while the bitmaps were in use"
	}
	return "late"
}

// qiWaitForQemuImg waits until no qemu-img works on the image.
func qiWaitForQemuImg(t *testing.T, path string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, c := range commands {
			if text, err := os.ReadFile(c); err == nil && strings.Contains(string(text), path) {
				found = true
			}
		}
		if !found {
			return
		}
		<-tick.C
	}
}
