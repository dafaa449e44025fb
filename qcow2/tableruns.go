// SPDX-License-Identifier: Apache-2.0

package qcow2

import "encoding/binary"

// Reserved bits of entries, which QEMU wants to be 0.
const (
	l1Reserved uint64 = 0x7f000000000001ff
	l2Reserved uint64 = 0x3f000000000001fe // of clusters that are not compressed
)

// tableRun is a run of entries of an L2 table that say the same of clusters that follow one
// another: each is the one before it, but for the offset, which goes on by a cluster where
// there is one.
type tableRun struct {
	first, count int
	entry        uint64 // the first
	bitmap       uint64 // of subclusters, in extended entries; else 0
}

// data reports whether the entries name clusters that are not compressed, and where the first
// lies.
func (r *tableRun) host() int64 { return int64(r.entry & entryOffset) }

// end is behind the last cluster that the run names.
func (r *tableRun) end(h *Header) int64 { return r.host() + int64(r.count)<<h.ClusterBits }

// allocated reports whether the entries, which are not compressed, name clusters.
func (r *tableRun) allocated(h *Header) bool {
	return r.entry&entryOffset != 0 || r.entry&entryCopied != 0 && h.Has(IncompatDataFile)
}

// kind is what the clusters of the run are for a guest, if they are wholly of one kind and
// nothing is wrong with their entries.
func (r *tableRun) kind(h *Header) (k Kind, ok bool) {
	allocated := r.allocated(h)
	switch {
	case r.entry&entryCompressed != 0:
		return Compressed, false
	case h.l2EntryBytes() == 16:
		switch {
		case r.bitmap == allZeroSubclusters:
			return Zero, true
		case r.bitmap == allDataSubclusters && allocated:
			return Data, true
		}
		return Hole, r.bitmap == 0
	case r.entry&entryZero != 0:
		return Zero, h.Version >= 3
	case allocated:
		return Data, true
	}
	return Hole, true
}

// What the second half of an extended entry is where all subclusters are alike.
const (
	allDataSubclusters uint64 = 1<<32 - 1
	allZeroSubclusters uint64 = allDataSubclusters << 32
)

// tableRuns hands out the runs of an L2 table, whole.
func tableRuns(table []byte, h *Header, each func(tableRun)) {
	if h.l2EntryBytes() == 16 {
		extendedRuns(table, h, each)
		return
	}
	total := len(table) / 8
	for rest := table; len(rest) >= 8; {
		r := tableRun{first: total - len(rest)/8, entry: binary.BigEndian.Uint64(rest)}
		step := entryStep(r.entry, h)
		want := r.entry
		from := len(rest)
		for len(rest) >= 8 && binary.BigEndian.Uint64(rest) == want {
			rest, want = rest[8:], want+step
			if step == endOfRun {
				break
			}
		}
		r.count = (from - len(rest)) / 8
		each(r)
	}
}

func extendedRuns(table []byte, h *Header, each func(tableRun)) {
	be := binary.BigEndian
	total := len(table) / 16
	for rest := table; len(rest) >= 16; {
		r := tableRun{first: total - len(rest)/16, entry: be.Uint64(rest), bitmap: be.Uint64(rest[8:])}
		step := entryStep(r.entry, h)
		want := r.entry
		from := len(rest)
		for len(rest) >= 16 && be.Uint64(rest) == want && be.Uint64(rest[8:]) == r.bitmap {
			rest, want = rest[16:], want+step
			if step == endOfRun {
				break
			}
		}
		r.count = (from - len(rest)) / 16
		each(r)
	}
}

// endOfRun is the step of an entry that no other joins.
const endOfRun = ^uint64(0)

// entryStep is how much larger the entry is that goes on where this one ends.
func entryStep(entry uint64, h *Header) uint64 {
	switch {
	case entry&entryCompressed != 0:
		return endOfRun
	case entry&entryOffset != 0:
		return uint64(h.ClusterSize())
	}
	return 0
}
