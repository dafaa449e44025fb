// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"os"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// overBase makes an overlay vda over base, which has one checkpoint.
func overBase(l *lab) {
	l.t.Helper()
	l.create("base", "8M")
	l.write("base", "write -P 1 0 4M")
	l.overlay("vda", "base")
	l.write("vda", "write -P 2 1M 128k", "write -P 2 6M 64k")
	l.backup("c1", l.disk("vda"))
	l.write("vda", "write -P 3 1M 64k")
}

// What lies below the bitmap's layer must be what it was.
func TestTrustBackingChanged(t *testing.T) {
	t.Parallel()
	for _, tt := range []lie{
		{name: "rebase -u", do: func(l *lab) {
			l.create("other", "8M")
			l.write("other", "write -P 7 0 8M")
			l.img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "other", "vda")
		}, code: trust.ReasonBacking},
		{name: "rebase -u to nothing", do: func(l *lab) {
			l.img("rebase", "-u", "-f", "qcow2", "-b", "", "vda")
		}, code: trust.ReasonBacking},
		{name: "another format", do: func(l *lab) {
			l.img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "base", "vda")
		}, code: trust.ReasonBacking},
		{name: "deeper", do: func(l *lab) {
			l.create("below", "8M")
			l.write("below", "write -P 7 0 8M")
			l.img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "below", "base")
		}, code: trust.ReasonBacking},
		{name: "written to", do: func(l *lab) {
			l.write("base", "write -P 7 3M 64k")
		}, code: trust.ReasonBacking},
		{name: "touched", do: func(l *lab) {
			l.tool("touch", "base")
		}, code: trust.ReasonBacking},
		{name: "touched, its time put back", do: func(l *lab) {
			info, err := os.Stat(l.path("base"))
			l.must(err)
			l.must(os.Chtimes(l.path("base"), time.Time{}, info.ModTime()))
		}, code: trust.ReasonBacking},
		{name: "exchanged", do: func(l *lab) {
			l.create("other", "8M")
			l.write("other", "write -P 7 0 4M")
			l.tool("touch", "-r", "base", "other")
			l.tool("mv", "other", "base")
		}, code: trust.ReasonBacking},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			overBase(l)
			tt.do(l)
			l.refused(tt.code, l.disk("vda"))
			l.expect(l.backup("c2", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, tt.code)
			l.write("vda", "write -P 8 6M 64k")
			l.trusted(l.backup("c3", l.disk("vda")), "c2")
			l.restoreAll()
		})
	}
}

// Each thing that is recorded of a backing file is compared, also where the
// others agree.
func TestTrustBackingRecord(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*chain.Layer){
		"path":   func(r *chain.Layer) { r.Path += "2" },
		"format": func(r *chain.Layer) { r.Format = "raw" },
		"size":   func(r *chain.Layer) { r.FileSize++ },
		"mtime":  func(r *chain.Layer) { r.Mtime-- },
		"ctime":  func(r *chain.Layer) { r.Ctime-- },
		"header": func(r *chain.Layer) { r.HeaderDigest[0] ^= 1 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			overBase(l)
			l.doctor("c1", func(m *chain.Manifest) { change(&m.Disks[0].Backing[0]) })
			l.refused(trust.ReasonBacking, l.disk("vda"))
		})
	}
	// Devices are numbered anew when the host starts.
	t.Run("device", func(t *testing.T) {
		t.Parallel()
		l := newLab(t)
		overBase(l)
		l.doctor("c1", func(m *chain.Manifest) { m.Disks[0].Backing[0].Device++ })
		l.trusted(l.backup("c2", l.disk("vda")), "c1")
		l.restoreAll()
	})
}

// A backing file with a data file of its own cannot be shown to be unchanged.
func TestTrustBackingDataFile(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("base", "8M", "-o", "data_file=data")
	l.write("base", "write -P 1 0 4M")
	l.overlay("vda", "base")
	l.backup("c1", l.disk("vda"))
	l.write("vda", "write -P 3 1M 64k")
	l.refused(trust.ReasonBacking, l.disk("vda"))
	l.expect(l.backup("c2", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, trust.ReasonBacking)
	l.restoreAll()
}

// An image over an unchanged backing file is as good as any.
func TestTrustBackingUnchanged(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	overBase(l)
	d := l.trusted(l.backup("c2", l.disk("vda")), "c1")
	if d.DirtyBytes != 64<<10 {
		t.Errorf("%d bytes are dirty, want %d", d.DirtyBytes, 64<<10)
	}
	l.write("vda", "write -z 6M 64k", "discard 0 64k")
	l.trusted(l.backup("c3", l.disk("vda")), "c2")
	// A safe rebase copies, and marks what it copies; but it leaves what an
	// unsafe one leaves, too.
	l.img("rebase", "-f", "qcow2", "-b", "", "vda")
	l.expect(l.backup("c4", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, trust.ReasonBacking)
	l.restoreAll()
}

// External snapshots: the bitmap is in a layer below, and what the newer layers
// hold has changed, whatever their own bitmaps say.
func TestTrustOverlays(t *testing.T) {
	t.Parallel()
	// snapshot puts an overlay over vda, which becomes NAME.
	snapshot := func(l *lab, name string) {
		l.t.Helper()
		l.tool("mv", "vda", name)
		if _, err := os.Stat(l.path("base")); name == "mid" && err == nil {
			l.img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "base", "mid")
		}
		l.overlay("vda", name)
	}
	for _, tt := range []struct {
		name string
		do   func(l *lab)
	}{
		{"without bitmaps", func(l *lab) {
			snapshot(l, "base")
			l.write("vda", "write -P 7 0 64k", "write -z 1M 64k", "write -P 8 7M 4k")
		}},
		{"nothing written", func(l *lab) {
			snapshot(l, "base")
		}},
		{"bitmap of the same name after the first write", func(l *lab) {
			name := l.bitmapOf("c2")
			snapshot(l, "base")
			l.write("vda", "write -P 7 0 64k", "write -P 7 6M 1M")
			l.img("bitmap", "--add", "vda", name)
			l.write("vda", "write -P 8 3M 64k")
		}},
		{"bitmaps as libvirt propagates them", func(l *lab) {
			n1, n2 := l.bitmapOf("c1"), l.bitmapOf("c2")
			snapshot(l, "base")
			l.img("bitmap", "--add", "vda", n1)
			l.img("bitmap", "--add", "vda", n2)
			l.write("vda", "write -P 7 0 64k", "write -z 6M 64k")
		}},
		{"two overlays", func(l *lab) {
			snapshot(l, "base")
			l.write("vda", "write -P 7 0 64k", "write -P 7 3M 64k")
			snapshot(l, "mid")
			l.write("vda", "write -z 3M 64k", "write -P 8 4M 64k")
		}},
		{"smaller clusters", func(l *lab) {
			l.tool("mv", "vda", "base")
			l.overlay("vda", "base", "-o", "cluster_size=4k")
			l.write("vda", "write -P 7 0 512", "write -z 5M 4k")
		}},
		{"grown", func(l *lab) {
			l.tool("mv", "vda", "base")
			l.overlay("vda", "base")
			l.write("vda", "write -P 7 0 64k")
			l.img("resize", "-q", "-f", "qcow2", "vda", "9M")
		}},
		{"committed back", func(l *lab) {
			snapshot(l, "base")
			l.write("vda", "write -P 7 0 64k", "write -P 7 3M 64k")
			l.img("commit", "-q", "-f", "qcow2", "vda")
			l.tool("mv", "base", "vda")
		}},
		{"committed back, the overlay stays", func(l *lab) {
			snapshot(l, "base")
			l.write("vda", "write -P 7 0 64k", "write -P 7 3M 64k")
			l.img("commit", "-q", "-f", "qcow2", "vda")
			l.write("vda", "write -P 8 7M 64k")
		}},
		{"the base was written to", func(l *lab) {
			// Its own bitmap has seen that.
			l.write("vda", "write -P 6 2M 64k")
			snapshot(l, "base")
			l.write("base", "write -P 7 6M 64k")
			l.write("vda", "write -P 8 0 64k")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			twoCheckpoints(l)
			tt.do(l)
			l.trusted(l.backup("c3", l.disk("vda")), "c2")
			l.write("vda", "write -P 9 5M 64k")
			l.trusted(l.backup("c4", l.disk("vda")), "c3")
			l.restoreAll()
		})
	}
}

// A layer in between that is smaller hides data without a mark anywhere.
func TestTrustSmallerLayerBetween(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	oneCheckpoint(l)
	l.tool("mv", "vda", "base")
	l.overlay("mid", "base", "-o", "size=6M")
	l.overlay("vda", "mid", "-o", "size=8M")
	l.refused(trust.ReasonMap, l.disk("vda"))
	l.expect(l.backup("c2", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, trust.ReasonMap)
	l.restoreAll()
}

// Checkpoints were made with an overlay; then it was committed and given up.
func TestTrustCommittedAfterCheckpoint(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	oneCheckpoint(l)
	l.tool("mv", "vda", "base")
	l.overlay("vda", "base")
	l.write("vda", "write -P 4 2M 64k")
	l.trusted(l.backup("c2", l.disk("vda")), "c1")
	l.write("vda", "write -P 5 3M 64k")
	l.img("commit", "-q", "-f", "qcow2", "vda")
	l.write("vda", "write -P 6 4M 64k") // the overlay's own bitmap is sound, its base is another
	l.trusted(l.backup("c3", l.disk("vda")), "c1")
	l.restoreAll()

	// Now with the base itself: c1's bitmap has seen the commit.
	base := backup.DiskRequest{Disk: "vda", Path: l.path("base"), Format: qcow2.Qcow2}
	l.trusted(l.backup("c4", base), "c1")
	l.write("base", "write -P 7 5M 64k")
	l.trusted(l.backup("c5", base), "c4")
	l.restoreAll()
}

// The layer with the bitmap lies below, and is not sound.
func TestTrustLowerLayerUnsound(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		do   func(l *lab)
		code trust.Reason
	}{
		{"dirty", func(l *lab) { l.patch("base", 79, []byte{l.byteAt("base", 79) | 1}) }, trust.ReasonDirty},
		{"corrupt", func(l *lab) { l.patch("base", 79, []byte{l.byteAt("base", 79) | 2}) }, trust.ReasonDirty},
		{"killed", func(l *lab) { l.crash("base", "write -P 6 7M 64k") }, trust.ReasonInUse},
		{"disabled", func(l *lab) { l.img("bitmap", "--disable", "base", l.bitmapOf("c1")) }, trust.ReasonDisabled},
		{"autoclear", func(l *lab) { l.patch("base", 95, []byte{l.byteAt("base", 95) &^ 1}) }, trust.ReasonUnusable},
		{"snapshot", func(l *lab) { l.img("snapshot", "-c", "s", "base") }, trust.ReasonSnapshots},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			oneCheckpoint(l)
			l.tool("mv", "vda", "base")
			l.overlay("vda", "base")
			l.write("vda", "write -P 4 2M 64k")
			tt.do(l)
			l.refused(tt.code, l.disk("vda"))
			l.expect(l.backup("c2", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, tt.code)
			l.restoreAll()
		})
	}
}
