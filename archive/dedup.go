// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"encoding/binary"
	"sync"
)

const (
	// dedupSlots bounds the table of known chunks: 24 MiB.
	dedupSlots = 1 << 19
	dedupMax   = dedupSlots / 8 * 7
	// dedupLoad is how much of it indexes may fill; the rest is for this session.
	dedupLoad = dedupSlots / 8 * 6
	// minDedup is the length of a chunk below which looking for an equal one
	// costs more than storing it, bytes.
	minDedup = 16 << 10
)

// place says where a chunk's frame is. Packs are numbered by the session.
type place struct {
	pack     uint32
	frameOff uint32
	frameLen uint32
}

// provenBit marks a place in frameLen whose frame this session has written
// itself, or has read back and found right.
const provenBit = 1 << 31

func (p place) proven() bool  { return p.frameLen&provenBit != 0 }
func (p place) length() int32 { return int32(p.frameLen &^ provenBit) }

type dedupSlot struct {
	chunk Digest
	at    place // frameLen 0: the slot is free
}

// dedupTable knows chunks by digest, up to a fixed number. It is safe for
// concurrent use.
type dedupTable struct {
	mu    sync.Mutex
	slots []dedupSlot
	used  int
}

func (t *dedupTable) slot(chunk *Digest) *dedupSlot {
	mask := len(t.slots) - 1
	i := int(binary.LittleEndian.Uint64(chunk[:])) & mask
	for t.slots[i].at.frameLen != 0 && t.slots[i].chunk != *chunk {
		i = (i + 1) & mask
	}
	return &t.slots[i]
}

func (t *dedupTable) lookup(chunk *Digest) (place, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.used == 0 {
		return place{}, false
	}
	s := t.slot(chunk)
	return s.at, s.at.frameLen != 0
}

// put adds a chunk or, if it is known, gives it another place. A chunk that is new
// is left out when the table has limit chunks.
func (t *dedupTable) put(chunk *Digest, at place, limit int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if 8*(t.used+1) > 7*len(t.slots) && len(t.slots) < dedupSlots {
		t.grow()
	}
	s := t.slot(chunk)
	if s.at.frameLen == 0 {
		if t.used >= min(limit, dedupMax) {
			return
		}
		t.used++
		s.chunk = *chunk
	}
	s.at = at
}

// prove marks a place as proven, unless the chunk has got another one.
func (t *dedupTable) prove(chunk *Digest, at place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.slot(chunk); s.at == at {
		s.at.frameLen |= provenBit
	}
}

func (t *dedupTable) full(limit int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.used >= limit
}

func (t *dedupTable) grow() {
	old := t.slots
	t.slots = make([]dedupSlot, max(1024, 2*len(old)))
	for i := range old {
		if old[i].at.frameLen != 0 {
			*t.slot(&old[i].chunk) = old[i]
		}
	}
}
