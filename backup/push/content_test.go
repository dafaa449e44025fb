// SPDX-License-Identifier: Apache-2.0

package push

import (
	"bytes"
	"crypto/sha256"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/qcow2"
)

func digest(p []byte) [sha256.Size]byte { return sha256.Sum256(p) }

// onDisk is how many bytes a file takes up.
func (l *lab) onDisk(name string) int64 {
	l.t.Helper()
	var st unix.Stat_t
	l.must(unix.Stat(l.path(name), &st))
	return st.Blocks * 512
}

// A full push is sparse: what is not allocated, what is known to be zeros, and
// blocks of zeros within data take no room.
func TestFullIsSparse(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.tool("qemu-img", "create", "-q", "-f", "qcow2", "a", "1G")
	l.write("a", "write -P 1 64k 64k", "write -z 10M 5M", "write -P 0 100M 3M", "write -P 2 1023M 64k")
	for _, format := range bothFormats {
		res := l.push(l.request("a"), l.targets(format, "x"), Options{})
		l.same("x", format, "a", qcow2.Qcow2)
		if n := l.onDisk("x"); n > 1<<20 {
			t.Errorf("%s: %d bytes on disk", format, n)
		}
		if d := res.Disks[0]; d.Data+d.Zero != 1<<30 || d.Data > 4<<20 {
			t.Errorf("%s: %+v", format, d)
		}
		l.must(os.Remove(l.path("x")))
	}
}

// A new raw file of an incremental holds what changed, and zeros.
func TestIncrementalRaw(t *testing.T) {
	t.Parallel()
	l := twoDisks(t)
	req := l.request("a")
	req.Checkpoint = "c1"
	l.push(req, l.targets(qcow2.Raw, "full"), Options{})
	l.write("a", "write -P 7 256k 64k", "write -z 16k 8k", "write -P 8 1020k 4k")
	req.Checkpoint, req.Mode, req.Since = "", backup.Incremental, "c1"
	l.push(req, l.targets(qcow2.Raw, "inc"), Options{})
	want := make([]byte, 1<<20)
	copy(want[256<<10:], bytes.Repeat([]byte{7}, 64<<10))
	copy(want[1020<<10:], bytes.Repeat([]byte{8}, 4<<10))
	got, err := os.ReadFile(l.path("inc"))
	l.must(err)
	if !bytes.Equal(got, want) {
		t.Error("it holds something else")
	}
	if n := l.onDisk("inc"); n > 128<<10 {
		t.Errorf("%d bytes on disk", n)
	}
}

// Force replaces a file, and one disk may be incremental while another is full.
func TestModesPerDisk(t *testing.T) {
	t.Parallel()
	l := twoDisks(t)
	req := l.request("a", "b")
	req.Checkpoint = "c1"
	l.push(req, l.targets(qcow2.Qcow2, "a0", "b0"), Options{})
	l.write("a", "write -P 7 256k 64k")
	l.write("b", "discard 1M 64k", "write -P 9 2900k 100k")
	req.Checkpoint = "c2"
	req.Disks[0].Mode, req.Disks[0].Since = backup.Incremental, "c1"
	req.Disks[1].Mode = backup.Full
	l.must(os.WriteFile(l.path("b1"), []byte("old"), 0o640))
	res := l.push(req, l.targets(qcow2.Qcow2, "a1", "b1"), Options{Force: true})
	if a, b := res.Plan.Disks[0], res.Plan.Disks[1]; a.Mode != backup.Incremental || a.Since.Name != "c1" || b.Mode != backup.Full {
		t.Errorf("%+v, %+v", a, b)
	}
	l.same("b1", qcow2.Qcow2, "b", qcow2.Qcow2)
	l.tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "a0", "-F", "qcow2", "a1")
	l.same("a1", qcow2.Qcow2, "a", qcow2.Qcow2)
	// Both go on from c2, each on its own.
	l.write("a", "write -P 5 0 4k")
	l.write("b", "write -z 1M 640k")
	req.Checkpoint = ""
	for i := range req.Disks {
		req.Disks[i].Mode, req.Disks[i].Since = backup.Incremental, "c2"
	}
	targets := l.targets(qcow2.Qcow2, "a2", "b2")
	targets[0].Backing = &qcow2.CreateBacking{File: "a1", Format: qcow2.Qcow2}
	targets[1].Backing = &qcow2.CreateBacking{File: l.path("b1"), Format: qcow2.Qcow2}
	l.push(req, targets, Options{})
	for i, image := range []string{"a", "b"} {
		l.same(image+"2", qcow2.Qcow2, image, qcow2.Qcow2)
		l.clean(image + "2")
		if fi, err := os.Stat(targets[i].Path); err != nil || fi.Size() > 1<<20 {
			t.Errorf("%s2 is no increment: %v", image, err)
		}
	}
	l.onlyImages("a", "a0", "a1", "a2", "b", "b0", "b1", "b2")
}

// A source whose image is raw, of a size that no cluster divides.
func TestRawSource(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	content := bytes.Repeat([]byte("content."), 20000)
	l.must(os.WriteFile(l.path("a.raw"), content[:100*512+7], 0o600))
	req := l.request("a.raw")
	req.Disks[0].Format = qcow2.Raw
	l.push(req, l.targets(qcow2.Qcow2, "x"), Options{})
	l.same("x", qcow2.Qcow2, "a.raw", qcow2.Raw)
	l.clean("x")
	l.push(req, l.targets(qcow2.Raw, "y"), Options{})
	if got, err := os.ReadFile(l.path("y")); err != nil || !bytes.Equal(bytes.TrimRight(got, "\x00"), content[:100*512+7]) || len(got) != 101*512 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
