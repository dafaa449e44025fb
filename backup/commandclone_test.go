// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qcow2"
)

// copies is a cloner that copies to a folder.
type copies string

func (dir copies) path(k chain.IntentClone) string { return filepath.Join(string(dir), k.Name) }

func (dir copies) Clone(_ context.Context, _ string, k chain.IntentClone) (*os.File, error) {
	data, err := os.ReadFile(k.Path)
	if err == nil {
		err = os.WriteFile(dir.path(k), data, 0o600)
	}
	if err != nil {
		return nil, err
	}
	return os.Open(dir.path(k))
}

func (dir copies) Release(_ context.Context, _ string, k chain.IntentClone) error {
	if err := os.Remove(dir.path(k)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// wrongCloner is a cloner of which one thing is wrong.
type wrongCloner struct {
	copies
	clone    func(k chain.IntentClone, f *os.File) (*os.File, error)
	releases bool
	released []string
}

func (c *wrongCloner) Clone(ctx context.Context, domain string, k chain.IntentClone) (*os.File, error) {
	f, err := c.copies.Clone(ctx, domain, k)
	if err != nil || c.clone == nil {
		return f, err
	}
	return c.clone(k, f)
}

func (c *wrongCloner) Release(ctx context.Context, domain string, k chain.IntentClone) error {
	if !c.releases {
		return errors.New("no release today")
	}
	c.released = append(c.released, k.Name)
	return c.copies.Release(ctx, domain, k)
}

// What the kernel does not clone a command does, whose copies are gone afterwards, also of what has
// failed.
func TestCloneByCommand(t *testing.T) {
	t.Parallel()
	l := newLabIn(t, shm(t), t.TempDir())
	dir := t.TempDir()
	l.create("base", "4M")
	l.write("base", "write -P 1 0 1M")
	l.overlay("vda", "base")
	l.must(os.WriteFile(l.path("vdb"), make([]byte, 1<<20), 0o600))
	disks := []backup.DiskRequest{l.disk("vda"), {Disk: "vdb", Path: l.path("vdb"), Format: qcow2.Raw}}
	disks[0].AllowDirs = []string{l.images} // which is below /dev
	for i, checkpoint := range []string{"c1", "c2", "c3"} {
		for _, d := range disks {
			l.remember("vm", checkpoint, d)
		}
		req := l.cloned(checkpoint, disks...)
		req.Cloner = copies(dir)
		r, err := l.run(req, begins(backup.StepReleased, func() {
			if n := len(testkit.Names(t, dir)); n != 3 {
				t.Errorf("%d copies, want those of the image, its backing file, and a raw one", n)
			}
			l.write("vda", "write -P 2 512k 64k")
			l.writeAs("raw", "vdb", "write -P 3 0 4k")
		}))
		l.must(err)
		if names := testkit.Names(t, dir); len(names) > 0 || !r.Cloned {
			t.Errorf("%s left the copies %q (%+v)", checkpoint, names, r)
		}
		if i > 0 {
			l.trusted(r, "c"+string(rune('0'+i)))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	req := l.cloned("c4", disks[1]) // of which no bitmap tells
	req.Cloner = copies(dir)
	if _, err := backup.Run(ctx, l.repo, req, begins(backup.StepRead, cancel)); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if names := testkit.Names(t, dir); len(names) > 0 || l.intents("vm") != 0 { // c3's was settled by it
		t.Errorf("%d intents, copies %q", l.intents("vm"), names)
	}
	l.backup("c5", disks...)
	if n := l.intents("vm"); n != 0 {
		t.Errorf("%d intents are left", n)
	}
	l.restoreAll()
}

// A copy that could not be released is released by the next run.
func TestCloneReleasedLater(t *testing.T) {
	t.Parallel()
	l := newLabIn(t, shm(t), t.TempDir())
	dir := t.TempDir()
	l.must(os.WriteFile(l.path("vda"), make([]byte, 1<<20), 0o600))
	vda := backup.DiskRequest{Disk: "vda", Path: l.path("vda"), Format: qcow2.Raw}
	req := l.cloned("c1", vda)
	by := &wrongCloner{copies: copies(dir)}
	req.Cloner = by
	l.remember("vm", "c1", vda)
	if notes := l.noted(req); !strings.Contains(notes, "which the next backup tries again") {
		t.Errorf("told: %q", notes)
	}
	left := testkit.Names(t, dir)
	if len(left) != 1 || l.intents("vm") != 1 {
		t.Fatalf("%d intents, copies %q", l.intents("vm"), left)
	}
	// Who can't release it says so, and goes on.
	if notes := l.noted(l.request("c2", vda)); !strings.Contains(notes, "release_command") || l.intents("vm") != 1 {
		t.Errorf("told: %q", notes)
	}
	by.releases = true
	req.Checkpoint = "c3"
	l.backupAs(req)
	if names := testkit.Names(t, dir); len(names) > 0 || l.intents("vm") != 0 || !slices.Contains(by.released, left[0]) {
		t.Errorf("%d intents, copies %q, released %q", l.intents("vm"), names, by.released)
	}
	l.restoreAll()
}

// What is no copy of the image as it is now is not read.
func TestCloneIsNoCopy(t *testing.T) {
	t.Parallel()
	l := newLabIn(t, shm(t), t.TempDir())
	dir := t.TempDir()
	l.create("vda", "32M")
	l.write("vda", "write -P 1 0 1M")
	older, err := os.ReadFile(l.path("vda"))
	l.must(err)
	for want, clone := range map[string]func(chain.IntentClone, *os.File) (*os.File, error){
		"bytes, and":   func(_ chain.IntentClone, f *os.File) (*os.File, error) { return f, os.Truncate(f.Name(), 65536) },
		"but the same": func(k chain.IntentClone, f *os.File) (*os.File, error) { f.Close(); return os.Open(k.Path) },
		"is no copy":   func(_ chain.IntentClone, f *os.File) (*os.File, error) { return f, overwrite(f.Name(), older) },
		"has 0 bytes":  func(_ chain.IntentClone, f *os.File) (*os.File, error) { f.Close(); return os.Open("/dev/null") },
	} {
		req := l.cloned("c1", l.disk("vda"))
		req.Cloner = &wrongCloner{copies: copies(dir), clone: clone, releases: true}
		if err := l.fails(req, backup.Hooks{}); !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
		if names := testkit.Names(t, dir); len(names) > 0 {
			t.Errorf("%s: copies %q are left", want, names)
		}
	}
	// auto reads the image under its locks then.
	req := l.request("c2", l.disk("vda"))
	req.Clone = backup.CloneAuto
	l.write("vda", "write -P 2 0 24M")
	req.Cloner = &wrongCloner{copies: copies(dir), releases: true, clone: func(_ chain.IntentClone, f *os.File) (*os.File, error) {
		return nil, errors.Join(errors.New("no copy today"), f.Close())
	}}
	if r := l.backupAs(req); r.Cloned || !strings.Contains(r.NotCloned, "no copy today") {
		t.Errorf("auto: %+v", r)
	}
	if names := testkit.Names(t, dir); len(names) > 0 || l.intents("vm") != 0 {
		t.Errorf("%d intents, copies %q are left", l.intents("vm"), names)
	}
	l.restoreAll()
}

// Where it is decided that nothing is cloned no command is run, not even to release.
func TestCloneNotWorthIt(t *testing.T) {
	t.Parallel()
	l := newLabIn(t, shm(t), t.TempDir())
	l.must(os.WriteFile(l.path("vda"), make([]byte, 1<<20), 0o600))
	req := l.request("c1", backup.DiskRequest{Disk: "vda", Path: l.path("vda"), Format: qcow2.Raw})
	req.Clone = backup.CloneAuto
	by := &wrongCloner{copies: copies(t.TempDir()), releases: true}
	req.Cloner = by
	r, err := l.run(req, begins(backup.StepRead, func() {
		if n := l.intents("vm"); n != 0 {
			t.Errorf("%d intents of what writes to no image", n)
		}
	}))
	l.must(err)
	if r.Cloned || r.NotCloned != "there is little to read" || len(by.released) > 0 {
		t.Errorf("released %q: %+v", by.released, r)
	}
}

// A snapshot of a device has nothing of what only the kernel's memory has.
func TestCloneOfWhatIsWritten(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.must(os.WriteFile(l.path("vda"), bytes.Repeat([]byte{1}, 1<<20), 0o600))
	before, after := l.dirty("vda"), int64(-1)
	req := l.cloned("c1", backup.DiskRequest{Disk: "vda", Path: l.path("vda"), Format: qcow2.Raw})
	req.Cloner = &wrongCloner{copies: copies(t.TempDir()), releases: true, clone: func(_ chain.IntentClone, f *os.File) (*os.File, error) {
		after = l.dirty("vda")
		return f, nil
	}}
	if r := l.backupAs(req); !r.Cloned {
		t.Errorf("%+v", r)
	}
	// Where the file system is one that never writes anything, or clones by itself, nothing is to be seen.
	f, err := os.Open(l.path("vda"))
	l.must(err)
	l.must(errors.Join(f.Sync(), f.Close()))
	if l.dirty("vda") == 0 && before > 0 && after > 0 {
		t.Errorf("%d KiB were not written when it was copied, and %d before", after, before)
	}
}

// dirty is how much of an image is in memory alone, KiB.
func (l *lab) dirty(name string) (kib int64) {
	l.t.Helper()
	f, err := os.Open(l.path(name))
	l.must(err)
	defer f.Close()
	st, err := f.Stat()
	l.must(err)
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	l.must(err)
	defer func() { l.must(unix.Munmap(m)) }()
	sum := byte(0)
	for i := 0; i < len(m); i += 4096 {
		sum += m[i]
	}
	runtime.KeepAlive(sum)
	maps, err := os.ReadFile("/proc/self/smaps")
	l.must(err)
	mine := false
	for line := range strings.Lines(string(maps)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.Contains(fields[0], "-") {
			mine = strings.HasPrefix(fields[0], fmt.Sprintf("%x-", uintptr(unsafe.Pointer(&m[0]))))
		}
		if mine && len(fields) == 3 && strings.HasSuffix(fields[0], "_Dirty:") {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			l.must(err)
			kib += n
		}
	}
	return kib
}

// overwrite puts the beginning of a file back, as an older snapshot has it.
func overwrite(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	return errors.Join(err, f.Close())
}
