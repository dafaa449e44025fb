// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/checkpoint"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
)

// forget forgets checkpoints of the domain vm, and what QEMU read at them.
func (l *lab) forget(names ...string) {
	l.t.Helper()
	all, damaged, err := l.repo.Manifests(l.t.Context(), "vm")
	l.must(err)
	var gone []*chain.Manifest
	for _, m := range slices.Backward(all) {
		if slices.Contains(names, m.Checkpoint) {
			gone = append(gone, m)
		}
	}
	if len(damaged) > 0 || len(gone) != len(names) {
		l.t.Fatalf("not all of %v can be forgotten: %v", names, damaged)
	}
	l.must(chain.Forget(l.t.Context(), l.repo, all, gone, func(*chain.Manifest) {}))
	l.taken = slices.DeleteFunc(l.taken, func(o oracle) bool { return o.domain == "vm" && slices.Contains(names, o.checkpoint) })
}

// grown makes checkpoints of vda, each after a write.
func (l *lab) grown(checkpoints ...string) {
	l.t.Helper()
	for i, name := range checkpoints {
		l.write("vda", "write -P "+string(rune('1'+i))+" "+string(rune('1'+i))+"M 64k")
		l.backup(name, l.disk("vda"))
	}
}

// TestForgottenNewest: the bitmap before that of a forgotten checkpoint tells what
// changed since the one that stays; the forgotten one's is known as ours, and goes.
func TestForgottenNewest(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "16M")
	l.grown("c1", "c2", "c3")
	l.holds("vda", "c2", "c3")
	l.forget("c3")
	l.write("vda", "write -P 9 9M 64k")
	d := l.trusted(l.backup("c4", l.disk("vda")), "c2")
	if len(d.Witnesses) != 2 {
		t.Errorf("c4 saw %d bitmaps, not those of c2 and of c3, which is ours still", len(d.Witnesses))
	}
	l.holds("vda", "c2", "c4")
	l.restoreAll()
}

// TestForgottenAllButOne: neither does it matter that all older ones are gone, nor that
// all are: the bitmaps that are left in the image are ours.
func TestForgottenAllButOne(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "16M")
	l.grown("c1", "c2", "c3")
	l.forget("c1", "c2")
	l.write("vda", "write -P 9 9M 64k")
	d := l.trusted(l.backup("c4", l.disk("vda")), "c3")
	if !strings.Contains(d.Reason, "agrees with 1 older") {
		t.Errorf("the forgotten c2 did not testify: %s", d.Reason)
	}
	l.holds("vda", "c3", "c4")
	l.forget("c3", "c4")
	l.expect(l.backup("c5", l.disk("vda")), "vda", backup.Full, backup.ByNothing, trust.ReasonFirst)
	l.holds("vda", "c4", "c5") // as c5's witness
	l.backup("c6", l.disk("vda"))
	l.holds("vda", "c5", "c6")
	if m := l.manifest("c5"); m.Sequence != 5 {
		t.Errorf("c5 has the sequence %d: a forgotten one's is used again", m.Sequence)
	}
	l.restoreAll()
}

// TestForgottenForeign: another's bitmap stays, whatever is forgotten, be it named as one
// of ours would be.
func TestForgottenForeign(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "16M")
	l.grown("c1", "c2")
	l.img("bitmap", "--add", l.path("vda"), "c1.0123456789abcdef")
	l.img("bitmap", "--add", l.path("vda"), "virtnbdbackup.0")
	l.forget("c1", "c2")
	l.backup("c3", l.disk("vda"))
	l.backup("c4", l.disk("vda"))
	l.holds("vda", "c1", "c3", "c4", "virtnbdbackup")
}

// TestForgottenSmaller: a disk that was smaller at a forgotten checkpoint has lost bits of
// what was beyond its end then, and that stays known.
func TestForgottenSmaller(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "16M")
	l.write("vda", "write -P 1 0 1M", "write -P 2 12M 64k")
	l.backup("c1", l.disk("vda"))
	l.img("resize", "-q", "-f", "qcow2", "--shrink", "vda", "8M")
	l.backup("c2", l.disk("vda"))
	l.img("resize", "-q", "-f", "qcow2", "vda", "16M")
	l.forget("c2")
	d := l.trusted(l.backup("c3", l.disk("vda")), "c1")
	if d.DirtyBytes < 8<<20 {
		t.Errorf("%d bytes are dirty: what was cut off and grew again is not", d.DirtyBytes)
	}
	l.restoreAll()
}

// TestForgottenRecord: what a forgotten checkpoint saw of an older one's bitmap still
// convicts it when it was cleared.
func TestForgottenRecord(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "64M")
	l.write("vda", "write -P 1 0 40M")
	l.backup("c1", l.disk("vda"))
	l.write("vda", "write -P 2 20M 64k")
	l.backup("c2", l.disk("vda"))
	l.img("bitmap", "--clear", l.path("vda"), l.bitmapOf("c1"))
	l.img("bitmap", "--remove", l.path("vda"), l.bitmapOf("c2"))
	l.forget("c2")
	l.refused(trust.ReasonContradicted, l.disk("vda"))
	l.expect(l.backup("c3", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, trust.ReasonContradicted)
	l.restoreAll()
}

// TestForgottenUnknown: where what forgotten ones left can't be read, no bitmap is
// believed, and the data is saved all the same.
func TestForgottenUnknown(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "16M")
	l.grown("c1", "c2")
	l.forget("c1")
	list := filepath.Join(l.repoDir, "domains/vm/forgotten.json")
	data, err := os.ReadFile(list)
	l.must(err)
	l.must(os.WriteFile(list, data[:len(data)/2], 0o600))
	l.refused(trust.ReasonForgotten, l.disk("vda"))
	l.expect(l.backup("c3", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, trust.ReasonForgotten)
	l.restoreAll()
}

// TestForgottenCutOff: one that was noted and still stands is what it was.
func TestForgottenCutOff(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "16M")
	l.grown("c1", "c2")
	all, _, err := l.repo.Manifests(t.Context(), "vm")
	l.must(err)
	l.must(l.repo.Remember(t.Context(), "vm", all, nil))
	l.trusted(l.backup("c3", l.disk("vda")), "c2")
	l.holds("vda", "c2", "c3")
	l.restoreAll()
}

// TestForgottenWithoutData: the bitmap of a forgotten checkpoint without data is not kept
// as long as its definition would be.
func TestForgottenWithoutData(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "16M")
	l.createCheckpoint("k1", l.disk("vda"))
	l.createCheckpoint("k2", l.disk("vda"))
	l.grown("c1")
	l.holds("vda", "c1", "k1", "k2")
	l.forget("k1")
	l.taken = nil // of k2 nothing is archived
	l.write("vda", "write -P 9 9M 64k")
	l.trusted(l.backup("c2", l.disk("vda")), "c1")
	l.holds("vda", "c1", "c2", "k2")
}

// TestForgottenBranch: a branch whose fork is forgotten goes on, and so does the other.
func TestForgottenBranch(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "16M")
	l.grown("c1")
	l.tool("cp", "vda", "copy")
	l.grown("c2", "c3")
	other := l.disk("copy")
	l.write("copy", "write -P 7 7M 64k")
	l.trusted(l.backup("b1", other), "c1")
	l.forget("c1")
	l.write("copy", "write -P 8 7M 64k")
	l.trusted(l.backup("b2", other), "b1")
	l.write("vda", "write -P 8 8M 64k")
	l.trusted(l.backup("c4", l.disk("vda")), "c3")
	l.holds("copy", "b1", "b2")
	l.restoreAll()
	all, _, err := l.repo.Manifests(t.Context(), "vm")
	l.must(err)
	if roots := chain.BuildTree(all).Roots; len(roots) != 2 {
		t.Errorf("the tree has %d roots, want c2 and b1", len(roots))
	}
}

// TestForgottenDisks: several disks, one of which the forgotten checkpoint did not have,
// one that was renamed at it, and one of raw.
func TestForgottenDisks(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for _, name := range []string{"vda", "b"} {
		l.create(name, "16M")
		l.write(name, "write -P 1 1M 1M")
	}
	l.img("create", "-q", "-f", "raw", "raw", "4M")
	vdb, sdb := l.disk("b"), l.disk("b")
	vdb.Disk, sdb.Disk = "vdb", "sdb"
	raw := backup.DiskRequest{Disk: "vdc", Path: l.path("raw"), Format: "raw"}
	l.backup("c1", l.disk("vda"), vdb, raw)
	l.write("vda", "write -P 2 2M 64k")
	l.backup("c2", l.disk("vda"), raw)
	l.write("b", "write -P 3 3M 64k")
	l.backup("c3", l.disk("vda"), sdb, raw) // vdb has become sdb
	l.forget("c2", "c3")
	l.write("vda", "write -P 4 4M 64k")
	l.write("b", "write -P 5 5M 64k")
	l.writeAs("raw", "raw", "write -P 5 1M 64k")
	r := l.backup("c4", l.disk("vda"), sdb, raw)
	// vda's bitmap of c1 went when c3 was made, sdb's is there.
	l.expect(r, "vda", backup.Incremental, backup.ByContent, trust.ReasonMissing)
	if d := l.expect(r, "sdb", backup.Incremental, backup.ByBitmap, trust.ReasonTrusted); d.IncrementalFrom.Name != "c1" || d.RenamedFrom != "" {
		t.Errorf("sdb builds on %+v, renamed from %q", d.IncrementalFrom, d.RenamedFrom)
	}
	l.expect(r, "vdc", backup.Incremental, backup.ByContent, trust.ReasonRaw)
	l.holds("b", "c1", "c4")
	l.restoreAll()
}

// TestForgottenBetween: what changed since an older checkpoint, whose bitmap has left the
// image, is known though one between is forgotten; but not since a full one.
func TestForgottenBetween(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "16M")
	l.grown("c1", "c2", "c3", "c4")
	l.forget("c2", "c3")
	l.write("vda", "write -P 9 9M 64k")
	since := func(checkpoint, since string) backup.Request {
		req := l.request(checkpoint, l.disk("vda"))
		req.Mode, req.Since = backup.Incremental, since
		return req
	}
	d, _ := l.backupAs(since("c5", "c1")).Manifest.Disk("vda")
	if d.IncrementalFrom.Name != "c1" || d.DirtyBytes != 4*64<<10 {
		t.Errorf("c5 is incremental since %s, %d bytes dirty (%s)", d.IncrementalFrom.Name, d.DirtyBytes, d.Reason)
	}
	req := l.request("c6", l.disk("vda"))
	req.Mode = backup.Full
	l.backupAs(req)
	l.backup("c7", l.disk("vda"))
	l.forget("c6")
	l.refusedAs(since("c8", "c5"), trust.ReasonBrokenLine)
	l.restoreAll()
}

// TestDeletedRecord: neither is what a checkpoint without data saw lost with it.
func TestDeletedRecord(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "64M")
	l.write("vda", "write -P 1 0 40M")
	l.backup("c1", l.disk("vda"))
	l.write("vda", "write -P 2 20M 64k")
	l.createCheckpoint("k1", l.disk("vda"))
	l.taken = l.taken[:1]
	l.img("bitmap", "--clear", l.path("vda"), l.bitmapOf("c1"))
	_, err := l.delete(checkpoint.DeleteRequest{Domain: "vm", Checkpoint: "k1"})
	l.must(err)
	l.holds("vda", "c1")
	l.refused(trust.ReasonContradicted, l.disk("vda"))
}
