// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/objstore"
)

// An audit names exactly what a bitmap missed, whether the judge believed it or not; the archive
// is right either way, and the bitmap is gone.
func TestAudit(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		lie     func(l *lab, bitmap string)
		missed  []bitmapstore.Run
		trusted bool // the judge may have found nothing
	}{
		"honest": {func(l *lab, _ string) {
			l.write("vda", "write -P 9 1M 1000", "write -P 9 100M 64k")
		}, nil, true},
		// In place, of so much data that samples rarely meet it.
		"overwritten": {func(l *lab, bitmap string) {
			l.img("bitmap", "--disable", "vda", bitmap)
			l.write("vda", "write -P 9 5M 512", "write -P 9 30000k 3k")
			l.img("bitmap", "--enable", "vda", bitmap)
			l.write("vda", "write -P 9 1M 512")
		}, []bitmapstore.Run{{Start: 5 << 20, End: 5<<20 + 512}, {Start: 30000 << 10, End: 30003 << 10}}, true},
		"allocated": {func(l *lab, bitmap string) {
			l.write("vda", "write -P 9 200M 1536")
			l.img("bitmap", "--clear", "vda", bitmap)
		}, []bitmapstore.Run{{Start: 200 << 20, End: 200<<20 + 1536}}, false},
		"zeros": {func(l *lab, bitmap string) {
			l.write("vda", "write -z 8M 128k")
			l.img("bitmap", "--clear", "vda", bitmap)
		}, []bitmapstore.Run{{Start: 8 << 20, End: 8<<20 + 128<<10}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.create("vda", "256M")
			l.write("vda", "write -P 1 0 40M")
			l.backup("c1", l.disk("vda"))
			tt.lie(l, l.bitmapOf("c1"))
			req := l.request("c2", l.disk("vda"))
			req.Audit = true
			r := l.backupAs(req)
			if len(r.Audits) != 1 {
				t.Fatalf("%+v", r.Audits)
			}
			a, d := &r.Audits[0], r.Manifest.Disks[0]
			if a.Bitmap != l.bitmapOf("c1") || a.Since != "c1" || a.Lied() != (tt.missed != nil) || a.More || !slices.Equal(a.Missed, tt.missed) {
				t.Errorf("%+v", a)
			}
			if d.Detection != string(backup.ByContent) || (d.ReasonCode == string(trust.ReasonTrusted)) != (tt.missed == nil) {
				t.Errorf("%s, %s: %s", d.Detection, d.ReasonCode, d.Reason)
			}
			if i := slices.IndexFunc(d.Witnesses, func(w chain.BitmapRecord) bool { return w.Name == a.Bitmap }); i < 0 || d.Witnesses[i].Sound && a.Lied() {
				t.Errorf("a bitmap that lied is on record as sound: %+v", d.Witnesses)
			}
			want := []string{"c1", "c2"}
			if tt.missed != nil {
				want = want[1:]
			}
			l.holds("vda", want...)
			l.write("vda", "write -P 5 9M 64k")
			l.trusted(l.backup("c3", l.disk("vda")), "c2")
			l.restoreAll()
		})
	}
}

// newHostLab is a lab of a host that can't read what it has stored.
func newHostLab(t *testing.T) *lab {
	l := newLab(t)
	keys, store := chaintest.NewKeys(t), objstore.NewMem()
	_, err := chaintest.Init(t.Context(), store, keys)
	l.must(err)
	l.repo, err = chaintest.Open(t.Context(), store, keys.Host)
	l.must(err)
	return l
}

// A host that can't read what it has stored audits by digests of 64 KiB: what it can't tell is said.
func TestAuditByHost(t *testing.T) {
	t.Parallel()
	l := newHostLab(t)
	l.create("vda", "64M")
	l.write("vda", "write -P 1 0 40M")
	l.backup("c1", l.disk("vda"))
	l.img("bitmap", "--disable", "vda", l.bitmapOf("c1"))
	l.write("vda", "write -P 9 5M 512", "write -P 9 30000k 3k")
	l.img("bitmap", "--enable", "vda", l.bitmapOf("c1"))
	l.write("vda", "write -P 9 1M 512")
	req := l.request("c2", l.disk("vda"))
	req.Audit = true
	a := l.backupAs(req).Audits[0]
	want := []bitmapstore.Run{{Start: 5 << 20, End: 5<<20 + 64<<10}, {Start: 29952 << 10, End: 30016 << 10}}
	if !slices.Equal(a.Missed, want) {
		t.Errorf("%+v, want %+v", a.Missed, want)
	}
}

// What has no bitmap has nothing to audit, and a full asks none.
func TestAuditOfNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.img("create", "-q", "-f", "raw", "raw", "1M")
	for i := range 2 {
		req := l.request(fmt.Sprintf("c%d", i), l.rawDisk("raw", "vda"))
		req.Audit = true
		if r := l.backupAs(req); len(r.Audits) != 1 || r.Audits[0].Bitmap != "" || r.Audits[0].Lied() {
			t.Errorf("%+v", r.Audits)
		}
	}
	req := l.request("full", l.rawDisk("raw", "vda"))
	req.Audit, req.Mode = true, backup.Full
	if _, err := l.run(req, backup.Hooks{}); err == nil {
		t.Error("an audit of a full")
	}
}

// Such a host compares pieces of 64 KiB when it examines a bitmap, too. What has changed in the same
// piece, now or before, is no evidence against a bitmap; what has changed in a piece that is
// called unchanged as a whole is.
func TestTrustByHost(t *testing.T) {
	t.Parallel()
	l := newHostLab(t)
	l.create("vda", "256k", "-o", "cluster_size=4k") // so small that all of it is sampled
	l.write("vda", "write -P 1 0 256k")
	l.backup("c1", l.disk("vda"))
	for i, at := range []int{68, 100, 4, 124} {
		l.write("vda", fmt.Sprintf("write -P %d %dk 4k", 2+i, at))
		d := l.trusted(l.backup(fmt.Sprintf("c%d", 2+i), l.disk("vda")), fmt.Sprintf("c%d", 1+i))
		if d.DirtyBytes != 4<<10 {
			t.Errorf("c%d: %d bytes are dirty", 2+i, d.DirtyBytes)
		}
	}
	for _, checkpoint := range []string{"c4", "c5"} {
		l.img("bitmap", "--disable", "vda", l.bitmapOf(checkpoint))
	}
	l.write("vda", "write -P 9 200k 512")
	for _, checkpoint := range []string{"c4", "c5"} {
		l.img("bitmap", "--enable", "vda", l.bitmapOf(checkpoint))
	}
	l.write("vda", "write -P 9 132k 512")
	l.refused(trust.ReasonMap, l.disk("vda"))
}
