// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/checkpoint"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain/check"
)

// as is a request for an image as the disk of that name.
func (l *lab) as(name, image string) backup.DiskRequest {
	d := l.disk(image)
	d.Disk = name
	return d
}

// renamed checks how a disk goes on that had another name before: by its bitmap
// since that checkpoint, with a note, and from maps of its own.
func (l *lab) renamed(r *backup.Result, disk, from, since string) {
	l.t.Helper()
	d := l.expect(r, disk, backup.Incremental, backup.ByBitmap, trust.ReasonTrusted)
	if d.RenamedFrom != from || d.IncrementalFrom == nil || d.IncrementalFrom.Name != since || len(d.Maps) != 1 {
		l.t.Errorf("%s was %q, since %v, with %d maps; want %s, %s, 1", disk, d.RenamedFrom, d.IncrementalFrom, len(d.Maps), from, since)
	}
	if d.DataBytes > 256<<10 {
		l.t.Errorf("%s: %d bytes were stored", disk, d.DataBytes)
	}
	note := "disk " + disk + " was disk " + from + " at checkpoint " + since
	if !slices.ContainsFunc(r.Notes, func(n string) bool { return strings.HasPrefix(n, note) }) {
		l.t.Errorf("notes: %q", r.Notes)
	}
}

// asNew checks that a disk is taken for one that was not there before.
func (l *lab) asNew(r *backup.Result, disk string) {
	l.t.Helper()
	d := l.expect(r, disk, backup.Full, backup.ByNothing, trust.ReasonFirst)
	if d.RenamedFrom != "" {
		l.t.Errorf("%s was %s", disk, d.RenamedFrom)
	}
}

// sound checks the whole repository.
func (l *lab) soundRepo() {
	l.t.Helper()
	report, err := check.Run(l.t.Context(), l.repo, check.Options{ReadData: true})
	l.must(err)
	if len(report.Findings) > 0 {
		l.t.Errorf("check: %v", report.Findings)
	}
}

// A VM's disks are moved to another bus, and so get other names.
func TestTrustRenamed(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("a", "8M")
	l.write("a", "write -P 1 0 4M")
	l.create("b", "8M")
	l.write("b", "write -P 2 1M 4M")
	l.backup("c1", l.as("vda", "a"), l.as("vdb", "b"))
	l.write("a", "write -P 3 1M 64k")
	l.backup("c2", l.as("vda", "a"), l.as("vdb", "b"))
	l.write("a", "write -P 4 2M 64k")
	l.write("b", "write -P 5 2M 64k")

	// Which was which the files tell, whatever order they now have.
	l.dryRun(l.request("c3", l.as("sda", "b"), l.as("sdb", "a")), map[string]string{"sda": "vdb", "sdb": "vda"})
	r := l.backup("c3", l.as("sda", "b"), l.as("sdb", "a"))
	l.renamed(r, "sda", "vdb", "c2")
	l.renamed(r, "sdb", "vda", "c2")
	l.soundRepo()

	// From now on these are their names. Older checkpoints are still theirs.
	l.write("a", "write -P 6 3M 64k")
	r = l.backup("c4", l.as("sda", "b"), l.as("sdb", "a"))
	for _, disk := range []string{"sda", "sdb"} {
		d := l.expect(r, disk, backup.Incremental, backup.ByBitmap, trust.ReasonTrusted)
		if d.RenamedFrom != "" || d.IncrementalFrom.Name != "c3" || len(r.Notes) > 0 {
			t.Errorf("%s: %q, since %s; notes %q", disk, d.RenamedFrom, d.IncrementalFrom.Name, r.Notes)
		}
	}
	for _, ends := range [][2]string{{"c2", "c4"}, {"c4", "c2"}} {
		changes, err := checkpoint.ChangesBetween(t.Context(), l.repo, "vm", ends[0], ends[1])
		l.must(err)
		if len(changes) != 2 {
			t.Errorf("from %s to %s %d disks changed", ends[0], ends[1], len(changes))
		}
		for _, c := range changes {
			bytes, err := c.Runs.Bytes()
			l.must(err)
			want := int64(128 << 10)
			if c.Disk == "vdb" || c.Disk == "sda" {
				want = 64 << 10
			}
			if bytes != want {
				t.Errorf("from %s to %s: %d bytes of %s, want %d", ends[0], ends[1], bytes, c.Disk, want)
			}
		}
	}

	// Back again, and then a disk that is new under the name.
	r = l.backup("c5", l.as("sda", "b"), l.as("vda", "a"))
	l.renamed(r, "vda", "sdb", "c4")
	l.trustedAs(r, "c4", "sda")
	l.create("c", "1M")
	r = l.backup("c6", l.as("sda", "b"), l.as("vda", "a"), l.as("sdb", "c"))
	l.trustedAs(r, "c5", "sda", "vda")
	if d, _ := r.Manifest.Disk("sdb"); d.RenamedFrom != "" || d.Detection == string(backup.ByBitmap) {
		t.Errorf("the new sdb was %q, detection %s", d.RenamedFrom, d.Detection)
	}
	l.trustedAs(l.backup("c7", l.as("sda", "b"), l.as("vda", "a"), l.as("sdb", "c")), "c6", "sda", "vda", "sdb")
	// Where the name went to another disk at once, that one is meant by it.
	r = l.backup("c8", l.as("sda", "b"), l.as("hda", "a"), l.as("vda", "c"))
	l.asNew(r, "hda")
	l.soundRepo()
	l.restoreAll()
}

// trustedAs checks that disks were backed up by their bitmaps since a checkpoint.
func (l *lab) trustedAs(r *backup.Result, since string, disks ...string) {
	l.t.Helper()
	for _, disk := range disks {
		d := l.expect(r, disk, backup.Incremental, backup.ByBitmap, trust.ReasonTrusted)
		if d.IncrementalFrom == nil || d.IncrementalFrom.Name != since {
			l.t.Errorf("%s is incremental since %v, want %s", disk, d.IncrementalFrom, since)
		}
	}
}

// dryRun checks which disks a plan takes for renamed ones.
func (l *lab) dryRun(req backup.Request, former map[string]string) {
	l.t.Helper()
	l.unchanged(func() {
		plan, err := backup.DryRun(l.t.Context(), l.repo, req, backup.Hooks{})
		l.must(err)
		for _, p := range plan.Disks {
			if p.RenamedFrom != former[p.Disk] {
				l.t.Errorf("%s was %q, want %q", p.Disk, p.RenamedFrom, former[p.Disk])
			}
		}
	})
}

// A bitmap's name is that of a checkpoint, not of a disk: what else could have
// brought it into an image is no renaming.
func TestTrustNotRenamed(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T, disks ...string) *lab {
		l := newLab(t)
		var requests []backup.DiskRequest
		for i, name := range disks {
			image := string(rune('a' + i))
			l.create(image, "8M")
			l.write(image, "write -P 7 0 4M")
			requests = append(requests, l.as(name, image))
		}
		l.backup("c1", requests...)
		return l
	}
	t.Run("a clone beside its original", func(t *testing.T) {
		t.Parallel()
		l := start(t, "vda")
		l.tool("cp", "a", "copy")
		r := l.backup("c2", l.as("vda", "a"), l.as("sda", "copy"))
		l.trustedAs(r, "c1", "vda")
		l.asNew(r, "sda")
		l.restoreAll()
	})
	t.Run("a clone of one beside it, the other being gone", func(t *testing.T) {
		t.Parallel()
		l := start(t, "vda", "vdb")
		l.tool("cp", "b", "copy")
		r := l.backup("c2", l.as("vdb", "b"), l.as("sda", "copy"))
		l.trustedAs(r, "c1", "vdb")
		l.asNew(r, "sda")
		l.restoreAll()
	})
	t.Run("two copies, and no original", func(t *testing.T) {
		t.Parallel()
		l := start(t, "vda")
		l.tool("cp", "a", "one")
		l.tool("cp", "a", "two")
		r := l.backup("c2", l.as("sda", "one"), l.as("sdb", "two"))
		l.asNew(r, "sda")
		l.asNew(r, "sdb")
		l.restoreAll()
	})
	t.Run("a copy and the original, both with new names", func(t *testing.T) {
		t.Parallel()
		l := start(t, "vda")
		l.tool("cp", "a", "copy")
		l.write("copy", "write -P 9 0 64k")
		r := l.backup("c2", l.as("sda", "copy"), l.as("sdb", "a"))
		l.asNew(r, "sda")
		l.renamed(r, "sdb", "vda", "c1")
		l.restoreAll()
	})
	t.Run("moved and renamed, of one disk", func(t *testing.T) {
		t.Parallel()
		l := start(t, "vda")
		l.tool("cp", "a", "moved")
		l.tool("rm", "a")
		l.write("moved", "write -P 9 0 64k")
		l.renamed(l.backup("c2", l.as("sda", "moved")), "sda", "vda", "c1")
		l.soundRepo()
		// What QEMU read of the first was kept; its image is gone.
		l.restoreAll()
	})
	t.Run("moved and renamed, of two disks", func(t *testing.T) {
		t.Parallel()
		l := start(t, "vda", "vdb")
		l.tool("cp", "a", "moved")
		l.tool("rm", "a", "b")
		l.asNew(l.backup("c2", l.as("sda", "moved")), "sda")
		l.restoreAll()
	})
	t.Run("swapped", func(t *testing.T) {
		t.Parallel()
		l := start(t, "vda", "vdb")
		l.write("a", "write -P 9 0 64k")
		r := l.backup("c2", l.as("vda", "b"), l.as("vdb", "a"))
		for _, disk := range []string{"vda", "vdb"} {
			l.expect(r, disk, backup.Incremental, backup.ByContent, trust.ReasonOtherDisk)
		}
		l.restoreAll()
	})
}

// A renamed disk goes on whatever is done with it: a checkpoint without data, an
// overlay, no room for a bitmap.
func TestTrustRenamedGoesOn(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("a", "8M")
	l.write("a", "write -P 1 0 4M")
	l.backup("c1", l.disk("a"))
	l.remember("vm", "k1", l.as("sda", "a"))
	l.taken = l.taken[:1] // a checkpoint has no data to be restored
	k, err := backup.Record(t.Context(), l.repo, l.request("k1", l.as("sda", "a")), backup.Hooks{})
	l.must(err)
	if d, _ := k.Manifest.Disk("sda"); d.RenamedFrom != "vda" || len(d.Witnesses) != 1 {
		t.Errorf("sda was %q, with %d witnesses", d.RenamedFrom, len(d.Witnesses))
	}
	l.write("a", "write -P 2 1M 64k")
	// The archive before it has the former name; this one is of one name with k1.
	r := l.backup("c2", l.as("sda", "a"))
	d := l.expect(r, "sda", backup.Incremental, backup.ByBitmap, trust.ReasonTrusted)
	if d.RenamedFrom != "" || d.IncrementalFrom.Name != "c1" || len(d.Maps) != 1 || len(r.Notes) != 0 {
		t.Errorf("sda was %q, since %s, %d maps, notes %q", d.RenamedFrom, d.IncrementalFrom.Name, len(d.Maps), r.Notes)
	}
	l.overlay("top", "a")
	l.write("top", "write -P 3 2M 64k")
	l.renamed(l.backup("c3", l.as("vdz", "top")), "vdz", "sda", "c2")
	req := l.request("c4", l.as("hda", "top"))
	req.NoCheckpoint = true
	l.write("top", "write -P 4 3M 64k")
	l.renamed(l.backupAs(req), "hda", "vdz", "c3")
	l.write("top", "write -P 5 3M 64k")
	l.trustedAs(l.backup("c5", l.as("hda", "top")), "c3", "hda")
	l.crash("top", "write -P 6 0 64k")
	req = l.request("c6", l.as("hdb", "top"))
	req.Since = "c5"
	l.refusedAs(req, trust.ReasonInUse)
	r = l.backup("c6", l.as("hdb", "top"))
	d = l.expect(r, "hdb", backup.Incremental, backup.ByBitmap, trust.ReasonTrusted)
	if d.RenamedFrom != "hda" || d.IncrementalFrom.Name != "c2" {
		t.Errorf("hdb was %q, since %s; want hda, and c2, whose bitmap lies below", d.RenamedFrom, d.IncrementalFrom.Name)
	}
	l.soundRepo()
	l.restoreAll()
}
