// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
)

// threeCheckpoints makes a line c1, c2, c3; c1's bitmap is gone from the image
// by then.
func threeCheckpoints(l *lab) {
	l.t.Helper()
	twoCheckpoints(l)
	l.trusted(l.backup("c3", l.disk("vda")), "c2")
	l.write("vda", "write -P 6 4M 64k")
	l.holds("vda", "c2", "c3")
}

// since is a request to be incremental from a checkpoint.
func (l *lab) since(checkpoint, from string) backup.Request {
	req := l.request(checkpoint, l.disk("vda"))
	req.Mode, req.Since = backup.Incremental, from
	return req
}

// An incremental since an older checkpoint: by its own bitmap, or else by what
// the archives since recorded.
func TestTrustSince(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		from  string
		do    func(l *lab)
		dirty int64
	}{
		{"c3", nil, 64 << 10},
		{"c2", nil, 128 << 10},
		{"c1", nil, 192 << 10},
		{"c1", func(l *lab) { l.img("bitmap", "--remove", "vda", l.bitmapOf("c2")) }, 192 << 10},
		{"c2", func(l *lab) { l.img("bitmap", "--remove", "vda", l.bitmapOf("c2")) }, 128 << 10},
		{"c2", func(l *lab) { l.img("bitmap", "--disable", "vda", l.bitmapOf("c2")) }, 128 << 10},
		{"c1", func(l *lab) { l.img("bitmap", "--remove", "vda", l.bitmapOf("c3")) }, 192 << 10},
		{"c1", func(l *lab) { // a state that was found by content is a link of the line, too
			l.crash("vda", "write -P 7 3M 64k")
			l.expect(l.backup("c4", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, trust.ReasonInUse)
		}, 256 << 10},
		{"c1", func(l *lab) { // what was smaller in between is read
			l.img("resize", "-q", "-f", "qcow2", "--shrink", "vda", "6M")
			l.backup("c4", l.disk("vda"))
			l.img("resize", "-q", "-f", "qcow2", "vda", "8M")
		}, 192<<10 + 2<<20},
	} {
		t.Run(tt.from, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			threeCheckpoints(l)
			if tt.do != nil {
				tt.do(l)
			}
			d := l.trusted(l.backupAs(l.since("after", tt.from)), tt.from)
			if d.DirtyBytes != tt.dirty {
				t.Errorf("%d bytes are dirty, want %d (%s)", d.DirtyBytes, tt.dirty, d.Reason)
			}
			l.restoreAll()
		})
	}
}

// What cannot be linked is refused.
func TestTrustSinceRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, from string
		do         func(l *lab)
		code       trust.Reason
	}{
		{"unknown", "c9", nil, trust.ReasonNoCheckpoint},
		{"a full in between", "c1", func(l *lab) {
			req := l.request("full", l.disk("vda"))
			req.Mode = backup.Full
			l.backupAs(req)
			l.backup("c4", l.disk("vda"))
		}, trust.ReasonBrokenLine},
		{"no bitmap left", "c1", func(l *lab) {
			for _, b := range l.bitmaps("vda") {
				l.img("bitmap", "--remove", "vda", b.Name)
			}
		}, trust.ReasonMissing},
		{"newer than the image", "c3", func(l *lab) {
			l.img("bitmap", "--remove", "vda", l.bitmapOf("c3"))
		}, trust.ReasonMissing},
		{"witnesses differ", "c2", func(l *lab) {
			l.img("bitmap", "--clear", "vda", l.bitmapOf("c2"))
		}, trust.ReasonWitness},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			threeCheckpoints(l)
			if tt.do != nil {
				tt.do(l)
			}
			l.refusedAs(l.since("after", tt.from), tt.code)
			l.backup("after", l.disk("vda"))
			l.restoreAll()
		})
	}
}

// A synthetic full in the line cannot tell what changed.
func TestTrustSyntheticFull(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "8M")
	l.write("vda", "write -P 1 0 1M")
	l.backup("c000", l.disk("vda"))
	longest := 0
	for i := 1; i <= 68; i++ {
		// One process writes, checkpoints stay a line.
		l.write("vda", fmt.Sprintf("write -P %d %dk 64k", i, i*100))
		req := l.request(fmt.Sprintf("c%03d", i), l.disk("vda"))
		if i%20 == 0 || i > 62 {
			l.backupAs(req)
		} else if _, err := l.run(req, backup.Hooks{}); err != nil {
			t.Fatal(err)
		}
		d, _ := l.manifest(req.Checkpoint).Disk("vda")
		longest = max(longest, len(d.Maps))
		if len(d.Maps) > 64 {
			t.Fatalf("%s has %d maps", req.Checkpoint, len(d.Maps))
		}
	}
	if longest != 64 {
		t.Errorf("the longest replay had %d maps, want 64", longest)
	}
	if d, _ := l.manifest("c064").Disk("vda"); len(d.Maps) != 1 || d.Mode != string(backup.Incremental) {
		t.Errorf("c064 is %s with %d maps, want a synthetic full", d.Mode, len(d.Maps))
	}
	l.refusedAs(l.since("after", "c060"), trust.ReasonBrokenLine)
	l.restoreAll()
}

// Disks come and go; each is incremental from its own last state.
func TestTrustDisksComeAndGo(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	vda, vdb := twoDisks(l)
	l.create("vdc", "1M")
	l.write("vdc", "write -P 1 0 64k")
	vdc := l.disk("vdc")
	vdc.Disk = "vdc"
	r := l.backup("c2", vda, vdc)
	l.expect(r, "vda", backup.Incremental, backup.ByBitmap, trust.ReasonTrusted)
	l.expect(r, "vdc", backup.Full, backup.ByNothing, trust.ReasonFirst)
	l.write("vdb", "write -P 8 7M 64k")
	r = l.backup("c3", vda, vdb, vdc)
	for target, from := range map[string]string{"vda": "c2", "vdb": "c1", "vdc": "c2"} {
		d := l.expect(r, target, backup.Incremental, backup.ByBitmap, trust.ReasonTrusted)
		if d.IncrementalFrom.Name != from {
			t.Errorf("%s is incremental from %s, want %s", target, d.IncrementalFrom.Name, from)
		}
	}
	// Per disk, as libvirt has it.
	vda.Mode, vdb.Since = backup.Full, "c1"
	r = l.backup("c4", vda, vdb, vdc)
	l.expect(r, "vda", backup.Full, backup.ByNothing, trust.ReasonRequested)
	if d := l.expect(r, "vdb", backup.Incremental, backup.ByBitmap, trust.ReasonTrusted); d.IncrementalFrom.Name != "c1" {
		t.Errorf("vdb is incremental from %s, want c1", d.IncrementalFrom.Name)
	}
	l.restoreAll()
	// One image is one disk.
	same := vda
	same.Disk = "vdx"
	var wrong *usage.Error
	l.unchanged(func() {
		if _, err := l.run(l.request("c5", vda, same), backup.Hooks{}); !errors.As(err, &wrong) {
			t.Errorf("got %v, want wrong usage", err)
		}
	})
}

// One disk of two cannot be trusted: an incremental of both is refused.
func TestTrustOneDiskOfTwo(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	vda, vdb := twoDisks(l)
	l.img("bitmap", "--disable", "vdb", l.bitmapOf("c1"))
	l.refused(trust.ReasonDisabled, vda, vdb)
	r := l.backup("c2", vda, vdb)
	l.expect(r, "vda", backup.Incremental, backup.ByBitmap, trust.ReasonTrusted)
	l.expect(r, "vdb", backup.Incremental, backup.ByContent, trust.ReasonDisabled)
	l.restoreAll()
}

// Two hosts, or two VMs, must not weave one chain without being told to.
func TestTrustOwner(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(m *chain.Manifest)
		uuid   string
		refuse bool
	}{
		{"same host", func(*chain.Manifest) {}, "", false},
		{"another host", func(m *chain.Manifest) { m.Host = chain.Host{Name: "other", ID: "00"} }, "", true},
		{"another host, same VM", func(m *chain.Manifest) {
			m.Host, m.DomainUUID = chain.Host{Name: "other", ID: "00"}, "c7a5fdbd-edaf-9455-926a-d65c16db1809"
		}, "c7a5fdbd-edaf-9455-926a-d65c16db1809", false},
		{"another VM", func(m *chain.Manifest) { m.DomainUUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809" }, "5d7bd5bf-7a0c-4b4c-9b57-5a6bd4f2a3c1", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			oneCheckpoint(l)
			l.doctor("c1", tt.change)
			req := l.request("c2", l.disk("vda"))
			req.DomainUUID = tt.uuid
			if tt.refuse {
				l.unchanged(func() {
					var owned *backup.OwnedError
					if _, err := l.run(req, backup.Hooks{}); !errors.As(err, &owned) {
						t.Errorf("got %v, want an OwnedError", err)
					}
				})
				req.Adopt = true
			}
			l.trusted(l.backupAs(req), "c1")
			l.restoreAll()
		})
	}
}

// Without a checkpoint the image is not written to, and nothing can be
// incremental by bitmap since; but states may build on it.
func TestTrustNoCheckpoint(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "8M")
	l.write("vda", "write -P 1 0 2M")
	req := l.request("c1", l.disk("vda"))
	req.NoCheckpoint = true
	images := l.state(l.images)
	d := l.expect(l.backupAs(req), "vda", backup.Full, backup.ByNothing, trust.ReasonFirst)
	if d.Bitmap != "" || d.NoBitmapReason == "" {
		t.Errorf("bitmap %q was added (%q)", d.Bitmap, d.NoBitmapReason)
	}
	if l.state(l.images) != images {
		t.Error("the image was written to")
	}
	l.write("vda", "write -P 2 1M 64k", "write -z 0 64k")
	l.refused(trust.ReasonMissing, l.disk("vda"))
	req.Checkpoint = "c2"
	l.expect(l.backupAs(req), "vda", backup.Incremental, backup.ByContent, trust.ReasonMissing)
	l.expect(l.backup("c3", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, trust.ReasonMissing)
	l.write("vda", "write -P 3 1M 64k")
	l.trusted(l.backup("c4", l.disk("vda")), "c3")
	l.restoreAll()
}

// Zeros are data: what is dirty and reads as zeros is zeros after a restore,
// however the change was found, and whatever kind of zeros they are.
func TestTrustZeros(t *testing.T) {
	t.Parallel()
	zeros := []string{"write -P 0 0 64k", "write -z 1M 64k", "write -zu 2M 64k", "discard 3M 64k", "write -P 0 4194816 512", "write -z 5M 2M"}
	for _, format := range []string{"qcow2", "raw"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.img("create", "-q", "-f", format, "vda", "8M")
			l.writeAs(format, "vda", "write -P 1 0 8M")
			disk := l.diskAs(format, "vda")
			l.backup("c1", disk)
			l.writeAs(format, "vda", zeros...)
			r := l.backup("c2", disk)
			if format == "qcow2" {
				l.trusted(r, "c1")
				l.writeAs(format, "vda", "write -P 5 5M 64k")
				l.img("bitmap", "--disable", "vda", l.bitmapOf("c1"))
				l.crash("vda", "write -P 0 7M 64k")
				l.expect(l.backup("c3", disk), "vda", backup.Incremental, backup.ByContent, trust.ReasonInUse)
			} else {
				l.expect(r, "vda", backup.Incremental, backup.ByContent, trust.ReasonRaw)
			}
			l.writeAs(format, "vda", "write -P 9 0 64k", "write -P 9 5M 4k", "write -P 0 6M 1M")
			l.backup("c4", disk)
			l.restoreAll()
		})
	}
}

// Sizes of disks end anywhere: inside clusters, granules, chunks and sectors.
func TestTrustSizes(t *testing.T) {
	t.Parallel()
	for _, size := range []string{"512", "1048576", "1049088", "3146240", "66048"} {
		for _, format := range []string{"qcow2", "raw"} {
			t.Run(format+" "+size, func(t *testing.T) {
				t.Parallel()
				l := newLab(t)
				l.img("create", "-q", "-f", format, "vda", size)
				disk := l.diskAs(format, "vda")
				l.backup("c0", disk)
				last := fmt.Sprintf("write -P 1 %s 512", offset(size, -512))
				l.writeAs(format, "vda", "write -P 3 0 512", last)
				l.backup("c1", disk)
				l.writeAs(format, "vda", fmt.Sprintf("write -z %s 512", offset(size, -512)))
				l.backup("c2", disk)
				l.backup("c3", disk)
				l.restoreAll()
			})
		}
	}
}

func offset(size string, by int64) string {
	var n int64
	fmt.Sscan(size, &n)
	return fmt.Sprint(n + by)
}

// By content, pieces that did not change are not stored again.
func TestTrustContentStoresDifferences(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "8M")
	l.write("vda", "write -s /dev/urandom 0 8M")
	l.backup("c1", l.disk("vda"))
	l.write("vda", "write -s /dev/urandom 3M 64k")
	l.img("bitmap", "--remove", "vda", l.bitmapOf("c1"))
	d := l.expect(l.backup("c2", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, trust.ReasonMissing)
	if d.DataBytes != archive.DiffSize || d.StoredBytes > archive.DiffSize+4096 {
		t.Errorf("%d bytes of data, %d stored, want %d", d.DataBytes, d.StoredBytes, archive.DiffSize)
	}
	l.restoreAll()
}

// A dry run tells the same as the run, and writes nothing.
func TestTrustDryRun(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	twoCheckpoints(l)
	req := l.request("c3", l.disk("vda"))
	var plan *backup.Plan
	l.unchanged(func() {
		var err error
		plan, err = backup.DryRun(t.Context(), l.repo, req, backup.Hooks{})
		l.must(err)
	})
	d := l.trusted(l.backupAs(req), "c2")
	if p := plan.Disks[0]; p.DirtyBytes != d.DirtyBytes || string(p.Code) != d.ReasonCode || p.Since.Name != "c2" || !p.AddsBitmap {
		t.Errorf("the dry run said %+v, the manifest %+v", p, d)
	}
	l.restoreAll()
}

// A backup that is interrupted at any step leaves nothing.
func TestTrustCancelled(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	twoCheckpoints(l)
	for _, step := range []string{backup.StepIntent, backup.StepAdd, backup.StepAdded, backup.StepRead, backup.StepStored} {
		ctx, cancel := context.WithCancel(t.Context())
		hooks, hit := at(step, 1, cancel)
		if err := l.failsIn(ctx, l.request("c3", l.disk("vda")), hooks); !errors.Is(err, context.Canceled) || !hit() {
			t.Errorf("cancelled at %s: %v", step, err)
		}
		cancel()
	}
	l.trusted(l.backup("c3", l.disk("vda")), "c2")
	l.restoreAll()
}

// A format is never guessed.
func TestTrustFormat(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "8M")
	req := l.request("c1", backup.DiskRequest{Disk: "vda", Path: l.path("vda")})
	var wrong *usage.Error
	l.unchanged(func() {
		if _, err := l.run(req, backup.Hooks{}); !errors.As(err, &wrong) {
			t.Errorf("got %v, want wrong usage", err)
		}
	})
	// What is declared raw is raw, whatever it holds.
	req.Disks[0].Format = qcow2.Raw
	l.backupAs(req)
	l.restoreAll()
}
