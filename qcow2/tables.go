// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"container/list"
	"encoding/binary"
	"fmt"
	"sync"
)

// tableCacheBytes bounds the memory that a chain spends on mapping tables.
const tableCacheBytes = 16 << 20

// sliceBytes is the part of a table that is read at once, at most; salvagedBytes where
// parts of it cannot be read.
const (
	sliceBytes    = 64 << 10
	salvagedBytes = 4 << 10
)

// tableCache keeps recently used slices of L1 and L2 tables of all layers of a
// chain.
type tableCache struct {
	mu    sync.Mutex
	used  int64
	order *list.List // of *tableSlice, most recently used first
	slice map[sliceKey]*list.Element

	salvage bool // see [OpenOptions.Salvage]
	failed  map[sliceKey]error
}

type sliceKey struct {
	layer  int
	offset int64 // in the layer's file
}

type tableSlice struct {
	key  sliceKey
	data []byte
}

// cost counts the bookkeeping of a slice too, which outweighs the smallest.
func (s *tableSlice) cost() int64 { return int64(len(s.data)) + 256 }

func newTableCache(salvage bool) *tableCache {
	return &tableCache{order: list.New(), slice: map[sliceKey]*list.Element{}, salvage: salvage, failed: map[sliceKey]error{}}
}

// unit is the part of a table that is read at once, bytes.
func (c *tableCache) unit() int64 {
	if c.salvage {
		return salvagedBytes
	}
	return sliceBytes
}

// get returns n bytes of a table of layer l. The bytes must not be changed.
func (c *tableCache) get(l *Layer, offset, n int64, what string) ([]byte, error) {
	key := sliceKey{layer: l.index, offset: offset}
	c.mu.Lock()
	if e, ok := c.slice[key]; ok {
		c.order.MoveToFront(e)
		data := e.Value.(*tableSlice).data
		c.mu.Unlock()
		if int64(len(data)) >= n {
			return data[:n], nil
		}
		// An L1 and an L2 table overlap: damage, but not one that matters here.
		data = make([]byte, n)
		return data, l.file.readMeta(data, offset, what)
	}
	err := c.failed[key]
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}

	// Two readers may both read the same slice; that is cheaper than to make
	// readers of others wait.
	data := make([]byte, n)
	err = l.file.readMeta(data, offset, what)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if c.salvage { // a disk that fails is not asked again and again
			c.failed[key] = err
		}
		return nil, err
	}
	if _, ok := c.slice[key]; !ok {
		s := &tableSlice{key: key, data: data}
		c.slice[key] = c.order.PushFront(s)
		c.used += s.cost()
	}
	for c.used > tableCacheBytes {
		last := c.order.Back()
		s := c.order.Remove(last).(*tableSlice)
		delete(c.slice, s.key)
		c.used -= s.cost()
	}
	return data, nil
}

// Bits of L1 and L2 entries.
const (
	entryOffset     uint64 = 0x00fffffffffffe00
	entryCopied     uint64 = 1 << 63
	entryCompressed uint64 = 1 << 62
	entryZero       uint64 = 1 << 0
)

// checkL1 reads the whole L1 table once, without keeping it. An image in which
// more L2 tables are mapped than its file has clusters is damaged; so the time
// to walk the tables is bounded by the size of the file.
func (l *Layer) checkL1() error {
	h := l.Header
	need := h.neededL1() * 8
	if need == 0 {
		return nil
	}
	if h.L1Offset > l.file.size || need > l.file.size-h.L1Offset {
		return l.file.beyond(h.L1Offset, need, "the L1 table")
	}
	buf := make([]byte, min(need, sliceBytes))
	var tables int64
	for done := int64(0); done < need; {
		part := buf[:min(int64(len(buf)), need-done)]
		if err := l.file.readMeta(part, h.L1Offset+done, "the L1 table"); err != nil {
			return err
		}
		for i := 0; i < len(part); i += 8 {
			if binary.BigEndian.Uint64(part[i:])&entryOffset != 0 {
				tables++
			}
		}
		done += int64(len(part))
	}
	if most := l.file.size >> h.ClusterBits; tables > most {
		return &DamageError{Path: l.Path, Offset: h.L1Offset, What: fmt.Sprintf("the L1 table names %d L2 tables, but the file has only %d clusters", tables, most)}
	}
	return nil
}

// segment is a run of guest bytes that one layer maps in one way.
type segment struct {
	length int64
	kind   Kind  // Hole: not allocated in this layer
	host   int64 // Data: offset in the data file. Compressed: of the compressed bytes in the image
	stored int64 // Compressed: the most bytes the compressed cluster can have
}

// joins reports whether next, which follows s in the disk, can be read with it.
func (s *segment) joins(next *segment) bool {
	if s.kind != next.kind {
		return false
	}
	switch s.kind {
	case Data:
		return s.host+s.length == next.host
	case Compressed:
		return false
	}
	return true
}

// cursor maps guest offsets of one qcow2 layer. It remembers the slice of the
// L2 table that it used last, so that going forwards costs little. It must not
// be used by several goroutines at once; the zero value with the layer set is
// ready.
type cursor struct {
	l          *Layer
	start, end int64       // guest range that table or runs map
	runs       []layoutRun // of the layer's layout; nil: see table
	run        int         // the one that was used last
	table      []byte      // part of an L2 table; nil: nothing in the range is allocated
	offset     int64       // of table in the file
}

// at returns the segment that begins at guest offset off, which lies in the
// disk and below end. It ends at end, or earlier: what follows may join it.
func (c *cursor) at(off, end int64) (segment, error) {
	if off < c.start || off >= c.end {
		if err := c.load(off); err != nil {
			return segment{}, err
		}
	}
	if end > c.end {
		end = c.end
	}
	if c.runs != nil {
		return c.l.Header.segment(c.runs, c.start, off, end, &c.run), nil
	}
	if c.table == nil {
		return segment{length: end - off, kind: Hole}, nil
	}
	s, err := c.piece(off, end)
	if err != nil {
		return segment{}, err
	}
	for s.kind != Compressed && off+s.length < end {
		next, err := c.piece(off+s.length, end)
		if err != nil || !s.joins(&next) {
			break // an error comes back when its own range is asked for
		}
		s.length += next.length
	}
	return s, nil
}

// load finds the part of the layout, or of the L2 table, that maps off.
func (c *cursor) load(off int64) error {
	h := c.l.Header
	if y := c.l.layout.Load(); y != nil {
		if start, runs := y.find(off); runs != nil {
			c.start, c.end, c.runs, c.run = start, start+y.span, runs, 0
			return nil
		}
	}
	span := h.l2Span()
	index := off / span
	perSlice := c.l.cache.unit() / 8
	first := index - index%perSlice
	count := min(perSlice, h.neededL1()-first)
	l1, err := c.l.cache.get(c.l, h.L1Offset+first*8, count*8, "the L1 table")
	if err != nil {
		return err
	}
	entry := binary.BigEndian.Uint64(l1[(index-first)*8:])
	table := int64(entry & entryOffset)
	if table == 0 {
		last := index + 1
		for last < first+count && binary.BigEndian.Uint64(l1[(last-first)*8:])&entryOffset == 0 {
			last++
		}
		c.start, c.end, c.runs, c.table = index*span, last*span, nil, nil
		return nil
	}
	cs := h.ClusterSize()
	at := h.L1Offset + index*8
	if table%cs != 0 {
		return &DamageError{Path: c.l.Path, Offset: at, What: fmt.Sprintf("an entry of the L1 table points to offset %d, which is not at the beginning of a cluster", table)}
	}
	if table > c.l.file.size-cs {
		return &DamageError{Path: c.l.Path, Offset: at, What: fmt.Sprintf("the L2 table at offset %d (%d bytes) lies beyond the end of the file, which has %d bytes", table, cs, c.l.file.size)}
	}
	n := min(cs, c.l.cache.unit())
	guestPerSlice := h.mappedBy(n)
	slice := (off - index*span) / guestPerSlice
	data, err := c.l.cache.get(c.l, table+slice*n, n, "an L2 table")
	if err != nil {
		return err
	}
	c.runs, c.table, c.offset = nil, data, table+slice*n
	c.start = index*span + slice*guestPerSlice
	c.end = c.start + guestPerSlice
	return nil
}

// unmapped is the end of what cannot be mapped, of which off, that at failed for, is a
// part: a cluster, or all that a part of a table would map.
func (c *cursor) unmapped(off int64) int64 {
	h := c.l.Header
	cs, span, unit := h.ClusterSize(), h.l2Span(), c.l.cache.unit()
	if c.start <= off && off < c.end {
		return off&^(cs-1) + cs
	}
	index := off / span
	first := index - index%(unit/8)
	count := min(unit/8, h.neededL1()-first)
	l1, err := c.l.cache.get(c.l, h.L1Offset+first*8, count*8, "the L1 table")
	if err != nil {
		return (first + count) * span
	}
	table := int64(binary.BigEndian.Uint64(l1[(index-first)*8:]) & entryOffset)
	if table%cs != 0 || table > c.l.file.size-cs {
		return (index + 1) * span
	}
	perSlice := h.mappedBy(min(cs, unit))
	return off - off%span%perSlice + perSlice
}

// piece maps off within its cluster, or subcluster.
func (c *cursor) piece(off, end int64) (segment, error) {
	h := c.l.Header
	cs := h.ClusterSize()
	at := (off - c.start) >> h.ClusterBits * h.l2EntryBytes()
	entry := binary.BigEndian.Uint64(c.table[at:])
	inCluster := off & (cs - 1)
	s := segment{length: min(cs-inCluster, end-off)}
	if entry&entryCompressed != 0 {
		return c.compressed(s, entry, at)
	}
	host := int64(entry & entryOffset)
	allocated := host != 0 || h.Has(IncompatDataFile) && entry&entryCopied != 0
	switch {
	case h.l2EntryBytes() == 16:
		length, kind, err := c.subclusters(at, inCluster, allocated)
		if err != nil {
			return s, err
		}
		s.kind, s.length = kind, min(s.length, length)
	case entry&entryZero != 0:
		if h.Version < 3 {
			return s, c.damage(at, "a zero cluster in an image of version 2")
		}
		s.kind = Zero
	case allocated:
		s.kind = Data
	default:
		s.kind = Hole
	}
	if s.kind != Data {
		return s, nil
	}
	s.host = host + inCluster
	return s, c.checkData(at, host, off-inCluster)
}

// checkData checks where a cluster of guest data lies.
func (c *cursor) checkData(at, host, guest int64) error {
	l := c.l
	switch {
	case host&(l.Header.ClusterSize()-1) != 0:
		return c.damage(at, "guest data at offset %d, which is not at the beginning of a cluster", host)
	case l.data != l.file && host != guest:
		return c.damage(at, "guest offset %d is mapped to offset %d of the external data file; they must be equal", guest, host)
	case host >= l.data.size || l.cut && l.data == l.file && l.data.size-host < l.Header.ClusterSize():
		// A last cluster that the file ends in was not written to its end;
		// qemu-img check tolerates that, too. When more is known to have been
		// behind it, its end is lost.
		return c.damage(at, "guest data at offset %d of %s, which lies beyond the end of that file of %d bytes", host, l.data.path, l.data.size)
	}
	return nil
}

func (c *cursor) damage(at int64, format string, args ...any) error {
	return &DamageError{Path: c.l.Path, Offset: c.offset + at, What: "the L2 table names " + fmt.Sprintf(format, args...)}
}

// compressedAt is where the compressed cluster of an L2 entry begins in the file, and the most
// bytes that it can have.
func (h *Header) compressedAt(entry uint64) (offset, n int64) {
	x := 62 - (h.ClusterBits - 8)
	offset = int64(entry & (1<<x - 1))
	sectors := int64(entry&(entryCompressed-1)>>x) + 1
	return offset, sectors*sectorSize - offset%sectorSize
}

// compressed completes the segment of a compressed cluster.
func (c *cursor) compressed(s segment, entry uint64, at int64) (segment, error) {
	l := c.l
	if l.data != l.file {
		return s, c.damage(at, "a compressed cluster, which an image with an external data file cannot have")
	}
	s.kind = Compressed
	s.host, s.stored = l.Header.compressedAt(entry)
	if s.host >= l.file.size || s.stored-(l.file.size-s.host) >= sectorSize {
		return s, c.damage(at, "a compressed cluster at offset %d, which lies beyond the end of the file of %d bytes", s.host, l.file.size)
	}
	s.stored = min(s.stored, l.file.size-s.host)
	return s, nil
}

// subclusters tells of what kind the subcluster at inCluster is, and how many
// bytes from there are of that kind.
func (c *cursor) subclusters(at, inCluster int64, allocated bool) (length int64, kind Kind, err error) {
	bitmap := binary.BigEndian.Uint64(c.table[at+8:])
	alloc, zero := uint32(bitmap), uint32(bitmap>>32)
	if alloc&zero != 0 {
		return 0, 0, c.damage(at, "subclusters that are both allocated and zero")
	}
	if !allocated && alloc != 0 {
		return 0, 0, c.damage(at, "allocated subclusters in a cluster that is not allocated")
	}
	shift := c.l.Header.ClusterBits - 5 // 32 subclusters
	kindOf := func(i int64) Kind {
		switch {
		case zero>>i&1 != 0:
			return Zero
		case alloc>>i&1 != 0:
			return Data
		}
		return Hole
	}
	first := inCluster >> shift
	last := first + 1
	kind = kindOf(first)
	for last < 32 && kindOf(last) == kind {
		last++
	}
	return last<<shift - inCluster, kind, nil
}
