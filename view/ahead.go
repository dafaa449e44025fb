// SPDX-License-Identifier: Apache-2.0

package view

import (
	"sync"

	"github.com/imgbackup/imgbackup/archive"
)

// The unit and the depth of reading ahead: what a reader that goes on from one
// segment to the next will want soon is fetched before it asks.
const (
	segmentSize  = 4 << 20
	aheadDepth   = 3
	aheadAtOnce  = 4
	keptSegments = 256
)

// ahead sees who reads on, and fetches what comes next.
type ahead struct {
	mu      sync.Mutex
	seen    recent // segments that were read from
	fetched recent // segments that were fetched ahead
	now     int    // fetches at work
}

// recent remembers the last few numbers it was told.
type recent struct {
	ring [keptSegments]int64
	set  map[int64]bool
	next int
}

// add reports whether n is new.
func (r *recent) add(n int64) bool {
	if r.set == nil {
		r.set = make(map[int64]bool)
		for i := range r.ring {
			r.ring[i] = -1
		}
	}
	if r.set[n] {
		return false
	}
	delete(r.set, r.ring[r.next])
	r.ring[r.next], r.set[n] = n, true
	r.next = (r.next + 1) % keptSegments
	return true
}

// read is told of a read at off.
func (a *ahead) read(d *Disk, off int64) {
	n := off / segmentSize
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.seen.add(n) || n == 0 || !a.seen.set[n-1] {
		return
	}
	for s := n + 1; s <= n+aheadDepth && s*segmentSize < d.size && a.now < aheadAtOnce; s++ {
		if a.fetched.add(s) {
			a.now++
			d.chunks.work.Go(func() {
				a.fetch(d, s)
				a.mu.Lock()
				a.now--
				a.mu.Unlock()
			})
		}
	}
}

// fetch has a segment's chunks fetched, unless too many are in use already. What fails
// is met again, and told, by the read that wants it.
func (a *ahead) fetch(d *Disk, s int64) {
	ctx := d.chunks.ctx
	end := min((s+1)*segmentSize, d.size)
	for pos := s * segmentSize; pos < end; {
		entries, err := d.windows.next(ctx, pos, end, batchEntries)
		if err != nil {
			return
		}
		b := d.chunks.tryAcquire(entries)
		if b == nil {
			return
		}
		_ = b.each(ctx, func(*archive.Entry, []byte) {}, nil)
		d.chunks.release(b)
		pos = entries[len(entries)-1].End()
	}
}
