// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/restore"
)

// failing is a file of which some ranges cannot be read.
type failing struct {
	*os.File
	bad  []bitmapstore.Run
	hits atomic.Int64
}

func (f *failing) ReadAt(_ context.Context, p []byte, off int64) error {
	for _, b := range f.bad {
		if off < b.End && b.Start < off+int64(len(p)) {
			f.hits.Add(1)
			return unix.EIO
		}
	}
	_, err := f.File.ReadAt(p, off)
	return err
}

// failingFile is a path of a file of the kernel's that reads as the image does, and gives
// an I/O error wherever a page has any of the bad ranges.
func (l *lab) failingFile(name string, bad ...bitmapstore.Run) (string, *failing) {
	l.t.Helper()
	dir := l.t.TempDir()
	file, err := os.Open(l.path(name))
	l.must(err)
	l.t.Cleanup(func() { _ = file.Close() })
	st, err := file.Stat()
	l.must(err)
	dev := &failing{File: file, bad: bad}
	server, err := nbd.NewServer([]nbd.Export{{Name: "x", Size: st.Size(), Device: dev}}, nbd.ServerOptions{})
	l.must(err)
	socket, mount, ready := filepath.Join(dir, "s"), filepath.Join(dir, "mnt"), filepath.Join(dir, "ready")
	listener, err := nbd.ListenUnix(l.t.Context(), socket)
	l.must(err)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	l.must(os.Mkdir(mount, 0o700))
	l.must(unix.Mkfifo(ready, 0o600))
	cmd := exec.CommandContext(l.t.Context(), "nbdfuse", "-r", "-P", ready, filepath.Join(mount, name), "nbd+unix:///x?socket="+socket)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	var log bytes.Buffer
	cmd.Stderr = &log
	started, gone := sys.StartChild(cmd)
	l.must(<-started)
	ended := make(chan error, 1)
	go func() {
		ended <- <-gone
		// Not to wait for ever for one that never gets ready.
		if f, err := os.OpenFile(ready, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
			_ = f.Close()
		}
	}()
	if pid, err := os.ReadFile(ready); err != nil || len(pid) == 0 {
		l.t.Fatalf("nbdfuse did not get ready: %v, %s", err, log.String())
	}
	l.t.Cleanup(func() {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			l.t.Error(err)
		}
		<-ended
		stop()
		<-served
	})
	return filepath.Join(mount, name), dev
}

// restoreLost restores what is left of a checkpoint, and returns it with what is lost.
func (l *lab) restoreLost(checkpoint string) ([]byte, []chain.Lost) {
	l.t.Helper()
	out := filepath.Join(l.t.TempDir(), "out")
	r, err := restore.Run(l.t.Context(), l.repo, l.manifest(checkpoint), []restore.Target{{Disk: "vda", Path: out, Format: qcow2.Raw}},
		restore.Options{SkipDamaged: true, Verify: true})
	l.must(err)
	data, err := os.ReadFile(out)
	l.must(err)
	return data, r.Disks[0].Lost
}

// Of an image with bad sectors all is stored that can be read, to the page; the rest is
// zeros, and said to be lost. The next backup has it.
func TestSalvage(t *testing.T) {
	t.Parallel()
	for _, format := range []qcow2.Format{qcow2.Raw, qcow2.Qcow2} {
		t.Run(string(format), func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.img("create", "-q", "-f", string(format), "vda", "8M")
			l.writeAs(string(format), "vda", "write -P 5 0 2M", "write -P 6 3M 3M")
			shift := int64(0) // of guest data in the file
			if format == qcow2.Qcow2 {
				shift = 5 << 16
			}
			want := l.guest("vda", format)
			bad := []bitmapstore.Run{{Start: 1<<20 - 100, End: 1<<20 + 5000}, {Start: 1<<20 + 40960, End: 1<<20 + 40961}}
			path, dev := l.failingFile("vda", bitmapstore.Run{Start: bad[0].Start + shift, End: bad[0].End + shift},
				bitmapstore.Run{Start: bad[1].Start + shift, End: bad[1].End + shift})
			req := l.request("c1", backup.DiskRequest{Disk: "vda", Path: path, Format: format})
			if err := l.fails(req, backup.Hooks{}); !strings.Contains(err.Error(), "--salvage") {
				t.Errorf("the error does not name the flag: %v", err)
			}
			req.Salvage = true
			if dev.hits.Load() == 0 {
				t.Fatal("the fault was not met")
			}
			r, err := l.run(req, backup.Hooks{})
			l.must(err)
			lost := r.Manifest.Disks[0].Lost
			if len(lost) != 2 || lost[0].Offset != 1<<20-4096 || lost[0].Length != 3*4096 || lost[1].Offset != 1<<20+40960 || lost[1].Length != 4096 {
				t.Fatalf("lost %+v", lost)
			}
			got, listed := l.restoreLost("c1")
			if len(listed) != 2 || listed[0] != lost[0] || listed[1] != lost[1] {
				t.Errorf("restored with %+v lost", listed)
			}
			for _, x := range lost {
				clear(want[x.Offset:x.End()])
			}
			if !bytes.Equal(got, want) {
				t.Error("what is not lost is not what it was")
			}
			if _, err := restore.Run(t.Context(), l.repo, r.Manifest, []restore.Target{{Disk: "vda", Path: l.path("no"), Format: qcow2.Raw}}, restore.Options{}); err == nil {
				t.Error("it restores as if it were whole")
			}
			// The same again, as an increment by content: what is lost is lost.
			req.Checkpoint = "c2"
			r, err = l.run(req, backup.Hooks{})
			l.must(err)
			if d := r.Manifest.Disks[0]; len(d.Lost) != 2 || d.Detection != string(backup.ByContent) {
				t.Errorf("by %s, lost %+v", d.Detection, d.Lost)
			}
			// And from a disk that can be read again.
			l.backup("c3", backup.DiskRequest{Disk: "vda", Path: l.path("vda"), Format: format})
			if n := l.manifest("c3").LostBytes(); n != 0 {
				t.Errorf("%d bytes of c3 are lost", n)
			}
			l.restoreAll()
		})
	}
}

// guest is what QEMU reads of a disk.
func (l *lab) guest(name string, format qcow2.Format) []byte {
	l.t.Helper()
	raw := filepath.Join(l.t.TempDir(), "raw")
	l.img("convert", "-f", string(format), "-O", "raw", name, raw)
	data, err := os.ReadFile(raw)
	l.must(err)
	return data
}

// A page of a table that cannot be read takes what it maps, and no more.
func TestSalvageTable(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "96M", "-o", "cluster_size=64k")
	l.write("vda", "write -P 5 0 1M", "write -P 6 40M 1M", "write -P 7 80M 1M")
	want := l.guest("vda", qcow2.Qcow2)
	// The one L2 table is cluster 4; the second page of it maps from 32 MiB on.
	path, dev := l.failingFile("vda", bitmapstore.Run{Start: 4<<16 + 4096, End: 4<<16 + 8192})
	req := l.request("c1", backup.DiskRequest{Disk: "vda", Path: path, Format: qcow2.Qcow2})
	req.Salvage = true
	r, err := l.run(req, backup.Hooks{})
	l.must(err)
	if dev.hits.Load() == 0 {
		t.Fatal("the fault was not met")
	}
	lost := r.Manifest.Disks[0].Lost
	if len(lost) != 1 || lost[0].Offset != 32<<20 || lost[0].Length != 32<<20 {
		t.Fatalf("lost %+v", lost)
	}
	got, _ := l.restoreLost("c1")
	clear(want[32<<20 : 64<<20])
	if !bytes.Equal(got, want) {
		t.Error("what is not lost is not what it was")
	}
}

// What a checkpoint has lost is read again, though nothing was written since; and it is
// not what convicts the bitmap.
func TestLostIsReadAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "8M")
	l.write("vda", "write -P 1 0 4M")
	l.backup("c1", l.disk("vda"))
	l.doctor("c1", func(m *chain.Manifest) {
		m.Disks[0].Lost = []chain.Lost{{Offset: 1 << 20, Length: 64 << 10, Reason: "gone"}, {Offset: 3<<20 + 512, Length: 512, Reason: "gone"}}
	})
	l.write("vda", "write -P 2 2M 64k")
	d := l.trusted(l.backup("c2", l.disk("vda")), "c1")
	if d.DirtyBytes != 128<<10+512 || len(d.Lost) != 0 {
		t.Errorf("%d bytes are dirty, lost %+v", d.DirtyBytes, d.Lost)
	}
	l.taken = l.taken[1:] // c1 is not whole
	l.restoreAll()
	l.write("vda", "write -P 3 2M 64k")
	l.backup("c3", l.disk("vda"))
	// Since the older one, too, along the line.
	l.doctor("c1", func(m *chain.Manifest) { m.Disks[0].Bitmap, m.Disks[0].Granularity = "", 0 })
	req := l.request("c4", l.disk("vda"))
	req.Disks[0].Since = "c1"
	r := l.backupAs(req)
	d = l.expect(r, "vda", backup.Incremental, backup.ByBitmap, trust.ReasonTrusted)
	if d.IncrementalFrom.Name != "c1" || d.DirtyBytes < 128<<10+512 {
		t.Errorf("since %v, %d bytes are dirty", d.IncrementalFrom, d.DirtyBytes)
	}
	l.restoreAll()
}
