// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"os"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/restore"
)

// twoCheckpoints makes an image with two checkpoints, c1 (full) and c2, both
// with their bitmaps in it, and some writes after each.
func twoCheckpoints(l *lab) {
	l.t.Helper()
	l.create("vda", "8M")
	l.write("vda", "write -P 1 0 2M", "write -P 2 5M 2M")
	l.expect(l.backup("c1", l.disk("vda")), "vda", backup.Full, backup.ByNothing, trust.ReasonFirst)
	l.write("vda", "write -P 3 1M 64k")
	l.trusted(l.backup("c2", l.disk("vda")), "c1")
	l.write("vda", "write -P 4 5M 64k")
	l.holds("vda", "c1", "c2")
}

// oneCheckpoint makes an image with one checkpoint, and some writes after it.
func oneCheckpoint(l *lab) {
	l.t.Helper()
	l.create("vda", "8M")
	l.write("vda", "write -P 1 0 2M", "write -P 2 5M 2M")
	l.backup("c1", l.disk("vda"))
	l.write("vda", "write -P 3 1M 64k")
}

// A lie is something that is done to the image vda after its last checkpoint,
// so that its bitmaps no longer tell all changes.
type lie struct {
	name  string
	begin func(l *lab)
	do    func(l *lab)
	code  trust.Reason
	after []string // whose bitmaps are in the image after the next backup
}

// Each lie is found out, for its own reason; the next backup has the right
// bytes, and the one after it trusts the bitmaps again.
func TestTrustLies(t *testing.T) {
	t.Parallel()
	for _, tt := range []lie{
		{"disabled", oneCheckpoint, func(l *lab) {
			l.img("bitmap", "--disable", "vda", l.bitmapOf("c1"))
			l.write("vda", "write -P 9 6M 128k")
		}, trust.ReasonDisabled, []string{"c1", "c3"}},
		{"cleared, the newer", twoCheckpoints, func(l *lab) {
			l.img("bitmap", "--clear", "vda", l.bitmapOf("c2"))
		}, trust.ReasonWitness, []string{"c3"}},
		{"cleared, the older", twoCheckpoints, func(l *lab) {
			l.img("bitmap", "--clear", "vda", l.bitmapOf("c1"))
		}, trust.ReasonWitness, []string{"c3"}},
		{"cleared, both", twoCheckpoints, func(l *lab) {
			l.img("bitmap", "--clear", "vda", l.bitmapOf("c1"))
			l.img("bitmap", "--clear", "vda", l.bitmapOf("c2"))
		}, trust.ReasonWitness, []string{"c3"}},
		{"cleared, the only one", oneCheckpoint, func(l *lab) {
			l.write("vda", "write -P 9 0 1M")
			l.img("bitmap", "--clear", "vda", l.bitmapOf("c1"))
		}, trust.ReasonContent, []string{"c3"}},
		{"cleared, zeros became data", oneCheckpoint, func(l *lab) {
			l.write("vda", "write -P 9 3M 1M")
			l.img("bitmap", "--clear", "vda", l.bitmapOf("c1"))
			l.write("vda", "write -P 9 1M 64k")
		}, trust.ReasonContent, []string{"c3"}},
		{"removed and added again", twoCheckpoints, func(l *lab) {
			name := l.bitmapOf("c2")
			l.img("bitmap", "--remove", "vda", name)
			l.img("bitmap", "--add", "vda", name)
			l.write("vda", "write -P 9 6M 64k")
		}, trust.ReasonWitness, []string{"c3"}},
		{"disabled for a while", twoCheckpoints, func(l *lab) {
			l.img("bitmap", "--disable", "vda", l.bitmapOf("c2"))
			l.write("vda", "write -P 9 6M 64k")
			l.img("bitmap", "--enable", "vda", l.bitmapOf("c2"))
		}, trust.ReasonWitness, []string{"c3"}},
		{"the older disabled, the newer cleared", twoCheckpoints, func(l *lab) {
			// What the disabled one has seen is enough to contradict.
			l.img("bitmap", "--disable", "vda", l.bitmapOf("c1"))
			l.img("bitmap", "--clear", "vda", l.bitmapOf("c2"))
		}, trust.ReasonWitness, []string{"c3"}},
		{"granularity changed", oneCheckpoint, func(l *lab) {
			name := l.bitmapOf("c1")
			l.img("bitmap", "--add", "-g", "4k", "--merge", name, "vda", "copy")
			l.img("bitmap", "--remove", "vda", name)
			l.img("bitmap", "--add", "-g", "4k", "--merge", "copy", "vda", name)
			l.img("bitmap", "--remove", "vda", "copy")
		}, trust.ReasonGranularity, []string{"c1", "c3"}},
		{"internal snapshot made", oneCheckpoint, func(l *lab) {
			l.img("snapshot", "-c", "s1", "vda")
		}, trust.ReasonSnapshots, []string{"c1", "c3"}},
		{"bitmap missing", oneCheckpoint, func(l *lab) {
			l.img("bitmap", "--remove", "vda", l.bitmapOf("c1"))
		}, trust.ReasonMissing, []string{"c3"}},
		{"killed", twoCheckpoints, func(l *lab) {
			l.crash("vda", "write -P 9 6M 64k")
		}, trust.ReasonInUse, []string{"c2", "c3"}},
		{"autoclear bit gone", oneCheckpoint, func(l *lab) {
			l.patch("vda", 95, []byte{l.byteAt("vda", 95) &^ 1})
		}, trust.ReasonUnusable, []string{"c3"}},
		{"downgraded and upgraded", oneCheckpoint, func(l *lab) {
			l.img("amend", "-f", "qcow2", "-o", "compat=0.10", "vda")
			l.img("amend", "-f", "qcow2", "-o", "compat=1.1", "vda")
		}, trust.ReasonMissing, []string{"c3"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			tt.begin(l)
			tt.do(l)
			l.refused(tt.code, l.disk("vda"))
			l.expect(l.backup("c3", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, tt.code)
			l.holds("vda", tt.after...)
			l.write("vda", "write -P 7 5M 64k", "write -z 6M 64k")
			l.trusted(l.backup("c4", l.disk("vda")), "c3")
			l.restoreAll()
		})
	}
}

// What the newest bitmap cannot tell, the one before it can.
func TestTrustOlderBitmapServes(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(l *lab){
		"disabled": func(l *lab) { l.img("bitmap", "--disable", "vda", l.bitmapOf("c2")) },
		"missing":  func(l *lab) { l.img("bitmap", "--remove", "vda", l.bitmapOf("c2")) },
		"forgotten": func(l *lab) {
			l.must(os.Remove(l.repoDir + "/" + chain.ManifestKey("vm", "c2")))
			l.taken = l.taken[:1]
		},
		"granularity": func(l *lab) {
			name := l.bitmapOf("c2")
			l.img("bitmap", "--remove", "vda", name)
			l.img("bitmap", "--add", "-g", "4k", "vda", name)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			twoCheckpoints(l)
			do(l)
			l.write("vda", "write -P 9 6M 64k", "write -P 8 3M 4k")
			l.trusted(l.backup("c3", l.disk("vda")), "c1")
			l.restoreAll()
		})
	}
}

// The newest bitmap is gone, and the older one has lost what the newest
// checkpoint's archive saw in it.
func TestTrustLaterRecordContradicts(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	twoCheckpoints(l)
	l.img("bitmap", "--remove", "vda", l.bitmapOf("c2"))
	l.img("bitmap", "--clear", "vda", l.bitmapOf("c1"))
	l.write("vda", "write -P 9 6M 64k")
	l.refused(trust.ReasonContradicted, l.disk("vda"))
	l.expect(l.backup("c3", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, trust.ReasonContradicted)
	l.restoreAll()
}

// An older bitmap that stopped recording lags behind, which says nothing about
// the newer one.
func TestTrustOlderBitmapLags(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	twoCheckpoints(l)
	l.img("bitmap", "--disable", "vda", l.bitmapOf("c1"))
	l.write("vda", "write -P 9 6M 64k")
	l.trusted(l.backup("c3", l.disk("vda")), "c2")
	l.restoreAll()
}

// The reason is the image's state, also where no bitmap of ours was ever in it.
func TestTrustStateWithoutBitmaps(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		offset int64
		change func(byte) byte
		code   trust.Reason
	}{
		{"dirty", 79, func(b byte) byte { return b | 1 }, trust.ReasonDirty},
		{"corrupt", 79, func(b byte) byte { return b | 2 }, trust.ReasonCorrupt},
		{"autoclear", 95, func(b byte) byte { return b &^ 1 }, trust.ReasonUnusable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.create("vda", "8M")
			l.img("bitmap", "--add", "vda", "another")
			l.write("vda", "write -P 1 0 2M")
			req := l.request("c1", l.disk("vda"))
			req.NoCheckpoint = true
			l.backupAs(req)
			l.write("vda", "write -P 2 1M 64k")
			l.patch("vda", tt.offset, []byte{tt.change(l.byteAt("vda", tt.offset))})
			l.refused(tt.code, l.disk("vda"))
			l.expect(l.backup("c2", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, tt.code)
			l.restoreAll()
		})
	}
}

// Header flags speak against all bitmaps of an image; nothing is written into
// it then.
func TestTrustHeaderFlags(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		bit  byte
		code trust.Reason
	}{
		{"dirty", 1, trust.ReasonDirty},
		{"corrupt", 2, trust.ReasonCorrupt},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			twoCheckpoints(l)
			l.patch("vda", 79, []byte{l.byteAt("vda", 79) | tt.bit})
			l.refused(tt.code, l.disk("vda"))
			before := l.state(l.images)
			d := l.expect(l.backup("c3", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, tt.code)
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

// Formats without bitmaps: an incremental is one by content.
func TestTrustFormatsWithoutBitmaps(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		format string
		make   []string
		code   trust.Reason
	}{
		{"raw", "raw", []string{"create", "-q", "-f", "raw", "vda", "8M"}, trust.ReasonRaw},
		{"version 2", "qcow2", []string{"create", "-q", "-f", "qcow2", "-o", "compat=0.10", "vda", "8M"}, trust.ReasonVersion2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.img(tt.make...)
			disk := l.diskAs(tt.format, "vda")
			l.refused(trust.ReasonFirst, disk)
			l.writeAs(tt.format, "vda", "write -P 1 0 3M", "write -P 2 5M 2M")
			l.backup("c1", disk)
			l.writeAs(tt.format, "vda", "write -P 3 1M 64k", "write -z 5M 1M")
			images := l.state(l.images)
			for _, mode := range []backup.Mode{backup.Auto, backup.Incremental} {
				req := l.request("c2-"+string(mode), disk)
				req.Mode = mode
				d := l.expect(l.backupAs(req), "vda", backup.Incremental, backup.ByContent, tt.code)
				if d.Bitmap != "" || d.NoBitmapReason == "" {
					t.Errorf("bitmap %q was added (%q)", d.Bitmap, d.NoBitmapReason)
				}
			}
			if l.state(l.images) != images {
				t.Error("the image was written to")
			}
			l.restoreAll()
		})
	}
}

// Bitmaps live in the qcow2 file whatever holds the data; a raw data file can be
// written past them.
func TestTrustDataFile(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, option string
		trust        bool
	}{
		{"data file", "data_file=data", true},
		{"raw data file", "data_file=data,data_file_raw=on", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.create("vda", "8M", "-o", tt.option)
			l.write("vda", "write -P 1 0 3M")
			l.backup("c1", l.disk("vda"))
			l.write("vda", "write -P 2 1M 64k")
			if tt.trust {
				l.trusted(l.backup("c2", l.disk("vda")), "c1")
			} else {
				l.patch("data", 2<<20, []byte("written past every bitmap"))
				l.refused(trust.ReasonDataFileRaw, l.disk("vda"))
				l.expect(l.backup("c2", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, trust.ReasonDataFileRaw)
			}
			l.restoreAll()
		})
	}
}

// A restored disk that goes on with its checkpoint's bitmap is a branch.
func (l *lab) restoreContinued(checkpoint, name string) {
	l.t.Helper()
	_, err := restore.Run(l.t.Context(), l.repo, l.manifest(checkpoint),
		[]restore.Target{{Disk: "vda", Path: l.path(name), Format: qcow2.Qcow2}}, restore.Options{Continue: true, Force: true})
	l.must(err)
}

func (l *lab) diskAs(format, name string) backup.DiskRequest {
	d := l.disk(name)
	d.Format = qcow2.Format(format)
	return d
}
