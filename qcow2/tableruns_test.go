// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"encoding/binary"
	"testing"
)

// FuzzTableRuns: the runs of a table say, entry by entry, what is in it; and counting them takes
// any table.
func FuzzTableRuns(f *testing.F) {
	for _, first := range []uint64{0, 1, 512, entryCopied | 1<<20, entryCompressed | 77, entryOffset, ^uint64(0)} {
		var table []byte
		for i := range uint64(64) {
			table = binary.BigEndian.AppendUint64(table, first+i/3*512)
		}
		f.Add(table, false)
		f.Add(table, true)
	}
	f.Fuzz(func(t *testing.T, table []byte, extended bool) {
		h := &Header{Version: 3, ClusterBits: 9}
		if extended {
			h.ClusterBits, h.Incompatible = 14, IncompatExtendedL2
		}
		size := int(h.l2EntryBytes())
		table = table[:len(table)/size*size]
		l := &Layer{Header: h, file: &File{size: 1 << 30}}
		l.data = l.file
		c := &counter{l: l, clusters: 1 << 12, limits: smallCounter()}
		c.begin(0)
		next := 0
		tableRuns(table, h, func(r tableRun) {
			if r.first != next || r.count < 1 {
				t.Fatalf("%+v does not follow %d", r, next)
			}
			for i := range r.count {
				entry, bitmap := binary.BigEndian.Uint64(table[(r.first+i)*size:]), uint64(0)
				if extended {
					bitmap = binary.BigEndian.Uint64(table[(r.first+i)*size+8:])
				}
				want := r.entry
				if r.host() != 0 && r.entry&entryCompressed == 0 {
					want += uint64(i) << h.ClusterBits
				}
				if entry != want || bitmap != r.bitmap {
					t.Fatalf("entry %d is %#x %#x, and in %+v", r.first+i, entry, bitmap, r)
				}
			}
			c.l2Entries(&r, true)
			next += r.count
		})
		if next*size != len(table) {
			t.Fatalf("the runs end at %d of %d", next, len(table)/size)
		}
	})
}
