// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// A name may be used again after its manifest is gone; the bitmap of the first
// checkpoint of that name is not the second's.
func TestTrustNameUsedAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	oneCheckpoint(l)
	l.must(os.Remove(filepath.Join(l.repoDir, filepath.FromSlash(chain.ManifestKey("vm", "c1")))))
	l.taken = nil
	l.refused(trust.ReasonFirst, l.disk("vda"))
	first := l.bitmaps("vda")
	l.expect(l.backup("c1", l.disk("vda")), "vda", backup.Full, backup.ByNothing, trust.ReasonFirst)
	l.holds("vda", "c1", "c1")
	l.write("vda", "write -P 4 4M 64k")
	d := l.trusted(l.backup("c2", l.disk("vda")), "c1")
	if d.DirtyBytes != 64<<10 {
		t.Errorf("%d bytes are dirty, want %d", d.DirtyBytes, 64<<10)
	}
	// Nobody's bitmap any more: it stays.
	if got := l.bitmaps("vda"); !slices.ContainsFunc(got, func(b qcow2.BitmapState) bool { return b.Name == first[0].Name }) {
		t.Errorf("the bitmap %s is gone", first[0].Name)
	}
	l.restoreAll()
}

// A clone that becomes another domain is read whole, and the bitmaps that came
// with it are not touched, here nor there.
func TestTrustClone(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	twoCheckpoints(l)
	l.tool("cp", "vda", "clone")
	original := l.state(l.path("vda"))
	l.write("clone", "write -P 9 7M 64k")
	came := l.bitmaps("clone")

	req := l.request("d1", l.disk("clone"))
	req.Domain = "clone"
	req.Mode = backup.Incremental
	l.refusedAs(req, trust.ReasonFirst)
	req.Mode = backup.Auto
	l.expect(l.backupAs(req), "vda", backup.Full, backup.ByNothing, trust.ReasonFirst)
	l.write("clone", "write -P 8 6M 64k")
	req.Checkpoint = "d2"
	d := l.expect(l.backupAs(req), "vda", backup.Incremental, backup.ByBitmap, trust.ReasonTrusted)
	if d.DirtyBytes != 64<<10 {
		t.Errorf("%d bytes are dirty, want %d", d.DirtyBytes, 64<<10)
	}
	for _, b := range came {
		if !slices.ContainsFunc(l.bitmaps("clone"), func(now qcow2.BitmapState) bool { return now.Name == b.Name }) {
			t.Errorf("the bitmap %s is gone from the clone", b.Name)
		}
	}
	if l.state(l.path("vda")) != original {
		t.Error("the first domain's image has changed")
	}
	l.trusted(l.backup("c3", l.disk("vda")), "c2")
	l.restoreAll()
}

// twoDisks makes a domain with two disks, one checkpoint.
func twoDisks(l *lab) (vda, vdb backup.DiskRequest) {
	l.t.Helper()
	for i, name := range []string{"vda", "vdb"} {
		l.create(name, "8M")
		l.write(name, "write -P "+string(rune('1'+i))+" 1M 2M", "write -P 5 4M 1M")
	}
	vda, vdb = l.disk("vda"), l.disk("vdb")
	vdb.Disk = "vdb"
	l.backup("c1", vda, vdb)
	l.write("vda", "write -P 6 4M 64k")
	l.write("vdb", "write -P 7 4M 64k")
	return vda, vdb
}

// All disks of a checkpoint have bitmaps of one name: which image was which
// disk is told by file, path and content.
func TestTrustDisksExchanged(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		do         func(l *lab, vda, vdb *backup.DiskRequest)
		vda, vdb   trust.Reason
		vdaDetects backup.Detection
	}{
		{"paths swapped", func(_ *lab, vda, vdb *backup.DiskRequest) {
			vda.Path, vdb.Path = vdb.Path, vda.Path
		}, trust.ReasonOtherDisk, trust.ReasonOtherDisk, backup.ByContent},
		{"files swapped", func(l *lab, _, _ *backup.DiskRequest) {
			l.tool("mv", "vda", "tmp")
			l.tool("mv", "vdb", "vda")
			l.tool("mv", "tmp", "vdb")
		}, trust.ReasonOtherDisk, trust.ReasonOtherDisk, backup.ByContent},
		{"moved over the other", func(l *lab, vda, _ *backup.DiskRequest) {
			l.tool("mv", "vda", "vdb")
			l.create("vda", "8M")
		}, trust.ReasonMissing, trust.ReasonOtherDisk, backup.ByContent},
		{"copied over the other", func(l *lab, _, _ *backup.DiskRequest) {
			l.tool("cp", "vda", "vdb")
		}, trust.ReasonTrusted, trust.ReasonContent, backup.ByBitmap},
		{"a copy put in place of the other", func(l *lab, _, _ *backup.DiskRequest) {
			l.tool("cp", "vda", "tmp")
			l.tool("mv", "tmp", "vdb")
		}, trust.ReasonTrusted, trust.ReasonContent, backup.ByBitmap},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			vda, vdb := twoDisks(l)
			tt.do(l, &vda, &vdb)
			refusal := tt.vda
			if refusal == trust.ReasonTrusted {
				refusal = tt.vdb
			}
			l.refused(refusal, vda, vdb)
			r := l.backup("c2", vda, vdb)
			l.expect(r, "vda", backup.Incremental, tt.vdaDetects, tt.vda)
			l.expect(r, "vdb", backup.Incremental, backup.ByContent, tt.vdb)
			r = l.backup("c3", vda, vdb)
			l.expect(r, "vda", backup.Incremental, backup.ByBitmap, trust.ReasonTrusted)
			l.expect(r, "vdb", backup.Incremental, backup.ByBitmap, trust.ReasonTrusted)
			l.restoreAll()
		})
	}
}

// Both files were lost and restored: file numbers that are used again tell
// nothing about what the new files hold.
func TestTrustInodeUsedAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	vda, vdb := twoDisks(l)
	l.tool("cp", "vda", "vda2")
	l.tool("cp", "vdb", "vdb2")
	l.tool("mv", "vda2", "vda")
	l.tool("mv", "vdb2", "vdb")
	inodes := func(name string) (uint64, uint64) {
		c, err := qcow2.Open(l.path(name), qcow2.Qcow2, qcow2.OpenOptions{})
		l.must(err)
		defer c.Close()
		id, err := c.Layers[0].Stat()
		l.must(err)
		return id.Dev, id.Inode
	}
	l.doctor("c1", func(m *chain.Manifest) {
		m.Disks[0].Source.Device, m.Disks[0].Source.Inode = inodes("vdb")
		m.Disks[1].Source.Device, m.Disks[1].Source.Inode = inodes("vda")
		m.Created = m.Created.Add(-10e9)
	})
	r := l.backup("c2", vda, vdb)
	l.expect(r, "vda", backup.Incremental, backup.ByBitmap, trust.ReasonTrusted)
	l.expect(r, "vdb", backup.Incremental, backup.ByBitmap, trust.ReasonTrusted)
	l.restoreAll()
}

// An older copy of the image is put back: its bitmap is right for the
// checkpoint that it has, which becomes the parent.
func TestTrustOlderCopy(t *testing.T) {
	t.Parallel()
	for name, put := range map[string][]string{
		"another file":  {"mv", "copy", "vda"},
		"the same file": {"cp", "copy", "vda"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for bitmaps, since := range []string{"c1", "c2"} {
				l := newLab(t)
				oneCheckpoint(l)
				if bitmaps == 1 {
					l.trusted(l.backup("c2", l.disk("vda")), "c1")
					l.write("vda", "write -P 4 5M 64k")
				}
				l.tool("cp", "vda", "copy")
				l.write("vda", "write -P 5 6M 64k", "write -P 6 0 64k")
				l.backup("c3", l.disk("vda"))
				l.write("vda", "write -P 7 3M 64k")
				l.backup("c4", l.disk("vda"))
				l.tool(put[0], put[1:]...)
				l.write("vda", "write -P 8 4M 64k")
				d := l.trusted(l.backup("c5", l.disk("vda")), since)
				if !strings.Contains(d.Reason, "older copy") {
					t.Errorf("the reason does not tell that this is an older copy: %s", d.Reason)
				}
				l.write("vda", "write -P 9 2M 64k")
				l.trusted(l.backup("c6", l.disk("vda")), "c5")
				l.restoreAll()
			}
		})
	}
}

// A copy from before the first checkpoint has no bitmap.
func TestTrustOldestCopy(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("copy", "8M")
	l.write("copy", "write -P 1 0 2M")
	l.tool("cp", "copy", "vda")
	l.backup("c1", l.disk("vda"))
	l.write("vda", "write -P 3 1M 64k")
	l.backup("c2", l.disk("vda"))
	l.tool("cp", "copy", "vda")
	l.refused(trust.ReasonMissing, l.disk("vda"))
	l.expect(l.backup("c3", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, trust.ReasonMissing)
	l.restoreAll()
}

// Bitmaps that are not ours stay as they are, whatever they are.
func TestTrustForeignBitmaps(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "8M")
	l.img("bitmap", "--add", "vda", "in use")
	l.crash("vda", "write -P 1 0 1M")
	l.img("bitmap", "--add", "vda", "enabled")
	l.img("bitmap", "--add", "--disable", "-g", "4k", "vda", "disabled")
	l.img("bitmap", "--add", "vda", "c1.0123456789abcdef") // looks like one of ours
	foreign := func() string {
		var all []string
		for _, b := range l.bitmaps("vda") {
			if slices.Contains([]string{"in use", "enabled", "disabled", "c1.0123456789abcdef"}, b.Name) {
				all = append(all, b.Name, string(rune(b.Granularity)), string(b.Digest[:]))
				for _, flag := range []bool{b.Enabled, b.InUse, b.Readable} {
					all = append(all, map[bool]string{true: "yes", false: "no"}[flag])
				}
			}
		}
		return strings.Join(all, ",")
	}
	l.write("vda", "write -P 1 0 1M")
	before := foreign()
	l.backup("c1", l.disk("vda"))
	l.backup("c2", l.disk("vda"))
	l.expect(l.backup("c3", l.disk("vda")), "vda", backup.Incremental, backup.ByBitmap, trust.ReasonTrusted)
	if after := foreign(); after != before {
		t.Errorf("foreign bitmaps have changed: %q, before %q", after, before)
	}
	l.holds("vda", "c1", "c2", "c3", "disabled", "enabled", "in use")
	l.restoreAll()
}

// A bitmap of which the metadata are broken: QEMU refuses the image, or could
// make it worse, so nothing is written into it. The guest's data are saved.
func TestTrustBrokenBitmaps(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		ours bool
		code trust.Reason
		does backup.Detection
	}{
		{"ours", true, trust.ReasonBroken, backup.ByContent},
		{"another's", false, trust.ReasonTrusted, backup.ByBitmap},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			oneCheckpoint(l)
			name := l.bitmapOf("c1")
			if !tt.ours {
				name = "another"
				l.img("bitmap", "--add", "vda", name)
				l.write("vda", "write -P 4 4M 64k")
			}
			l.breakBitmap("vda", name)
			if tt.ours {
				l.refused(tt.code, l.disk("vda"))
			}
			before := l.state(l.images)
			d := l.expect(l.backup("c2", l.disk("vda")), "vda", backup.Incremental, tt.does, tt.code)
			if d.Bitmap != "" || d.NoBitmapReason == "" {
				t.Errorf("bitmap %q was added (%q)", d.Bitmap, d.NoBitmapReason)
			}
			if l.state(l.images) != before {
				t.Error("the image was written to")
			}
			l.restoreAll()
		})
	}
}

// breakBitmap makes the bitmap's table point behind the end of the file. QEMU
// opens such an image, and takes the bitmap for clean.
func (l *lab) breakBitmap(image, bitmap string) {
	l.t.Helper()
	data, err := os.ReadFile(l.path(image))
	l.must(err)
	// The directory's entry ends with the name; its head has 24 bytes and
	// begins with the offset of the table.
	at := bytes.LastIndex(data, []byte(bitmap))
	if at < 24 {
		l.t.Fatalf("%s has no bitmap %s", image, bitmap)
	}
	table := int64(binary.BigEndian.Uint64(data[at-24:]))
	l.patch(image, table, binary.BigEndian.AppendUint64(nil, 1<<40))
}

// A disk that was restored with its bitmap goes on from its checkpoint, as a
// branch, also where there are later ones, and where there was a backing file.
func TestTrustContinued(t *testing.T) {
	t.Parallel()
	for _, backing := range []bool{false, true} {
		for _, fromCheckpoint := range []string{"c1", "c2", "c3"} {
			name := "flat, from " + fromCheckpoint
			if backing {
				name = "with backing file, from " + fromCheckpoint
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				l := newLab(t)
				if backing {
					overBase(l)
				} else {
					oneCheckpoint(l)
				}
				l.backup("c2", l.disk("vda"))
				l.write("vda", "write -P 5 6M 64k", "write -z 0 64k")
				l.backup("c3", l.disk("vda"))
				l.write("vda", "write -P 6 7M 64k")
				l.tool("mv", "vda", "lost")
				l.restoreContinued(fromCheckpoint, "vda")
				l.holds("vda", fromCheckpoint)
				l.write("vda", "write -P 8 4M 64k")
				d := l.trusted(l.backup("c4", l.disk("vda")), fromCheckpoint)
				if d.DirtyBytes != 64<<10 {
					t.Errorf("%d bytes are dirty, want %d", d.DirtyBytes, 64<<10)
				}
				if len(d.Backing) != 0 {
					t.Errorf("the manifest of a flat disk has the backing files %v", d.Backing)
				}
				l.write("vda", "write -P 9 3M 64k")
				l.trusted(l.backup("c5", l.disk("vda")), "c4")
				l.restoreAll()
			})
		}
	}
}

// So does one that had internal snapshots, which a restored disk has not.
func TestTrustContinuedWithoutSnapshots(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "8M")
	l.write("vda", "write -P 1 0 2M")
	l.img("snapshot", "-c", "before", "vda")
	l.backup("c1", l.disk("vda"))
	l.write("vda", "write -P 2 4M 64k")
	l.backup("c2", l.disk("vda"))
	l.restoreContinued("c1", "vda")
	l.holds("vda", "c1")
	l.write("vda", "write -P 3 5M 64k")
	l.trusted(l.backup("c3", l.disk("vda")), "c1")
	// A snapshot that the restored disk gets later was not there at c3.
	l.img("snapshot", "-c", "after", "vda")
	l.write("vda", "write -P 4 6M 64k")
	l.refused(trust.ReasonSnapshots, l.disk("vda"))
	l.expect(l.backup("c4", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, trust.ReasonSnapshots)
	l.restoreAll()
}
