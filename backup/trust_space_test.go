// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qcow2"
)

// A full file system under the image: qemu-img would lose all bitmaps, so it is
// not let near it, and the disk is backed up without a new one. What is nothing
// but bitmaps is refused.
func TestTrustFullFileSystem(t *testing.T) {
	t.Parallel()
	if !testkit.InNamespace(t, 0) {
		return
	}
	l := newLabOn(t, 16)
	twoCheckpoints(l)
	next := 3
	for _, free := range []int64{0, 512 << 10} {
		l.fill(free)
		l.unchanged(func() {
			if _, err := backup.Record(t.Context(), l.repo, l.request("k", l.disk("vda")), backup.Hooks{}); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("%d bytes are free, checkpoint: %v", free, err)
			}
		})
		for _, mode := range []backup.Mode{backup.Auto, backup.Incremental, backup.Full} {
			req := l.request(fmt.Sprintf("c%d", next), l.disk("vda"))
			req.Mode = mode
			next++
			r := l.withoutBitmap(req, "no space left")
			if mode == backup.Full {
				l.expect(r, "vda", backup.Full, backup.ByNothing, trust.ReasonRequested)
			} else if d, _ := r.Manifest.Disk("vda"); l.trusted(r, "c2") != d || !strings.Contains(d.NoBitmapReason, "what changed since c2 once more") {
				t.Errorf("what it costs: %s", d.NoBitmapReason)
			}
		}
	}
	l.must(os.Remove(l.path("filler")))
	if d := l.trusted(l.backup("last", l.disk("vda")), "c2"); d.Bitmap == "" {
		t.Errorf("there is room again, and no bitmap was added: %s", d.NoBitmapReason)
	}
	l.restoreAll()
}

// The file system is full only when the bitmap is to be added: that is seen before
// qemu-img, which would lose all bitmaps, comes to it.
func TestTrustFileSystemFillsUp(t *testing.T) {
	t.Parallel()
	if !testkit.InNamespace(t, 0) {
		return
	}
	l := newLabOn(t, 16)
	twoCheckpoints(l)
	l.remember("vm", "c3", l.disk("vda"))
	bitmaps := l.bitmaps("vda")
	filled := false
	r, err := l.run(l.request("c3", l.disk("vda")), backup.Hooks{Step: func(name string) {
		if name == backup.StepAdd {
			filled = true
			l.fill(0)
		}
	}})
	if err != nil || !filled {
		t.Fatalf("filled %v: %v", filled, err)
	}
	if d := l.trusted(r, "c2"); d.Bitmap != "" || !strings.Contains(d.NoBitmapReason, "no space left") {
		t.Errorf("bitmap %q, %q", d.Bitmap, d.NoBitmapReason)
	}
	if after := l.bitmaps("vda"); !slices.Equal(after, bitmaps) {
		t.Errorf("the bitmaps are %+v, and were %+v", after, bitmaps)
	}
	l.must(os.Remove(l.path("filler")))
	l.trusted(l.backup("c4", l.disk("vda")), "c2")
	l.restoreAll()
}

// Two images on a file system that has room for the bitmap of each, and not of both:
// one of them gets it, and neither loses any.
func TestTrustRoomForOneOfTwo(t *testing.T) {
	t.Parallel()
	if !testkit.InNamespace(t, 0) {
		return
	}
	l := newLabOn(t, 32)
	var disks []backup.DiskRequest
	for _, name := range []string{"vda", "vdb"} {
		l.create(name, "4M")
		l.write(name, "write -P 1 0 2M")
		d := l.disk(name)
		d.Disk = name
		disks = append(disks, d)
	}
	l.backup("c1", disks...)
	for _, name := range []string{"vda", "vdb"} {
		l.write(name, "write -P 2 1M 64k")
	}
	room := func(name string) error {
		return qcow2.WithTopLayer(l.path(name), func(layer *qcow2.Layer) error { return layer.CheckRoom(layer.BitmapGranularity()) })
	}
	// The least that suffices for one.
	const block = 4096
	least := sort.Search(2048, func(blocks int) bool {
		l.fill(int64(blocks) * block)
		return errors.Join(room("vda"), room("vdb")) == nil
	})
	l.fill(int64(least) * block)
	if err := errors.Join(room("vda"), room("vdb")); err != nil || least == 0 {
		t.Fatalf("%d blocks are free: %v", least, err)
	}
	r := l.backup("c2", disks...)
	with := 0
	for _, name := range []string{"vda", "vdb"} {
		d, ok := r.Manifest.Disk(name)
		switch {
		case !ok:
			t.Fatalf("%s is not in the manifest", name)
		case d.Bitmap != "":
			with++
			l.holds(name, "c1", "c2")
		case !strings.Contains(d.NoBitmapReason, "no space left"):
			t.Errorf("%s: %s", name, d.NoBitmapReason)
		default:
			l.holds(name, "c1")
		}
	}
	if with != 1 {
		t.Errorf("%d of two images got a bitmap", with)
	}
	l.must(os.Remove(l.path("filler")))
	l.backup("c3", disks...)
	l.restoreAll()
}

// newLabOn keeps the images on a file system of so many MiB of its own. The test
// must be in a namespace, as root.
func newLabOn(t *testing.T, mib int) *lab {
	t.Helper()
	images := t.TempDir()
	testkit.Mount(t, "tmpfs", images, "tmpfs", 0, fmt.Sprintf("size=%dm", mib))
	return newLabIn(t, images, t.TempDir())
}

// fill leaves so many bytes free under the images.
func (l *lab) fill(free int64) {
	l.t.Helper()
	f, err := os.Create(l.path("filler"))
	l.must(err)
	var end int64
	for chunk := make([]byte, 64<<10); ; {
		n, err := f.Write(chunk)
		end += int64(n)
		if err != nil {
			break
		}
	}
	l.must(f.Truncate(end - free))
	l.must(f.Close())
}

// withoutBitmap backs up, and checks that the disk vda got no bitmap for the given
// reason, which is told, and that the images are as they were.
func (l *lab) withoutBitmap(req backup.Request, why string) *backup.Result {
	l.t.Helper()
	images := l.state(l.images)
	r := l.backupAs(req)
	if l.state(l.images) != images {
		l.t.Errorf("%s: the images were written to", req.Checkpoint)
	}
	d, _ := r.Manifest.Disk("vda")
	if d.Bitmap != "" || !strings.Contains(d.NoBitmapReason, why) || !strings.Contains(d.NoBitmapReason, "the next backup has to read") {
		l.t.Errorf("%s: bitmap %q, %q", req.Checkpoint, d.Bitmap, d.NoBitmapReason)
	}
	if !slices.ContainsFunc(r.Notes, func(note string) bool { return strings.Contains(note, d.NoBitmapReason) }) {
		l.t.Errorf("%s: nothing is said of it: %q", req.Checkpoint, r.Notes)
	}
	return r
}

// An image that must not be written to is read all the same, whether that is
// known before or only qemu-img finds out.
func TestTrustReadOnlyImage(t *testing.T) {
	t.Parallel()
	if !testkit.InNamespace(t, 1000) {
		return
	}
	l := newLab(t)
	twoCheckpoints(l)
	l.remember("vm", "c3", l.disk("vda"))
	images := ""
	r, err := l.run(l.request("c3", l.disk("vda")), backup.Hooks{Step: func(name string) {
		if name == backup.StepAdd {
			l.must(os.Chmod(l.path("vda"), 0o444))
			images = l.state(l.images)
		}
	}})
	if err != nil || images == "" {
		t.Fatalf("%v (images: %s)", err, images)
	}
	d := l.trusted(r, "c2")
	if d.Bitmap != "" || !strings.Contains(d.NoBitmapReason, "Permission denied") || !strings.Contains(d.NoBitmapReason, "what changed since c2 once more") {
		t.Errorf("bitmap %q, %q", d.Bitmap, d.NoBitmapReason)
	}
	if len(r.Notes) != 1 || !strings.Contains(r.Notes[0], d.NoBitmapReason) {
		t.Errorf("notes: %q", r.Notes)
	}
	if l.state(l.images) != images {
		t.Error("the image was written to")
	}
	if intents, damaged, err := l.repo.Intents(t.Context(), "vm"); len(intents)+len(damaged) != 0 || err != nil {
		t.Errorf("intents are left: %v, %v, %v", intents, damaged, err)
	}

	l.unchanged(func() {
		if _, err := backup.Record(t.Context(), l.repo, l.request("k", l.disk("vda")), backup.Hooks{}); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("checkpoint: got %v, want a permission error", err)
		}
	})
	req := l.request("c4", l.disk("vda"))
	req.ReadUnchanged = true // on a slow machine times have settled since
	l.trusted(l.withoutBitmap(req, "permission denied"), "c2")
	req.Checkpoint, req.NoCheckpoint = "c5", true
	if d := l.trusted(l.backupAs(req), "c2"); d.NoBitmapReason != "no bitmap was wanted (--no-checkpoint)" {
		t.Errorf("no bitmap was wanted, and it says %q", d.NoBitmapReason)
	}
	if l.state(l.images) != images {
		t.Error("the image was written to")
	}
	l.restoreAll()
}
