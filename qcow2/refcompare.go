// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"encoding/binary"
)

// compare compares what was counted of the window with the refcounts in the file.
func (r *refcountCheck) compare(ctx context.Context) error {
	h, c := r.l.Header, r.counts
	per := h.refcountsPerBlock()
	first, last := c.lo/per, min(int64(len(r.blocks)), ceilDiv(c.hi.Load(), per))
	blocks := h.tablesPerPart()
	err := shared(ctx, ceilDiv(last-first, blocks), func() func(int64) error {
		reader := clusterReader{file: r.l.file, size: h.ClusterSize()}
		var list []located
		return func(part int64) error {
			list = list[:0]
			from := first + part*blocks
			for i := from; i < min(last, from+blocks); i++ {
				if r.blocks[i] != 0 {
					list = append(list, located{r.blocks[i], int(i)})
				} else {
					r.block(i*per, nil)
				}
			}
			return reader.each(list, "a refcount block", func(i int, block []byte) { r.block(int64(i)*per, block) })
		}
	})
	if err != nil {
		return err
	}
	for _, block := range r.blocks {
		if at := block >> h.ClusterBits; block != 0 && at >= c.lo && at < c.hi.Load() && c.counted(at) != (counted{often: 1}) {
			c.found("the refcount block at offset %d is something else, too", block)
		}
	}
	return nil
}

// counted is what was counted of a cluster.
type counted struct {
	copied    bool // a reference with the flag
	unflagged bool
	often     uint64 // references without it
}

// counted is what was counted of a cluster of the window.
func (c *counter) counted(cluster int64) counted {
	at := cluster - c.lo
	n := counted{copied: c.copied[at/64]>>(at%64)&1 != 0}
	if page := c.pages[at/pageClusters].Load(); page != nil {
		v := page[at%pageClusters]
		n.often, n.unflagged = uint64(v&maxCount), v&unflagged != 0
	}
	return n
}

// block compares the clusters from first on with a refcount block; nil: none of them is used.
func (r *refcountCheck) block(first int64, block []byte) {
	c, h := r.counts, r.l.Header
	start, end := max(first, c.lo), min(first+h.refcountsPerBlock(), c.hi.Load())
	leaks := int64(0)
	for at := start; at < end && c.wants(); {
		n := min(end-at, 64-(at-c.lo)%64)
		if n < 64 || !r.alike(at, at-first, block) {
			for i := at; i < at+n; i++ {
				leaks += c.judge(i, refcountAt(block, i-first, h.RefcountOrder))
			}
		}
		at += n
	}
	r.leaks.Add(leaks)
}

// ones are four refcounts of 16 bits.
const ones = 0x0001000100010001

// alike reports whether 64 clusters are used by nobody, or each by one reference with the flag,
// and have the refcounts for that. They begin with the one at, which is the index-th of the block.
// false: they have to be looked at one by one.
func (r *refcountCheck) alike(at, index int64, block []byte) bool {
	c := r.counts
	bits := c.copied[(at-c.lo)/64]
	if bits != 0 && bits != ^uint64(0) || c.pages[(at-c.lo)/pageClusters].Load() != nil {
		return false
	}
	if block == nil {
		return bits == 0
	}
	if r.l.Header.RefcountOrder != 4 {
		return false
	}
	want := bits & ones
	for part := block[index*2:][:128]; len(part) > 0; part = part[8:] {
		if binary.BigEndian.Uint64(part) != want {
			return false
		}
	}
	return true
}

// judge compares one cluster with its refcount, and returns the leaks.
func (c *counter) judge(cluster int64, refcount uint64) (leaks int64) {
	n := c.counted(cluster)
	switch {
	case n.copied && (n.often > 0 || refcount != 1):
		c.found("cluster %d has the refcount %d, the COPIED flag and %d more references", cluster, refcount, n.often)
	case n.copied:
	case n.often > refcount:
		c.found("cluster %d has the refcount %d and %d references", cluster, refcount, n.often)
	case n.unflagged && refcount == 1:
		c.found("cluster %d has the refcount 1, and its reference lacks the COPIED flag", cluster)
	case n.often < refcount:
		return 1
	}
	return 0
}

// refcountAt is the i-th refcount of a block; of none, 0.
func refcountAt(block []byte, i int64, order uint) uint64 {
	if block == nil {
		return 0
	}
	switch order {
	case 3:
		return uint64(block[i])
	case 4:
		return uint64(binary.BigEndian.Uint16(block[i*2:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(block[i*4:]))
	case 6:
		return binary.BigEndian.Uint64(block[i*8:])
	}
	// Refcounts of less than a byte begin with its lowest bits.
	perByte := int64(8) >> order
	return uint64(block[i/perByte]) >> (i & (perByte - 1) << order) & (1<<(1<<order) - 1)
}
