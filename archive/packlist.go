// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"encoding/binary"
	"slices"
)

// packList numbers packs. Lookup by name costs 8 bytes per pack besides the Ref.
type packList struct {
	refs  []Ref
	table []uint32 // open addressing, number+1; a power of two, at most ¾ full
	named int      // packs in table
}

func refSlot(r Ref, size int) int { return int(binary.LittleEndian.Uint32(r.Name[:])) & (size - 1) }

// number returns the number of a pack, which is added if it is new.
func (l *packList) number(r Ref) (n uint32, added bool) {
	if 4*(l.named+1) > 3*len(l.table) {
		l.grow()
	}
	i := refSlot(r, len(l.table))
	for ; l.table[i] != 0; i = (i + 1) & (len(l.table) - 1) {
		if n := l.table[i] - 1; l.refs[n] == r {
			return n, false
		}
	}
	n = l.unnamed()
	l.refs[n] = r
	l.table[i] = n + 1
	l.named++
	return n, true
}

// unnamed adds a pack whose name is not known yet and is never looked up.
func (l *packList) unnamed() uint32 {
	if len(l.refs) == cap(l.refs) {
		l.refs = slices.Grow(l.refs, max(64, len(l.refs)/4))
	}
	l.refs = append(l.refs, Ref{})
	return uint32(len(l.refs) - 1)
}

func (l *packList) grow() {
	old := l.table
	l.table = make([]uint32, max(64, 2*len(old)))
	for _, n := range old {
		if n == 0 {
			continue
		}
		i := refSlot(l.refs[n-1], len(l.table))
		for l.table[i] != 0 {
			i = (i + 1) & (len(l.table) - 1)
		}
		l.table[i] = n
	}
}
