// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"cmp"
	"slices"
	"sync"
)

// liveFrames is which frames of which packs are named by some map: of each pack the
// offsets, 4 bytes a chunk. Frames come in any order, and many times; they are collected
// and now and then sorted in. It is safe for concurrent use.
type liveFrames struct {
	mu      sync.Mutex
	packs   []livePack // by the pack's number in the inventory
	pending []pendingFrame
}

type livePack struct {
	offsets []uint32 // ascending
	bytes   int64    // of the frames
}

type pendingFrame struct {
	pack, offset uint32
	length       int32
}

// maxPending is how many frames are collected before they are sorted in: 12 MiB.
const maxPending = 1 << 20

func newLiveFrames(packs int) *liveFrames { return &liveFrames{packs: make([]livePack, packs)} }

func (l *liveFrames) add(frames []pendingFrame) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending = append(l.pending, frames...)
	if len(l.pending) >= maxPending {
		l.settle()
	}
}

// settle sorts in what has been collected.
func (l *liveFrames) settle() {
	slices.SortFunc(l.pending, func(a, b pendingFrame) int {
		return cmp.Or(cmp.Compare(a.pack, b.pack), cmp.Compare(a.offset, b.offset))
	})
	for rest := l.pending; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].pack == rest[0].pack {
			n++
		}
		l.packs[rest[0].pack].merge(rest[:n])
		rest = rest[n:]
	}
	l.pending = l.pending[:0]
}

// end settles, and gives back what was for collecting.
func (l *liveFrames) end() {
	l.settle()
	l.pending = nil
}

// merge adds frames of the pack, sorted by offset.
func (p *livePack) merge(frames []pendingFrame) {
	fresh := 0
	old := p.offsets
	for i, f := range frames {
		if i > 0 && f.offset == frames[i-1].offset {
			continue
		}
		for len(old) > 0 && old[0] < f.offset {
			old = old[1:]
		}
		if len(old) > 0 && old[0] == f.offset {
			continue
		}
		fresh++
		p.bytes += int64(f.length)
	}
	if fresh == 0 {
		return
	}
	merged := make([]uint32, 0, len(p.offsets)+fresh)
	old = p.offsets
	for _, f := range frames {
		for len(old) > 0 && old[0] < f.offset {
			merged, old = append(merged, old[0]), old[1:]
		}
		if len(old) > 0 && old[0] == f.offset || len(merged) > 0 && merged[len(merged)-1] == f.offset {
			continue
		}
		merged = append(merged, f.offset)
	}
	p.offsets = append(merged, old...)
}
