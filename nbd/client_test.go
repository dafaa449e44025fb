// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/internal/zero"
)

// collect is what a context says, without the extents that have no flag.
func collect(t *testing.T, c *Client, name string, start, end int64) []Extent {
	t.Helper()
	var all []Extent
	pos := start
	for e, err := range c.Extents(context.Background(), name, start, end) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Start != pos || e.End <= pos {
			t.Fatalf("extent %v after %d", e, pos)
		}
		pos = e.End
		if e.Flags != 0 {
			all = append(all, e)
		}
	}
	if pos != end {
		t.Fatalf("the extents end at %d, not at %d", pos, end)
	}
	return all
}

func TestClientReadsOurServer(t *testing.T) {
	t.Parallel()
	w := serveIn(t, ServerOptions{})
	c := dial(t, w, ClientOptions{Export: "vda", Contexts: []string{BaseAllocation, DirtyBitmapPrefix + "monday", DirtyBitmapPrefix + "none"}})
	if c.Size() != diskSize || c.ReadOnly() || !slices.Equal(c.Contexts(), []string{BaseAllocation, DirtyBitmapPrefix + "monday"}) {
		t.Fatalf("size %d, read-only %v, contexts %v", c.Size(), c.ReadOnly(), c.Contexts())
	}
	got := make([]byte, diskSize)
	if err := c.ReadAt(context.Background(), got, 0); err != nil || !bytes.Equal(got, w.a.b) {
		t.Fatalf("the whole device: %v", err)
	}
	// Many at once, of all sizes and places.
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			n := 1 + (i*i*7919)%(5<<20)
			off := int64(i*524287) % (diskSize - int64(n))
			p := make([]byte, n)
			if err := c.ReadAt(context.Background(), p, off); err != nil || !bytes.Equal(p, w.a.b[off:off+int64(n)]) {
				t.Errorf("%d bytes at %d: %v", n, off, err)
			}
		})
	}
	wg.Wait()
	var want []Extent
	for r := range dirtyRuns() {
		want = append(want, Extent{r.Start, r.End, StateDirty})
	}
	if got := collect(t, c, DirtyBitmapPrefix+"monday", 0, diskSize); !slices.Equal(got, want) {
		t.Errorf("monday: %v", got)
	}
	if got := collect(t, c, DirtyBitmapPrefix+"monday", 5<<20+1, 5<<20+2); !slices.Equal(got, []Extent{{5<<20 + 1, 5<<20 + 2, StateDirty}}) {
		t.Errorf("a part of monday: %v", got)
	}
	for _, e := range collect(t, c, BaseAllocation, 0, diskSize) {
		if !zero.Is(w.a.b[e.Start:e.End]) || e.Flags != StateHole|StateZero {
			t.Errorf("%v is no hole", e)
		}
	}
	for _, r := range [][2]int64{{-1, 1}, {diskSize - 1, 2}, {diskSize + 1, 1}} {
		if err := c.ReadAt(context.Background(), make([]byte, r[1]), r[0]); err == nil {
			t.Errorf("%d bytes at %d: no error", r[1], r[0])
		}
	}
	w.a.damage(4<<20, 4<<20+1)
	var answer *ServerError
	if err := c.ReadAt(context.Background(), got, 0); !errors.As(err, &answer) || answer.Code != errnoIO ||
		answer.Text != "export vda: read of bytes 4194304 to 5242879: this part is damaged" {
		t.Errorf("damage: %v", err)
	}
	if err := c.ReadAt(context.Background(), got[:1<<20], 0); err != nil {
		t.Errorf("after damage elsewhere: %v", err)
	}
}

func TestClientReadsQemuNBD(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	image := filepath.Join(dir, "a.qcow2")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "5G")
	testkit.Tool(t, "qemu-io", image, "-c", "write -P 1 1M 3M", "-c", "write -P 2 4500M 1M")
	testkit.Tool(t, "qemu-img", "bitmap", "--add", image, "one")
	testkit.Tool(t, "qemu-io", image, "-c", "write -P 3 2M 64k", "-c", "write -P 4 5119M 1M")
	testkit.Tool(t, "qemu-img", "bitmap", "--add", image, "two")
	testkit.Tool(t, "qemu-io", image, "-c", "write -z 1M 64k")
	socket := testkit.StartNBD(t, "-r", "-f", "qcow2", "-B", "one", "-B", "two", "-x", "disk", image).Socket
	c, err := Dial(context.Background(), "unix", socket, ClientOptions{Export: "disk",
		Contexts: []string{"qemu:dirty-bitmap:one", "qemu:dirty-bitmap:two", BaseAllocation}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Size() != 5<<30 || !c.ReadOnly() || len(c.Contexts()) != 3 {
		t.Fatalf("size %d, read-only %v, contexts %v", c.Size(), c.ReadOnly(), c.Contexts())
	}
	if got := collect(t, c, "qemu:dirty-bitmap:one", 0, 5<<30); !slices.Equal(got,
		[]Extent{{1 << 20, 1<<20 + 64<<10, 1}, {2 << 20, 2<<20 + 64<<10, 1}, {5119 << 20, 5120 << 20, 1}}) {
		t.Errorf("one: %v", got)
	}
	if got := collect(t, c, "qemu:dirty-bitmap:two", 0, 5<<30); !slices.Equal(got, []Extent{{1 << 20, 1<<20 + 64<<10, 1}}) {
		t.Errorf("two: %v", got)
	}
	data := bitmapstore.Of(bitmapstore.Run{Start: 0, End: 5 << 30})
	var holes []bitmapstore.Run
	for _, e := range collect(t, c, BaseAllocation, 0, 5<<30) {
		holes = append(holes, bitmapstore.Run{Start: e.Start, End: e.End})
	}
	left, err := bitmapstore.Subtract(data, bitmapstore.Of(holes...)).Collect()
	want := []bitmapstore.Run{{Start: 1<<20 + 64<<10, End: 4 << 20}, {Start: 4500 << 20, End: 4501 << 20}, {Start: 5119 << 20, End: 5120 << 20}}
	if err != nil || !slices.Equal(left, want) {
		t.Errorf("data: %v, %v", left, err)
	}
	got := make([]byte, 9<<20)
	if err := c.ReadAt(context.Background(), got, 0); err != nil {
		t.Fatal(err)
	}
	expect := make([]byte, 9<<20)
	copy(expect[1<<20:], bytes.Repeat([]byte{1}, 3<<20))
	clear(expect[1<<20 : 1<<20+64<<10])
	copy(expect[2<<20:], bytes.Repeat([]byte{3}, 64<<10))
	if !bytes.Equal(got, expect) {
		t.Error("the content differs")
	}
}

// A server without structured replies, and one that has a smallest block.
func TestClientReadsNbdkit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	raw := filepath.Join(dir, "raw")
	content := pattern(5 << 20)
	if err := os.WriteFile(raw, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"--no-sr", "file", raw},
		{"--filter=blocksize-policy", "file", raw, "blocksize-minimum=4096", "blocksize-maximum=131072", "blocksize-preferred=4096", "blocksize-error-policy=error"},
	} {
		a, b := net.Pipe()
		cmd := exec.Command("nbdkit", append([]string{"-s", "--exit-with-parent"}, args...)...)
		cmd.Stdin, cmd.Stdout = b, b
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		c, err := NewClient(context.Background(), a, ClientOptions{Contexts: []string{BaseAllocation}})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range [][2]int64{{0, 5 << 20}, {1, 1}, {4095, 2}, {131071, 131074}, {5<<20 - 1, 1}, {70000, 3 << 20}} {
			p := make([]byte, r[1])
			if err := c.ReadAt(context.Background(), p, r[0]); err != nil || !bytes.Equal(p, content[r[0]:r[0]+r[1]]) {
				t.Errorf("%v: %d bytes at %d: %v", args, r[1], r[0], err)
			}
		}
		c.Close()
		b.Close()
		cmd.Wait()
	}
}
