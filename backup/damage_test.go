// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/qcow2"
)

// packs lists the files of the repository's packs.
func (l *lab) packs() []string {
	l.t.Helper()
	files, err := filepath.Glob(filepath.Join(l.repoDir, "packs", "*", "*"))
	l.must(err)
	if len(files) == 0 {
		l.t.Fatal("the repository has no packs")
	}
	return files
}

// A pack that is gone, or was cut short, cannot be built on: what it held is
// stored again, even where nothing changed.
func TestTrustPackMissing(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(pack string) error{
		"gone":      os.Remove,
		"cut short": func(pack string) error { return errors.Join(os.Remove(pack), os.WriteFile(pack, []byte("cut"), 0o644)) },
	} {
		l := newLab(t)
		twoCheckpoints(l)
		for _, pack := range l.packs() {
			l.must(damage(pack))
		}
		req := l.request("c3", l.disk("vda"))
		req.Mode = backup.Incremental
		l.unchanged(func() {
			var refused *backup.NotTrustedError
			if err := l.fails(req, backup.Hooks{}); !errors.As(err, &refused) || refused.Code != trust.ReasonArchive {
				t.Errorf("pack %s, mode incremental: %v", name, err)
			}
		})
		l.taken = nil // these cannot be restored any more
		l.expect(l.backup("c3", l.disk("vda")), "vda", backup.Full, backup.ByNothing, trust.ReasonArchive)
		l.restoreAll()
	}
}

// A chunk that rotted in its pack does not keep the disk from being compared
// with it: it is stored again.
func TestContentOverDamagedChunk(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	disk := backup.DiskRequest{Disk: "vda", Path: l.path("vda"), Format: qcow2.Raw}
	l.img("create", "-q", "-f", "raw", "vda", "4M")
	l.writeAs("raw", "vda", "write -P 1 0 4M")
	l.backup("c1", disk)
	for _, pack := range l.packs() {
		data, err := os.ReadFile(pack)
		l.must(err)
		data[12] ^= 4 // in the first frame
		l.must(errors.Join(os.Remove(pack), os.WriteFile(pack, data, fs.FileMode(0o644))))
	}
	l.writeAs("raw", "vda", "write -P 2 64k 64k", "write -P 2 1M 64k", "write -P 2 2M 64k", "write -P 2 3M 64k")
	l.taken = nil // c1 cannot be restored any more
	r := l.backup("c2", disk)
	d := l.expect(r, "vda", backup.Incremental, backup.ByContent, trust.ReasonRaw)
	if d.DataBytes != 4<<20 {
		t.Errorf("%d bytes were stored, not the whole disk", d.DataBytes)
	}
	if len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "damaged") {
		t.Errorf("notes: %q", r.Notes)
	}
	l.restoreAll()
}

// A chunk that is seen to have rotted is stored again, and nothing rests on it any more,
// although the image has not changed since.
func TestTrustOverDamagedChunk(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "1M")
	l.write("vda", "write -P 1 0 1M")
	l.backup("c1", l.disk("vda"))
	for _, pack := range l.packs() {
		data, err := os.ReadFile(pack)
		l.must(err)
		data[12] ^= 4 // in the only frame
		l.must(errors.Join(os.Remove(pack), os.WriteFile(pack, data, fs.FileMode(0o644))))
	}
	l.taken = nil // c1 cannot be restored any more
	l.expect(l.backup("c2", l.disk("vda")), "vda", backup.Full, backup.ByNothing, trust.ReasonArchive)
	l.restoreAll()
	l.trusted(l.backup("c3", l.disk("vda")), "c2")
	l.restoreAll()
}
