// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qcow2"
)

// vmdk makes an image of 4 MiB with data at 1 MiB.
func vmdk(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a \"b\",c.vmdk")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "vmdk", path, "4M")
	testkit.Tool(t, "qemu-io", "-c", "write -P 7 1M 64k", "--image-opts", "driver=vmdk,file.driver=file,file.filename="+strings.ReplaceAll(path, ",", ",,"))
	return path
}

// processes lists the processes that have text in their arguments.
func processes(text string) (found []string) {
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		if args, err := os.ReadFile(path); err == nil && bytes.Contains(args, []byte(text)) {
			found = append(found, path)
		}
	}
	return found
}

func TestImage(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	path := vmdk(t)
	c, err := qcow2.Open(path, VMDK, qcow2.OpenOptions{Foreign: Opener(t.Context(), Options{})})
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	var data int64
	end := int64(0)
	for e, err := range c.Extents(0, c.Size()) {
		if err != nil || e.Offset != end {
			t.Fatalf("%+v, %v", e, err)
		}
		if end += e.Length; e.Kind == qcow2.Data {
			data += e.Length
		}
	}
	if end != 4<<20 || data != 64<<10 {
		t.Errorf("extents of %d bytes, %d of data", end, data)
	}
	p := make([]byte, 100<<10)
	if err := c.ReadAt(t.Context(), p, 1<<20-4096); err != nil {
		t.Fatal(err)
	}
	want := append(make([]byte, 4096), bytes.Repeat([]byte{7}, 64<<10)...)
	if !bytes.Equal(p, append(want, make([]byte, len(p)-len(want))...)) {
		t.Error("it reads otherwise")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if left := processes(filepath.Dir(path)); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
}

// A qemu-nbd that dies, and a context that ends, make reads fail, at once.
func TestImageDies(t *testing.T) {
	t.Parallel()
	path := vmdk(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	bad := errors.New("we have enough")
	for _, c := range []struct {
		end  func(im *image)
		want string
	}{
		{func(im *image) { im.process.Kill() }, "qemu-nbd"},
		{func(im *image) { cancel(bad) }, bad.Error()},
	} {
		im, err := open(ctx, path, VMDK, Options{})
		if err != nil {
			t.Fatal(err)
		}
		c.end(im)
		<-im.process.Ended
		if err := im.ReadAt(t.Context(), make([]byte, 512), 0); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("read: %v", err)
		}
		for _, err := range im.Extents(0, 4<<20) {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("extents: %v", err)
			}
		}
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	}
	if left := processes(filepath.Dir(path)); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
}

// What keeps qemu-nbd from serving is told, and leaves nothing.
func TestImageDoesNotOpen(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	path := vmdk(t)
	script := filepath.Join(t.TempDir(), "nbd")
	testkit.Program(t, script, "#!/bin/sh\necho one >&2; echo two >&2; exit 3\n")
	for program, want := range map[string]string{script: "exit status 3: one; two", "no-such-program": "executable file not found"} {
		if _, err := open(t.Context(), path, VMDK, Options{Program: program}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", program, err)
		}
	}
	// One that never serves is waited for no longer than the context allows.
	testkit.Program(t, script, "#!/bin/sh\nexec sleep 1000\n")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := open(ctx, path, VMDK, Options{Program: script}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// helper makes the test program one that opens an image and says so, for
// TestKilled.
const helper = "IMGBACKUP_TEST_OPEN"

func TestMain(m *testing.M) {
	path := os.Getenv(helper)
	if path == "" {
		os.Exit(m.Run())
	}
	im, err := open(context.Background(), path, VMDK, Options{})
	if err != nil {
		panic(err)
	}
	if _, err := os.Stdout.WriteString("open\n"); err != nil {
		panic(err)
	}
	for im.ReadAt(context.Background(), make([]byte, 512), 0) == nil {
	}
}

// Whoever is killed leaves no qemu-nbd.
func TestKilled(t *testing.T) {
	t.Parallel()
	path := vmdk(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helper+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Error(err)
	}
	running := processes(filepath.Dir(path))
	if len(running) != 1 {
		t.Errorf("qemu-nbd: %v", running)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	// It gets its signal when our last thread has gone; that it dies takes a moment.
	for range 2000 {
		if len(processes(filepath.Dir(path))) == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		<-ctx.Done()
		cancel()
	}
	t.Error("qemu-nbd stays")
}

func FuzzCheck(f *testing.F) {
	head := func(magic string, at int, set func(b []byte)) []byte {
		b := make([]byte, 4096)
		copy(b[at:], magic)
		if set != nil {
			set(b)
		}
		return b
	}
	good := head("KDMV", 0, func(b []byte) {
		binary.LittleEndian.PutUint64(b[12:], 100)
		binary.LittleEndian.PutUint64(b[28:], 1)
		binary.LittleEndian.PutUint64(b[36:], 2)
		copy(b[600:], "createType=\"monolithicSparse\"\n")
	})
	accepted := 0
	for format, seed := range map[qcow2.Format][]byte{
		VMDK: good, LUKS: head("LUKS\xba\xbe", 0, nil), VHDX: head("vhdxfile", 0, nil), VDI: head("\x7f\x10\xda\xbe", 64, nil), QED: head("QED\x00", 0, nil),
	} {
		f.Add(seed, string(format))
		if checkImage(bytes.NewReader(seed), "seed", format) == nil {
			accepted++
		}
	}
	if accepted != len(Formats()) {
		f.Fatalf("%d seeds are accepted", accepted)
	}
	for _, bad := range [][]byte{
		append(bytes.Clone(good), 0)[:590],
		bytes.Replace(good, []byte("createType"), []byte("parentFileNameHint"), 1),
		bytes.Replace(good, []byte("monolithicSparse"), []byte("monolithicFlat"), 1),
		append(bytes.Clone(good[:12]), make([]byte, 1000)...),
	} {
		f.Add(bad, string(VMDK))
		if checkImage(bytes.NewReader(bad), "seed", VMDK) == nil {
			f.Fatalf("accepted: %.40q", bad)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, format string) {
		err := checkImage(bytes.NewReader(b), "fuzz", qcow2.Format(format))
		if err != nil {
			return
		}
		switch known := slices.Contains(Formats(), qcow2.Format(format)); {
		case !known && format != string(qcow2.Qcow2):
			t.Errorf("format %q is accepted", format)
		case known && len(b) < 4:
			t.Error("an image without a header is accepted")
		case format == string(VMDK) && binary.LittleEndian.Uint64(b[12:]) == 0:
			t.Error("a list of files is accepted")
		}
	})
}

func TestNode(t *testing.T) {
	t.Parallel()
	if _, err := node("\xff", VDI, false); err == nil {
		t.Error("a path that JSON cannot hold")
	}
	// The path is quoted, whatever is in it.
	text, err := node(`/a","driver":"host_device`, VDI, false)
	if err != nil || strings.Contains(text, `"driver":"host_device`) || !strings.Contains(text, `\"driver\":\"host_device`) {
		t.Errorf("%s, %v", text, err)
	}
}
