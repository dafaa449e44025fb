// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/qcow2"
)

func TestNames(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxName)
	for _, c := range []struct {
		names []Names
		wrong string // empty: they can be offered
	}{
		{[]Names{{Disk: "vda"}, {Disk: "vdb"}}, ""},
		{[]Names{{Disk: "vda", Export: "vdb"}, {Disk: "vdb", Export: "vda"}}, ""},
		{[]Names{{Disk: "vda", Bitmap: "b"}, {Disk: "vdb", Bitmap: "b"}}, ""}, // each export has its own
		{[]Names{{Disk: "vda", Export: long}}, ""},
		{[]Names{{Disk: "vda", Export: "vdb"}, {Disk: "vdb"}}, "disks vda and vdb"},
		{[]Names{{Disk: "vda", Export: "one"}, {Disk: "vdb", Export: "one"}}, "disks vda and vdb"},
		{[]Names{{Disk: "vda", Export: long + "x"}}, "disk vda"},
		{[]Names{{Disk: "vda", Bitmap: long}}, "disk vda"}, // with its prefix it is too long
		{[]Names{{Disk: "vda", Export: "a\x00b"}}, "disk vda"},
		{[]Names{{Disk: "vda", Bitmap: "\xff"}}, "disk vda"},
	} {
		err := Check(c.names)
		var wrong *usage.Error
		if c.wrong == "" && err != nil || c.wrong != "" && (!errors.As(err, &wrong) || !strings.Contains(err.Error(), c.wrong)) {
			t.Errorf("%.100v: %v", c.names, err)
		}
	}
}

const size = 8 << 20

// chainOf makes an overlay over a base: data, zeros, compressed clusters and holes in
// both.
func chainOf(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	base, top := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "top.qcow2")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", base, "8M")
	testkit.Guest(t, base, "write -P 1 0 1M", "write -c -P 2 1M 64k", "write -z 2M 1M", "write -P 3 6M 512k")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=128k", "-b", base, "-F", "qcow2", top)
	testkit.Guest(t, top, "write -P 4 512k 128k", "write -z 6M 128k", "write -P 5 2M 128k")
	return top
}

// opened is an image as the engine hands it out.
func opened(t *testing.T, path string, format qcow2.Format, p *backup.DiskPlan, changes bitmapstore.Runs) backup.OpenDisk {
	t.Helper()
	image, err := qcow2.Open(path, format, qcow2.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := image.Close(); err != nil {
			t.Error(err)
		}
	})
	p.VirtualSize = image.Size()
	return backup.OpenDisk{Plan: p, Image: image, Changes: changes}
}

// connect serves offers to one client.
func connect(t *testing.T, offers Offers, o nbd.ClientOptions) *nbd.Client {
	t.Helper()
	server, err := nbd.NewServer(offers.Exports(), nbd.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "pull") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	listener, err := nbd.ListenUnix(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	client, err := nbd.Dial(t.Context(), "unix", socket, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() }) // the server may be gone
	return client
}

// A full disk is offered under its name and reads, through its whole backing chain, as
// QEMU reads it; what is a hole and what is zero is what QEMU says, too.
func TestFull(t *testing.T) {
	t.Parallel()
	path := chainOf(t)
	raw := filepath.Join(t.TempDir(), "raw")
	testkit.Tool(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	disk := opened(t, path, qcow2.Qcow2, &backup.DiskPlan{Disk: "vda", Mode: backup.Full}, nil)
	offers, err := New(t.Context(), []backup.OpenDisk{disk}, nil, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(offers.Close) // when the server has ended
	o := offers[0]
	if o.Export.Name != "vda" || o.Context != "" || o.Changed != size || !o.Export.ReadOnly || len(o.Export.Contexts) != 1 || o.Export.BlockSize != 128<<10 {
		t.Errorf("%+v", o)
	}
	c := connect(t, offers, nbd.ClientOptions{Export: "vda", Contexts: []string{nbd.BaseAllocation}})
	got := make([]byte, size)
	for off := 0; off < size; off += 1 << 20 {
		if err := c.ReadAt(t.Context(), got[off:off+1<<20], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("it reads otherwise than QEMU reads it")
	}
	var mapped []struct {
		Start, Length   int64
		Zero, Data      bool
		Present         bool
		Depth, Filename any
	}
	if err := json.Unmarshal([]byte(testkit.Tool(t, "qemu-img", "map", "--output=json", "-f", "qcow2", path)), &mapped); err != nil {
		t.Fatal(err)
	}
	qemu := make([]uint32, size/512)
	for _, m := range mapped {
		for at := m.Start; at < m.Start+m.Length; at += 512 {
			if m.Zero {
				qemu[at/512] |= nbd.StateZero
			}
			if !m.Present {
				qemu[at/512] |= nbd.StateHole
			}
		}
	}
	pos := int64(0)
	for e, err := range c.Extents(t.Context(), nbd.BaseAllocation, 0, size) {
		if err != nil || e.Start != pos {
			t.Fatalf("%+v after %d: %v", e, pos, err)
		}
		for at := e.Start; at < e.End; at += 512 {
			if qemu[at/512] != e.Flags {
				t.Fatalf("at %d: flags %d, QEMU says %d", at, e.Flags, qemu[at/512])
			}
		}
		pos = e.End
	}
	if pos != size {
		t.Errorf("the extents end at %d", pos)
	}
}

// An incremental disk says what changed, under the names that were asked for; others
// beside it are as they are by themselves.
func TestIncremental(t *testing.T) {
	t.Parallel()
	path := chainOf(t)
	raw := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(raw, bytes.Repeat([]byte{6}, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	changes := bitmapstore.Of(bitmapstore.Run{Start: 64 << 10, End: 128 << 10}, bitmapstore.Run{Start: size - 512, End: size})
	since := &chain.CheckpointRef{Name: "monday"}
	sources := []backup.OpenDisk{
		opened(t, path, qcow2.Qcow2, &backup.DiskPlan{Disk: "vda", Mode: backup.Incremental, Since: since}, changes),
		opened(t, raw, qcow2.Raw, &backup.DiskPlan{Disk: "vdb", Mode: backup.Incremental, Since: since}, bitmapstore.Of()),
		opened(t, raw, qcow2.Raw, &backup.DiskPlan{Disk: "vdc", Mode: backup.Full}, nil),
	}
	offers, err := New(t.Context(), sources, []Names{{Disk: "vda", Export: "root", Bitmap: "since"}}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(offers.Close) // when the server has ended
	for i, want := range []struct {
		export, context string
		changed, block  int64
	}{
		{"root", "qemu:dirty-bitmap:since", 64<<10 + 512, 128 << 10},
		{"vdb", "qemu:dirty-bitmap:backup-vdb", 0, 64 << 10},
		{"vdc", "", 1 << 20, 64 << 10},
	} {
		o := offers[i]
		if o.Export.Name != want.export || o.Context != want.context || o.Changed != want.changed || o.Export.BlockSize != want.block {
			t.Errorf("disk %d: %+v", i, o)
		}
		if says := strings.Contains(o.Export.Description, "since monday"); says != (want.context != "") {
			t.Errorf("disk %d is described as %q", i, o.Export.Description)
		}
	}
	c := connect(t, offers, nbd.ClientOptions{Export: "root", Contexts: []string{"qemu:dirty-bitmap:since"}})
	var dirty []bitmapstore.Run
	for e, err := range c.Extents(t.Context(), "qemu:dirty-bitmap:since", 0, size) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Flags&nbd.StateDirty != 0 {
			dirty = append(dirty, bitmapstore.Run{Start: e.Start, End: e.End})
		}
	}
	if same, err := bitmapstore.Equal(bitmapstore.Of(dirty...), changes); err != nil || !same {
		t.Errorf("dirty are %v: %v", dirty, err)
	}
	// A part is asked for by itself, too.
	for e, err := range c.Extents(t.Context(), "qemu:dirty-bitmap:since", size-4096, size) {
		if want := e.Start >= size-512; err != nil || want != (e.Flags&nbd.StateDirty != 0) {
			t.Errorf("%+v: %v", e, err)
		}
	}
}

// What cannot be found out is an error about its disk, and leaves nothing behind.
func TestFailure(t *testing.T) {
	t.Parallel()
	path := chainOf(t)
	since := &chain.CheckpointRef{Name: "monday"}
	broken := errors.New("the bitmap cannot be read")
	sources := []backup.OpenDisk{
		opened(t, path, qcow2.Qcow2, &backup.DiskPlan{Disk: "vda", Mode: backup.Incremental, Since: since}, bitmapstore.Of(bitmapstore.Run{Start: 0, End: 512})),
		opened(t, path, qcow2.Qcow2, &backup.DiskPlan{Disk: "vdb", Mode: backup.Incremental, Since: since}, bitmapstore.Fail(broken)),
	}
	temp := t.TempDir()
	_, err := New(t.Context(), sources, nil, temp)
	var about *chain.DiskError
	if !errors.Is(err, broken) || !errors.As(err, &about) || about.Disk != "vdb" {
		t.Errorf("%v", err)
	}
	if left := testkit.Names(t, temp); len(left) != 0 {
		t.Errorf("%q is left", left)
	}
}
