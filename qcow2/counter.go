// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
)

// counter counts the references to the clusters of an image's file, of a window of them. A
// reference with the COPIED flag says that it is the only one; nearly all are of that kind, and
// each takes one bit. The others are counted, where there are any.
//
// All of its methods may be called by several goroutines at once, and on a nil counter, which
// counts nothing.
type counter struct {
	l        *Layer
	clusters int64 // that may be in use; what lies beyond has no refcount
	limits   counterLimits

	lo     int64        // the window's first cluster
	hi     atomic.Int64 // behind its last
	copied []uint64     // a bit for each: referred to with the flag
	pages  []atomic.Pointer[counterPage]

	locks [64]sync.Mutex // of pages
	alloc sync.Mutex
	held  int // pages

	odd atomic.Pointer[string] // the first thing that is not as it must be
}

// counterLimits bound a counter's memory.
type counterLimits struct {
	window  int64 // clusters at once, a multiple of pageClusters
	pages   int
	windows int
}

// Of an image of 16 TiB with clusters of 64 KiB the bits take 32 MiB, so it is one window. A page
// takes 1 KiB; where snapshots share all of a disk there is one for 32 MiB of it.
func defaultCounterLimits() counterLimits {
	return counterLimits{window: 1 << 29, pages: 48 << 10, windows: 64}
}

// pageClusters is how many clusters a page is for.
const pageClusters = 512

// counterPage counts references without the flag.
type counterPage [pageClusters]uint16

const (
	// unflagged says that one of them had to have the flag, were it the only one.
	unflagged = 1 << 15
	// maxCount is more references than are counted.
	maxCount = unflagged - 1
)

// refKind is what a reference says of its cluster.
type refKind uint8

const (
	refPlain     refKind = iota // it is in use
	refCopied                   // and by nobody else
	refUnflagged                // and by others, too
)

// begin begins with the window from lo on.
func (c *counter) begin(lo int64) {
	n := min(c.clusters-lo, c.limits.window)
	c.lo = lo
	c.hi.Store(lo + n)
	words := ceilDiv(n, pageClusters) * (pageClusters / 64)
	if int64(cap(c.copied)) >= words {
		c.copied = c.copied[:words]
		clear(c.copied)
	} else {
		c.copied = make([]uint64, words)
	}
	c.pages = make([]atomic.Pointer[counterPage], ceilDiv(n, pageClusters))
	c.held = 0
}

// found notes what is not as it must be.
func (c *counter) found(format string, args ...any) {
	if c == nil || c.odd.Load() != nil {
		return
	}
	s := fmt.Sprintf(format, args...)
	c.odd.CompareAndSwap(nil, &s)
}

// wants reports whether it is of any use to go on counting.
func (c *counter) wants() bool { return c != nil && c.odd.Load() == nil }

// bytes counts a reference to bytes of the file: to each cluster that they are in. Less than a
// cluster of them may lie beyond the end.
func (c *counter) bytes(offset, n int64, what string) {
	if !c.wants() || n == 0 {
		return
	}
	h := c.l.Header
	if offset < 0 || n < 0 || offset > int64(entryOffset) || n > int64(entryOffset) || offset+n-c.l.file.size >= h.ClusterSize() {
		c.found("%s of %d bytes at offset %d is not all in the file", what, n, offset)
		return
	}
	first, last := offset>>h.ClusterBits, (offset+n-1)>>h.ClusterBits
	c.refer(first, last-first+1, refPlain, what)
}

// refer counts a reference to each of n clusters.
func (c *counter) refer(first, n int64, kind refKind, what string) {
	if first < 0 || n < 0 || first > c.clusters-n {
		c.found("%s names cluster %d, which has no refcount", what, max(first, c.clusters))
		return
	}
	end := min(first+n, c.hi.Load()) - c.lo
	first = max(first, c.lo) - c.lo
	switch {
	case first >= end:
	case kind == refCopied:
		c.refersCopied(first, end, what)
	default:
		c.refersOften(first, end, kind)
	}
}

// refersCopied sets the bits of [first, end).
func (c *counter) refersCopied(first, end int64, what string) {
	for at := first; at < end; {
		n := min(64-at%64, end-at)
		mask := ^uint64(0) >> (64 - n) << (at % 64)
		if twice := atomic.OrUint64(&c.copied[at/64], mask) & mask; twice != 0 {
			c.found("cluster %d is used twice, by %s and before", c.lo+at&^63+int64(bits.TrailingZeros64(twice)), what)
			return
		}
		at += n
	}
}

// refersOften counts one more reference to each of [first, end).
func (c *counter) refersOften(first, end int64, kind refKind) {
	for at := first; at < end; {
		index := at / pageClusters
		n := min(pageClusters-at%pageClusters, end-at)
		c.locks[index%int64(len(c.locks))].Lock()
		if page := c.page(index); page != nil {
			part := page[at%pageClusters:][:n]
			for i := range part {
				if part[i]&maxCount == maxCount {
					c.found("cluster %d is used more often than is counted", c.lo+at+int64(i))
					break
				}
				if part[i]++; kind == refUnflagged {
					part[i] |= unflagged
				}
			}
		}
		c.locks[index%int64(len(c.locks))].Unlock()
		at += n
	}
}

// page is the page of that index, which may be a new one; nil: it is not in the window any more.
// Where there are too many, the window ends earlier.
func (c *counter) page(index int64) *counterPage {
	if p := c.pages[index].Load(); p != nil {
		return p
	}
	c.alloc.Lock()
	defer c.alloc.Unlock()
	if c.lo+index*pageClusters >= c.hi.Load() {
		return nil
	}
	for last := ceilDiv(c.hi.Load()-c.lo, pageClusters) - 1; c.held >= c.limits.pages; last-- {
		if c.hi.Store(c.lo + last*pageClusters); last == index {
			return nil
		}
		if c.pages[last].Swap(nil) != nil {
			c.held--
		}
	}
	c.held++
	p := new(counterPage)
	c.pages[index].Store(p)
	return p
}

// l1Entry takes an entry of an L1 table: of the active one, or of a snapshot's.
func (c *counter) l1Entry(entry uint64, active bool) {
	if !c.wants() || entry == 0 {
		return
	}
	if entry&l1Reserved != 0 {
		c.found("an entry of an L1 table has reserved bits set: %#x", entry)
	}
	offset := int64(entry & entryOffset)
	switch {
	case offset == 0: // names nothing
		c.found("an entry of an L1 table names nothing: %#x", entry)
	case offset&(c.l.Header.ClusterSize()-1) == 0:
		c.refer(offset>>c.l.Header.ClusterBits, 1, kindOf(entry, active), "an L1 table")
	}
}

// kindOf is the kind of a reference by an entry with or without the COPIED flag. What snapshots'
// entries say of it means nothing.
func kindOf(entry uint64, active bool) refKind {
	switch {
	case !active:
		return refPlain
	case entry&entryCopied != 0:
		return refCopied
	}
	return refUnflagged
}

// l2Entries takes entries of an L2 table of the disk, or of a snapshot.
func (c *counter) l2Entries(r *tableRun, active bool) {
	if !c.wants() || r.entry|r.bitmap == 0 {
		return
	}
	h := c.l.Header
	if r.entry&entryCompressed != 0 {
		c.compressed(r)
		return
	}
	extended, allocated := h.l2EntryBytes() == 16, r.allocated(h)
	offset := r.host()
	switch {
	case r.entry&l2Reserved != 0 || extended && r.entry&entryZero != 0:
		c.found("an entry of an L2 table has reserved bits set: %#x", r.entry)
	case r.entry&entryZero != 0 && h.Version < 3:
		c.found("an image of version 2 has a zero cluster")
	case uint32(r.bitmap)&uint32(r.bitmap>>32) != 0:
		c.found("subclusters are both allocated and zero: %#x", r.bitmap)
	case !allocated && uint32(r.bitmap) != 0:
		c.found("subclusters are allocated in a cluster that is not: %#x", r.bitmap)
	case !allocated:
	case offset&(h.ClusterSize()-1) != 0:
		c.found("data is at offset %d, which is not at the beginning of a cluster", offset)
	case h.Has(IncompatDataFile):
		if r.entry&entryCopied == 0 {
			c.found("an entry for a data file lacks the COPIED flag: %#x", r.entry)
		}
	case r.end(h) > int64(entryOffset):
		c.found("data is at offset %d, beyond all clusters", offset)
	default:
		c.refer(offset>>h.ClusterBits, int64(r.count), kindOf(r.entry, active), "an L2 table")
	}
}

// compressed takes an entry for a compressed cluster.
func (c *counter) compressed(r *tableRun) {
	if r.entry&entryCopied != 0 || c.l.Header.Has(IncompatDataFile) || r.bitmap != 0 {
		c.found("an entry for a compressed cluster says what none can: %#x %#x", r.entry, r.bitmap)
		return
	}
	offset, n := c.l.Header.compressedAt(r.entry)
	c.bytes(offset, n, "a compressed cluster")
}
