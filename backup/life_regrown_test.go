// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/restore"
)

// A disk whose clusters are larger than a bitmap's granule shrinks and grows
// again: what was written behind the cut, in the cluster of the cut, is there
// again, and its marks are not.
func TestDataThatCameBack(t *testing.T) {
	t.Parallel()
	for i := range 8 { // samples alone would find some of these
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			l := newLife(t, uint64(i), nil, &tally{counts: make(map[string]int)})
			d := &lifeDisk{target: "vda", cluster: 2 << 20, tampered: make(map[string]bool)}
			l.disks = []*lifeDisk{d}
			d.path, d.format = l.newFile("qcow2"), "qcow2"
			l.must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", d.path, "32M")
			l.must("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 20M", d.path)
			l.prepare().run()
			at := 22<<20 + i*64<<10
			l.must("qemu-io", "-f", "qcow2", "-c", "write -P 2 22M 1k", "-c", fmt.Sprintf("write -P 3 %d 128k", at+640<<10), d.path)
			l.must("qemu-img", "resize", "-q", "-f", "qcow2", "--shrink", d.path, fmt.Sprint(at+512<<10))
			l.must("qemu-img", "resize", "-q", "-f", "qcow2", d.path, "32M")
			a := l.prepare()
			a.must = nil
			a.run()
			l.judge()
			if len(l.points) != 2 {
				t.Fatalf("%d checkpoints", len(l.points))
			}
		})
	}
}

// A disk with a backing file is restored to go on from: it is flat now. Before
// its next backup an overlay is put on it, and that backup is incremental by
// the bitmap all the same.
func TestOverlayOnRestored(t *testing.T) {
	t.Parallel()
	l := newLife(t, 1, nil, &tally{counts: make(map[string]int)})
	d := &lifeDisk{target: "vda", cluster: 64 << 10, tampered: make(map[string]bool)}
	l.disks = []*lifeDisk{d}
	l.createQcow2(d, 4<<20, l.makeBacking(4<<20))
	l.must("qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 1M", d.path)
	l.prepare().run()
	p := l.points[0]
	d.path = l.newFile("qcow2")
	l.restoreTo(p.manifest, []restore.Target{{Disk: "vda", Path: d.path, Format: qcow2.Qcow2}}, restore.Options{Continue: true})
	l.must("qemu-io", "-f", "qcow2", "-c", "write -P 2 2M 64k", d.path)
	l.createQcow2(d, 4<<20, []string{"-b", d.path, "-F", "qcow2"})
	l.must("qemu-io", "-f", "qcow2", "-c", "write -P 3 3M 64k", d.path)
	a := l.prepare()
	a.must["vda"] = true
	a.run()
	l.judge()
}

// A writer of an image with lazy refcounts is killed. An overlay is committed
// into the image: QEMU marks it as closed and leaves its reference counts as
// they are, which is wrong. A bitmap added now would be stored over guest data.
func TestCommitIntoUnclosedImage(t *testing.T) {
	t.Parallel()
	l := newLife(t, 1, nil, &tally{counts: make(map[string]int)})
	d := &lifeDisk{target: "vda", cluster: 64 << 10, tampered: make(map[string]bool)}
	l.disks = []*lifeDisk{d}
	d.path, d.format = l.newFile("qcow2"), "qcow2"
	l.must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on,cluster_size=64k", d.path, "12M")
	l.must("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", d.path)
	l.prepare().run()
	killWriter(l, d, []string{"write -P 2 64k 6M", "write -P 3 8M 1M", "flush"})
	base := d.path
	l.createQcow2(d, 12<<20, []string{"-b", base, "-F", "qcow2"})
	l.must("qemu-io", "-f", "qcow2", "-c", "write -P 4 7M 1M", d.path)
	l.must("qemu-img", "commit", "-q", "-f", "qcow2", d.path)
	d.path, d.sound = base, false
	if exec.Command("qemu-img", "check", "-q", "-f", "qcow2", d.path).Run() == nil {
		t.Fatal("the reference counts are right: this tests nothing")
	}
	before := testkit.Sum(t, d.path)
	l.prepare().run()
	if testkit.Sum(t, d.path) != before {
		t.Error("an image with wrong reference counts was written to")
	}
	l.judge()
}

// An image is cut in a cluster of data, and its bitmaps, which lay behind, are
// gone. QEMU does not open it; what is left of the cluster is no backup.
func TestCutInsideData(t *testing.T) {
	t.Parallel()
	l := newLife(t, 1, nil, &tally{counts: make(map[string]int)})
	d := &lifeDisk{target: "vda", cluster: 64 << 10, tampered: make(map[string]bool)}
	l.disks = []*lifeDisk{d}
	d.path, d.format = l.newFile("qcow2"), "qcow2"
	l.must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=64k", d.path, "4M")
	l.must("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", d.path)
	l.prepare().run()
	// Data lies from the sixth cluster on: header, refcounts (2), L1 and L2
	// tables come first.
	if err := os.Truncate(d.path, 5*64<<10+1<<20-5000); err != nil {
		t.Fatal(err)
	}
	if exec.Command("qemu-img", "info", "-f", "qcow2", d.path).Run() == nil {
		t.Fatal("the bitmaps are still there: this tests nothing")
	}
	for _, mode := range []backup.Mode{backup.Auto, backup.Full} {
		req := backup.Request{Domain: "dom", Mode: mode, Disks: []backup.DiskRequest{{Disk: "vda", Path: d.path, Format: qcow2.Qcow2}}}
		_, err := backup.Run(context.Background(), l.writer, req, backup.Hooks{})
		var damage *qcow2.DamageError
		if !errors.As(err, &damage) {
			t.Errorf("mode %s: %v", mode, err)
		}
	}
}
