// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
)

// compressedDisk makes an image of 48 MiB of data, all of it compressed, with one checkpoint:
// any write allocates, and so few samples seldom meet it.
func compressedDisk(l *lab) {
	l.t.Helper()
	l.create("raw.qcow2", "48M")
	var writes []string
	for i := range 16 {
		writes = append(writes, fmt.Sprintf("write -P %d %dM 3M", i+1, 3*i))
	}
	l.write("raw.qcow2", writes...)
	l.img("convert", "-c", "-O", "qcow2", "raw.qcow2", "vda")
	l.expect(l.backup("c1", l.disk("vda")), "vda", backup.Full, backup.ByNothing, trust.ReasonFirst)
}

// A bitmap that was the only one, and that missed a write of one cluster somewhere, is convicted
// by where that cluster lies.
func TestMovedConvicts(t *testing.T) {
	t.Parallel()
	for name, lie := range map[string]func(l *lab, bitmap string){
		"cleared": func(l *lab, bitmap string) {
			l.write("vda", "write -P 99 30M 64k")
			l.img("bitmap", "--clear", "vda", bitmap)
		},
		"made anew": func(l *lab, bitmap string) {
			l.write("vda", "write -P 99 30M 64k")
			l.img("bitmap", "--remove", "vda", bitmap)
			l.img("bitmap", "--add", "vda", bitmap)
		},
		"disabled for a while": func(l *lab, bitmap string) {
			l.img("bitmap", "--disable", "vda", bitmap)
			l.write("vda", "write -P 99 30M 64k")
			l.img("bitmap", "--enable", "vda", bitmap)
			l.write("vda", "write -P 99 40M 64k")
		},
		"made zero": func(l *lab, bitmap string) {
			l.img("bitmap", "--disable", "vda", bitmap)
			l.write("vda", "write -P 98 30M 64k", "write -P 0 30M 64k")
			l.img("bitmap", "--enable", "vda", bitmap)
		},
		"a backing file now": func(l *lab, bitmap string) {
			l.write("vda", "write -P 99 30M 64k")
			l.img("bitmap", "--clear", "vda", bitmap)
			l.overlay("top", "vda")
			l.write("top", "write -P 97 10M 64k")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			compressedDisk(l)
			lie(l, l.bitmapOf("c1"))
			disk := l.disk("vda")
			if name == "a backing file now" {
				disk = l.disk("top")
			}
			// A sample may have met it.
			l.refusedFor(disk, trust.ReasonMoved, trust.ReasonContent)
			r := l.backup("c2", disk)
			d, _ := r.Manifest.Disk("vda")
			if d.Detection != string(backup.ByContent) {
				t.Errorf("detection %s, %s", d.Detection, d.Reason)
			}
			l.write(strings.TrimPrefix(disk.Path, l.images+"/"), "write -P 5 1M 64k")
			l.backup("c3", disk)
			l.restoreAll()
		})
	}
}

// refusedFor demands an incremental, which must be refused for one of some reasons.
func (l *lab) refusedFor(disk backup.DiskRequest, codes ...trust.Reason) {
	l.t.Helper()
	plan, err := backup.DryRun(l.t.Context(), l.repo, l.request("", disk), backup.Hooks{})
	l.must(err)
	if p := plan.Disks[0]; !slices.Contains(codes, p.Code) {
		l.t.Errorf("planned: %s, %s (%s)", p.Detection, p.Code, p.Reason)
	}
}

// What was written anew in another place, with the same bytes and the same bitmaps, is read and
// believed.
func TestMovedAndTheSame(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	compressedDisk(l)
	l.write("vda", "write -P 99 30M 64k")
	l.img("convert", "--bitmaps", "-O", "qcow2", "vda", "other")
	d := l.trusted(l.backup("c2", l.disk("other")), "c1")
	if !strings.Contains(d.Reason, "lie elsewhere in the image") {
		t.Errorf("reason: %s", d.Reason)
	}
	if d.DirtyBytes != 64<<10 {
		t.Errorf("%d dirty bytes", d.DirtyBytes)
	}
	// From now on it lies where it does.
	l.write("other", "write -P 98 31M 64k")
	d = l.trusted(l.backup("c3", l.disk("other")), "c2")
	if strings.Contains(d.Reason, "elsewhere") {
		t.Errorf("reason: %s", d.Reason)
	}
	l.restoreAll()
}

// A disk that was restored with its bitmap lies where the restore put it. Data where there was
// none still convicts a bitmap that misses it.
func TestMovedSinceRestore(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "320M")
	l.write("vda", "write -P 1 256M 8M", "write -P 2 0 1M")
	l.backup("c1", l.disk("vda"))
	l.restoreContinued("c1", "again")
	d := l.trusted(l.backup("c2", l.disk("again")), "c1")
	if !strings.Contains(d.Reason, "where a restore put it") {
		t.Errorf("reason: %s", d.Reason)
	}
	l.restoreContinued("c1", "liar")
	// Where the archive has nothing there are other samples, so there is much of it.
	var writes []string
	for i := range 200 {
		writes = append(writes, fmt.Sprintf("write -P 0 %dM 64k", 2+i))
	}
	l.write("liar", append(writes, "write -P 77 111M 64k")...)
	l.img("bitmap", "--clear", "liar", l.bitmapOf("c1"))
	l.refusedFor(l.disk("liar"), trust.ReasonMoved, trust.ReasonContent)
	r := l.backup("c3", l.disk("liar"))
	if d, _ := r.Manifest.Disk("vda"); d.Detection != string(backup.ByContent) {
		t.Errorf("detection %s, %s", d.Detection, d.Reason)
	}
	l.restoreAll()
}

// Each archive of a qcow2 image has its cluster map; what of it stays the same is stored once.
func TestClusterMapStored(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "40G")
	l.write("vda", "write -P 1 0 1M", "write -P 2 20G 1M")
	first := l.backup("c1", l.disk("vda")).Manifest.Disks[0].ClusterMap
	l.write("vda", "write -P 3 0 1M", "write -P 2 30G 1M")
	second := l.trusted(l.backup("c2", l.disk("vda")), "c1").ClusterMap
	if first == nil || second == nil || len(first.Parts) != 3 || len(second.Parts) != 3 {
		t.Fatalf("%v, %v", first, second)
	}
	if first.Parts[0] != second.Parts[0] || first.Parts[1] == second.Parts[1] || first.Parts[2] != second.Parts[2] {
		t.Errorf("%v, then %v", first, second)
	}
	m, err := l.repo.Manifest(t.Context(), "vm", "c2")
	l.must(err)
	needs, err := l.repo.Needs(t.Context(), m, nil)
	l.must(err)
	for _, p := range second.Parts {
		if !slices.ContainsFunc(needs, func(o chain.Object) bool { return o.Ref == p && strings.HasPrefix(o.Key, "clusters/") }) {
			t.Errorf("what c2 needs does not have part %v", p)
		}
	}
	l.tool("qemu-img", "create", "-q", "-f", "raw", "raw", "1M")
	if d := l.backup("c3", backup.DiskRequest{Disk: "vdb", Path: l.path("raw"), Format: "raw"}).Manifest.Disks[0]; d.ClusterMap != nil {
		t.Errorf("a raw image has a cluster map: %v", d.ClusterMap)
	}
}
