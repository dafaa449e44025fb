// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
	"sync"

	"github.com/imgbackup/imgbackup/archive/known"
)

const (
	// dedupSlots bounds the table of known chunks: 24 MiB; where memory is short, a quarter.
	dedupSlots = 1 << 19
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

// dedupTable knows chunks by digest: a fixed number in memory, and what has been proven
// of more in a spill. It is safe for concurrent use.
type dedupTable struct {
	mu    sync.Mutex
	slots []dedupSlot
	used  int
	most  int // slots, a power of two

	spilling sync.RWMutex // held for writing while the spill changes
	spill    known.Spill
	broken   error // why no more is spilled
}

// limit is how many chunks the table takes.
func (t *dedupTable) limit() int { return t.most / 8 * 7 }

// limitLoaded is how many of them indexes may fill in; the rest is for this session.
func (t *dedupTable) limitLoaded() int { return t.most / 8 * 6 }

func (t *dedupTable) slot(chunk *Digest) *dedupSlot {
	mask := len(t.slots) - 1
	i := int(binary.LittleEndian.Uint64(chunk[:])) & mask
	for t.slots[i].at.frameLen != 0 && t.slots[i].chunk != *chunk {
		i = (i + 1) & mask
	}
	return &t.slots[i]
}

// lookup finds a chunk. An error says that what was spilled can't be read.
func (t *dedupTable) lookup(chunk *Digest) (place, bool, error) {
	if at, ok := t.recent(chunk); ok {
		return at, true, nil
	}
	t.spilling.RLock()
	defer t.spilling.RUnlock()
	l, ok, err := t.spill.Find((*known.Digest)(chunk))
	return place{pack: l.Pack, frameOff: l.Offset, frameLen: l.Length}, ok, err
}

// recent finds a chunk in memory.
func (t *dedupTable) recent(chunk *Digest) (place, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.used == 0 {
		return place{}, false
	}
	s := t.slot(chunk)
	return s.at, s.at.frameLen != 0
}

// learn is put for what this session has proven. When the table is full, all that is
// proven goes to the spill.
func (t *dedupTable) learn(ctx context.Context, chunk *Digest, at place) {
	if t.put(chunk, at, t.limit()) {
		return
	}
	t.spilling.Lock()
	defer t.spilling.Unlock()
	if t.put(chunk, at, t.limit()) || t.broken != nil {
		return // others have made room, or nobody can
	}
	proven := t.takeProven()
	slices.SortFunc(proven, func(a, b known.Learnt) int { return bytes.Compare(a.Chunk[:], b.Chunk[:]) })
	t.broken = t.spill.Add(ctx, proven)
	t.put(chunk, at, t.limit())
}

// takeProven removes what is proven.
func (t *dedupTable) takeProven() (proven []known.Learnt) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.slots
	t.slots, t.used = make([]dedupSlot, len(old)), 0
	for i := range old {
		switch at := old[i].at; {
		case at.frameLen == 0:
		case at.proven():
			proven = append(proven, known.Learnt{Chunk: old[i].chunk, Pack: at.pack, Offset: at.frameOff, Length: at.frameLen})
		default:
			*t.slot(&old[i].chunk) = old[i]
			t.used++
		}
	}
	return proven
}

// lost returns why not all that was proven is known any more; nil: it is.
func (t *dedupTable) lost() error {
	t.spilling.RLock()
	defer t.spilling.RUnlock()
	return t.broken
}

// close gives the spill back.
func (t *dedupTable) close() {
	t.spilling.Lock()
	defer t.spilling.Unlock()
	t.spill.Close()
}

// put adds a chunk or, if it is known, gives it another place. A chunk that is new
// is left out when the table has limit chunks.
func (t *dedupTable) put(chunk *Digest, at place, limit int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if 8*(t.used+1) > 7*len(t.slots) && len(t.slots) < t.most {
		t.grow()
	}
	s := t.slot(chunk)
	if s.at.frameLen == 0 {
		if t.used >= min(limit, t.limit()) {
			return false
		}
		t.used++
		s.chunk = *chunk
	}
	s.at = at
	return true
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
