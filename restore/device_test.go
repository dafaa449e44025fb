// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/outfile"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// testDevice is a block device: a loop device, or a file that the package is told
// to take for one.
type testDevice struct {
	path string // of the device
	file string // that holds its content
	sys  *outfile.System
}

// testDevices returns devices of size bytes, full of 0xaa: one that is a mere file
// and, where this machine lets us have one, a loop device.
func testDevices(t *testing.T, size int64) []testDevice {
	t.Helper()
	create := func(name string) string {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, bytes.Repeat([]byte{0xaa}, int(size)), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	fake := create("fake-device")
	sys := outfile.Linux()
	sys.IsDevice = func(fi fs.FileInfo) bool { return fi.Name() == "fake-device" }
	sys.OpenDevice = func(path string) (*os.File, error) { return os.OpenFile(path, os.O_RDWR, 0) }
	devices := []testDevice{{fake, fake, sys}}
	file := create("loop")
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Logf("without a loop device: losetup: %v: %s", err, out)
		return devices
	}
	path := strings.TrimSpace(string(out))
	t.Cleanup(func() { testkit.Tool(t, "losetup", "--detach", path) })
	return append(devices, testDevice{path, file, outfile.Linux()})
}

func TestRestoreToDevice(t *testing.T) {
	t.Parallel()
	r, m, disks := twoDisks(t)
	size := disks[1].size()
	for _, d := range testDevices(t, size+1<<20) {
		targets := []Target{{"vdb", d.path, qcow2.Raw}}
		if _, err := run(context.Background(), d.sys, r.repo, m, targets, Options{}); !errors.Is(err, ErrTargetExists) {
			t.Errorf("%s without force: %v", d.path, err)
		}
		targets[0].Format = qcow2.Qcow2
		if _, err := run(context.Background(), d.sys, r.repo, m, targets, Options{Force: true}); !errors.Is(err, usage.ErrWrong) {
			t.Errorf("%s as qcow2: %v", d.path, err)
		}
		if got, err := os.ReadFile(d.file); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{0xaa}, len(got))) {
			t.Errorf("%s: a refused restore has written (%v)", d.path, err)
		}
		// A file comes along: it appears after the device is written.
		file := filepath.Join(t.TempDir(), "vda.raw")
		targets = []Target{{"vdb", d.path, qcow2.Raw}, {"vda", file, qcow2.Raw}}
		var last Event
		res, err := run(context.Background(), d.sys, r.repo, m, targets, Options{Force: true, Verify: true, Progress: func(e Event) { last = e }})
		if err != nil {
			t.Fatal(err)
		}
		if !res.Disks[0].Device || res.Disks[1].Device || last.Done != last.Total || last.Disk != "vdb" {
			t.Errorf("result %+v, last event %+v", res, last)
		}
		want := append(bytes.Clone(disks[1].content), bytes.Repeat([]byte{0xaa}, 1<<20)...)
		got, err := os.ReadFile(d.path)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs (%v)", d.path, err)
		}
		checkRestored(t, file, qcow2.Raw, disks[0].content)
	}
}

// Logical volumes are known by symbolic links.
func TestRestoreToDeviceByLink(t *testing.T) {
	t.Parallel()
	r, m, disks := twoDisks(t)
	for _, d := range testDevices(t, disks[0].size()) {
		link := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(d.path, link); err != nil {
			t.Fatal(err)
		}
		both := []Target{{"vda", link, qcow2.Raw}, {"vdb", d.path, qcow2.Raw}}
		if _, err := run(context.Background(), d.sys, r.repo, m, both, Options{Force: true}); !errors.Is(err, usage.ErrWrong) {
			t.Errorf("two disks to %s: %v", d.path, err)
		}
		if _, err := run(context.Background(), d.sys, r.repo, m, both[1:], Options{Force: true}); err == nil || !strings.Contains(err.Error(), "needs") {
			t.Errorf("%s is too small: %v", d.path, err)
		}
		if _, err := run(context.Background(), d.sys, r.repo, m, both[:1], Options{Force: true}); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(d.path); err != nil || !bytes.Equal(got, disks[0].content) {
			t.Errorf("%s differs (%v)", d.path, err)
		}
	}
}

func TestDeviceInUse(t *testing.T) {
	t.Parallel()
	r, m, disks := twoDisks(t)
	want := bytes.Repeat([]byte{0xaa}, int(disks[0].size()))
	var inUse *qemu.InUseError
	for _, d := range testDevices(t, disks[0].size()) {
		targets := []Target{{"vda", d.path, qcow2.Raw}}
		testkit.StartNBD(t, "-f", "raw", "-r", d.path)
		if _, err := run(context.Background(), d.sys, r.repo, m, targets, Options{Force: true}); !errors.As(err, &inUse) {
			t.Errorf("%s is read by qemu-nbd: %v", d.path, err)
		}
		if got, err := os.ReadFile(d.path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s was written to (%v)", d.path, err)
		}
	}
	// Opened exclusively by another, as a mounted one is.
	for _, d := range testDevices(t, disks[0].size()) {
		targets := []Target{{"vda", d.path, qcow2.Raw}}
		if d.path == d.file {
			d.sys.OpenDevice = func(path string) (*os.File, error) {
				return nil, &os.PathError{Op: "open", Path: path, Err: unix.EBUSY}
			}
		} else {
			f, err := outfile.Linux().OpenDevice(d.path)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
		}
		if _, err := run(context.Background(), d.sys, r.repo, m, targets, Options{Force: true}); !errors.As(err, &inUse) || inUse.Path != d.path {
			t.Errorf("%s is held by another: %v", d.path, err)
		}
	}
}

// A restore to a device that breaks says that the device is incomplete, and the
// files of the same restore do not appear.
func TestDeviceIncomplete(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := newTestRepo(t)
	rng := rand.New(rand.NewPCG(5, 5))
	a, b := newTestDisk("vda", 1<<20, rng), newTestDisk("vdb", 1<<20, rng)
	r.archive(t, a)
	before := r.objects(t, archive.PackPrefix)[0]
	r.archive(t, b)
	a.write(0, 512, nil)
	m := r.archive(t, a, b)
	outage := errors.New("the network is down")
	faulty := &chain.Repository{Store: objstoretest.NewFaulty(t, r.store, objstoretest.Fault{Op: objstoretest.Get, Prefix: before, Err: outage})}
	d := testDevices(t, a.size())[0]
	dir := t.TempDir()
	targets := []Target{{"vda", d.path, qcow2.Raw}, {"vdb", filepath.Join(dir, "vdb.raw"), qcow2.Raw}}
	_, err := run(ctx, d.sys, faulty, m, targets, Options{Force: true})
	if !errors.Is(err, outage) || !strings.Contains(err.Error(), d.path+" is now incomplete") {
		t.Error(err)
	}
	empty(t, dir)
}
