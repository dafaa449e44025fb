// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/restore"
)

// The same life is backed up twice: by bitmaps into one repository, and by
// content (no bitmap is ever added for it) into another. What they restore must
// be the same, byte by byte, and what qemu-img says.
func TestModesAgree(t *testing.T) {
	t.Parallel()
	for _, seed := range lives(t, 6) {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			count := &tally{counts: make(map[string]int)}
			byBitmap, byContent := newLife(t, seed, nil, count), newLife(t, seed+1, nil, count)
			d := byBitmap.disks[0]
			if d.format == "raw" {
				byBitmap.becomeQcow2(d)
			}
			byBitmap.disks = byBitmap.disks[:1]
			byContent.disks = byBitmap.disks
			defer func() {
				if t.Failed() {
					t.Logf("repeat with IMGBACKUP_SEED=%d IMGBACKUP_SOAK=1 go test ./backup -run TestModesAgree", seed)
				}
			}()
			events := guestEvents()
			for range 6 {
				modesAgree(t, byBitmap, byContent)
				for range 1 + byBitmap.rng.IntN(3) {
					events[byBitmap.rng.IntN(len(events))].do(byBitmap, d)
				}
			}
			modesAgree(t, byBitmap, byContent)
			if count.counts["verdict: incremental by content"] == 0 {
				t.Error("no backup was made by content")
			}
		})
	}
}

// modesAgree backs the disk up both ways and compares.
func modesAgree(t *testing.T, byBitmap, byContent *life) {
	t.Helper()
	var got []string
	for _, l := range []*life{byBitmap, byContent} {
		d := l.disks[0]
		a := l.prepare()
		a.must = map[string]bool{}
		a.req.AllowDirs = []string{byBitmap.dir, byContent.dir}
		a.req.NoCheckpoint = l == byContent
		a.run()
		if t.Failed() {
			return
		}
		p := l.points[len(l.points)-1]
		rec, _ := p.manifest.Disk(d.target)
		if l == byContent && rec.Detection == string(backup.ByBitmap) {
			t.Errorf("checkpoint %s was made by a bitmap that nobody added for it", p.name)
		}
		out := l.newFile("mode")
		l.restoreTo(p.manifest, []restore.Target{{Disk: d.target, Path: out, Format: qcow2.Raw}}, restore.Options{})
		got = append(got, out)
	}
	diff, err := differing(t, got[0], got[1])
	if err != nil {
		t.Fatal(err)
	}
	if len(diff) > 0 {
		t.Errorf("by bitmap and by content differ at %v", diff)
	}
}
