// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
)

// A disk that shrinks and grows again loses data without a mark in any bitmap.
// Each of these disks holds so much besides that a sample would seldom show it.
func TestTrustShrunkAndGrown(t *testing.T) {
	t.Parallel()
	shrink := func(l *lab, to string, grow ...string) {
		l.t.Helper()
		l.img("resize", "-q", "-f", "qcow2", "--shrink", "vda", to)
		l.img(append(append([]string{"resize", "-q", "-f", "qcow2"}, grow...), "vda", "64M")...)
	}
	withBase := func(l *lab) {
		l.create("base", "64M")
		l.write("base", "write -P 1 0 40M")
		l.overlay("vda", "base")
	}
	for _, tt := range []lie{
		{name: "one bitmap", begin: func(l *lab) {
			l.create("vda", "64M")
			l.write("vda", "write -P 1 0 40M", "write -P 2 60M 64k")
		}, do: func(l *lab) {
			shrink(l, "50M")
		}, code: trust.ReasonMap},
		{name: "grown with preallocated clusters", begin: func(l *lab) {
			l.create("vda", "64M")
			l.write("vda", "write -P 1 0 40M", "write -P 2 60M 64k")
		}, do: func(l *lab) {
			shrink(l, "50M", "--preallocation=full")
		}, code: trust.ReasonMap},
		{name: "zeros behind the lost data", begin: func(l *lab) {
			// The last clean chunk is data, of which only the dirty part is
			// not zero: it cannot testify.
			l.create("vda", "64M")
			l.write("vda", "write -P 1 0 40M", "write -P 2 60M 64k", "write -P 0 61M 1M", "write -P 3 61M 64k")
		}, do: func(l *lab) {
			shrink(l, "50M", "--preallocation=full")
			l.write("vda", "write -P 4 61M 64k")
		}, code: trust.ReasonMap},
		{name: "clusters larger than the granularity", begin: func(l *lab) {
			l.create("vda", "64M", "-o", "cluster_size=2M")
			l.write("vda", "write -P 1 0 40M", "write -P 2 49M 64k")
		}, do: func(l *lab) {
			// The write allocates the whole cluster, and marks a part of it.
			shrink(l, "48M")
			l.write("vda", "write -P 9 50688k 64k")
			l.write("vda", "write -P 9 48M 64k")
		}, code: trust.ReasonMap},
		{name: "cut inside a cluster", begin: func(l *lab) {
			l.create("vda", "64M")
			l.write("vda", "write -P 1 0 40M", "write -P 2 48M 64k", "write -P 2 49M 1M")
		}, do: func(l *lab) {
			shrink(l, "50348032") // 48M + 16384
		}, code: trust.ReasonMap},
		{name: "over a backing file", begin: func(l *lab) {
			withBase(l)
			l.write("vda", "write -P 2 48M 64k", "write -P 2 60M 64k")
		}, do: func(l *lab) {
			shrink(l, "50M")
		}, code: trust.ReasonMap},
		{name: "over a backing file, cut inside a cluster", begin: func(l *lab) {
			withBase(l)
			l.write("vda", "write -P 2 48M 64k")
		}, do: func(l *lab) {
			shrink(l, "50348032")
		}, code: trust.ReasonMap},
		{name: "over a backing file, cut inside a cluster, the next one written", begin: func(l *lab) {
			withBase(l)
			l.write("vda", "write -P 2 48M 64k")
		}, do: func(l *lab) {
			shrink(l, "50348032")
			l.write("vda", "write -P 3 50397184 64k")
		}, code: trust.ReasonMap},
		{name: "before an overlay was made over it", begin: func(l *lab) {
			withBase(l)
			l.write("vda", "write -P 2 48M 64k")
		}, do: func(l *lab) {
			shrink(l, "50348032")
			l.img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "base", "vda")
			l.tool("mv", "vda", "mid")
			l.overlay("vda", "mid")
			l.write("vda", "write -P 3 50397184 64k")
		}, code: trust.ReasonMap},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			tt.begin(l)
			l.backup("c1", l.disk("vda"))
			l.write("vda", "write -P 5 1M 64k")
			tt.do(l)
			l.refused(tt.code, l.disk("vda"))
			l.expect(l.backup("c2", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, tt.code)
			l.write("vda", "write -P 7 48M 4k")
			l.trusted(l.backup("c3", l.disk("vda")), "c2")
			l.restoreAll()
		})
	}
}

// Two bitmaps contradict each other when what the newer checkpoint's archive
// saw in the older one was cut off.
func TestTrustShrunkAndGrownWitness(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	twoCheckpoints(l)
	l.write("vda", "write -P 5 7M 64k")
	l.backup("c3", l.disk("vda"))
	l.img("resize", "-q", "-f", "qcow2", "--shrink", "vda", "6M")
	l.img("resize", "-q", "-f", "qcow2", "vda", "8M")
	l.refused(trust.ReasonWitness, l.disk("vda"))
	l.expect(l.backup("c4", l.disk("vda")), "vda", backup.Incremental, backup.ByContent, trust.ReasonWitness)
	l.holds("vda", "c4")
	l.restoreAll()
}

// What cannot have been lost is no reason for doubt: nothing but zeros was cut
// off, or the disk was cut through a cluster that keeps its data.
func TestTrustShrunkAndGrownHarmless(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "64M")
	l.write("vda", "write -P 1 0 48M", "write -P 2 48M 64k")
	l.backup("c1", l.disk("vda"))
	l.img("resize", "-q", "-f", "qcow2", "--shrink", "vda", "50348032")
	l.img("resize", "-q", "-f", "qcow2", "vda", "64M")
	l.write("vda", "write -P 5 60M 64k")
	d := l.trusted(l.backup("c2", l.disk("vda")), "c1")
	if d.DirtyBytes != 64<<10 {
		t.Errorf("%d bytes are dirty, want %d", d.DirtyBytes, 64<<10)
	}
	l.restoreAll()
}

// A disk restores with the size that it had at each checkpoint; what lies
// beyond the smallest size since the parent was read again.
func TestTrustResized(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	resize := func(to string) {
		l.img("resize", "-q", "-f", "qcow2", "--shrink", "vda", to)
	}
	l.create("vda", "8M")
	l.write("vda", "write -P 1 0 8M")
	l.backup("c1", l.disk("vda"))
	resize("12M")
	l.write("vda", "write -P 2 11M 64k")
	l.trusted(l.backup("grown", l.disk("vda")), "c1")
	resize("3000320") // inside a cluster, granule and chunk
	l.trusted(l.backup("shrunk", l.disk("vda")), "grown")
	resize("16M")
	l.trusted(l.backup("regrown", l.disk("vda")), "shrunk")
	l.write("vda", "write -P 3 15M 64k")
	// Since an older checkpoint, with a smaller size archived in between.
	l.img("bitmap", "--disable", "vda", l.bitmapOf("regrown"))
	d := l.trusted(l.backup("since-shrunk", l.disk("vda")), "shrunk")
	if d.DirtyBytes < 16<<20-3000320 {
		t.Errorf("only %d bytes are dirty", d.DirtyBytes)
	}
	l.restoreAll()
}
