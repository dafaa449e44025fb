// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"
	"iter"

	"github.com/imgbackup/imgbackup/bitmapstore"
)

// A bitmap table entry: bits 9 to 55 are the offset of a cluster of bits; with offset 0, bit 0
// reports whether all of its bits are set or none.
const (
	tableEntryOffset = 0x00fffffffffffe00
	tableEntryOnes   = 1
)

const (
	// tableBuffer is the number of bytes of a table that are read at once.
	tableBuffer = 64 << 10
	// dataBuffer is the number of bytes of bits that are read at once when their clusters lie
	// together.
	dataBuffer = 256 << 10
)

// tableEntry is one checked entry that is not all-zero.
type tableEntry struct {
	index  int64
	offset int64 // of the cluster of bits; 0: all ones
}

// table reads the entries that are not all-zero, in order. Entries that break the format, or name a
// cluster that is not wholly in the file, end it with a *DamageError.
func (b *Bitmap) table() iter.Seq2[tableEntry, error] {
	return func(yield func(tableEntry, error) bool) {
		s := &b.src
		buf := make([]byte, min(tableBuffer, b.tableEntries*8))
		for index := int64(0); index < b.tableEntries; {
			at := b.tableOffset + index*8
			part := buf[:min(int64(len(buf)), (b.tableEntries-index)*8)]
			if err := readFullAt(s.file, part, at); err != nil {
				yield(tableEntry{}, s.readFailed(at, err))
				return
			}
			for ; len(part) > 0; part = part[8:] {
				if v := binary.BigEndian.Uint64(part); v != 0 {
					e, err := b.tableEntry(v, index)
					if !yield(e, err) || err != nil {
						return
					}
				}
				index++
			}
		}
	}
}

// tableEntry checks an entry that is not 0.
func (b *Bitmap) tableEntry(v uint64, index int64) (tableEntry, error) {
	s := &b.src
	offset := v & tableEntryOffset
	what := ""
	switch {
	case v&^(tableEntryOffset|tableEntryOnes) != 0:
		what = "has reserved bits"
	case v&tableEntryOnes != 0 && offset != 0:
		what = "has reserved bit 0"
	case offset%uint64(s.clusterSize) != 0:
		what = "is not aligned to clusters"
	case offset != 0 && !s.holds(offset, uint64(s.clusterSize)):
		what = "names a cluster beyond the end of the file"
	}
	if what != "" {
		return tableEntry{}, s.damage(b.tableOffset+index*8, fmt.Sprintf("bitmap %s: table entry %d (%#x) %s", quote(b.Name), index, v, what))
	}
	return tableEntry{index: index, offset: int64(offset)}, nil
}

// scanTable proves the whole table and computes StoredBytes.
func (b *Bitmap) scanTable() error {
	clusters := ceilDiv(b.tableEntries*8, b.src.clusterSize)
	for e, err := range b.table() {
		if err != nil {
			return err
		}
		if e.offset != 0 {
			clusters++
		}
	}
	b.StoredBytes = clusters * b.src.clusterSize
	return nil
}

// pages reads the bits, one cluster or some that lie together in the file at a time.
func (b *Bitmap) pages() iter.Seq2[bitmapstore.Page, error] {
	return func(yield func(bitmapstore.Page, error) bool) {
		p := pageReader{b: b, yield: yield}
		for e, err := range b.table() {
			if err != nil {
				if p.flush() {
					yield(bitmapstore.Page{}, err)
				}
				return
			}
			if !p.add(e) {
				return
			}
		}
		p.flush()
	}
}

// pageReader joins table entries whose clusters follow each other into one read.
type pageReader struct {
	b     *Bitmap
	yield func(bitmapstore.Page, error) bool
	buf   []byte
	first tableEntry // pending
	count int64      // of pending clusters
}

// add takes the next entry; false: the iteration is over.
func (p *pageReader) add(e tableEntry) bool {
	size := p.b.src.clusterSize
	if p.count > 0 && e.index == p.first.index+p.count && e.offset != 0 && p.first.offset != 0 &&
		e.offset == p.first.offset+p.count*size && (p.count+1)*size <= dataBuffer {
		p.count++
		return true
	}
	if !p.flush() {
		return false
	}
	p.first, p.count = e, 1
	return true
}

// flush reads the pending clusters; false: the iteration is over.
func (p *pageReader) flush() bool {
	if p.count == 0 {
		return true
	}
	s := &p.b.src
	n := p.count * s.clusterSize
	page := bitmapstore.Page{FirstBit: p.first.index * s.clusterSize * 8, NumBits: n * 8, Ones: true}
	p.count = 0
	if p.first.offset != 0 {
		if int64(len(p.buf)) < n {
			p.buf = make([]byte, max(n, min(dataBuffer, p.b.tableEntries*s.clusterSize)))
		}
		page.Bits = p.buf[:n]
		if err := readFullAt(s.file, page.Bits, p.first.offset); err != nil {
			p.yield(bitmapstore.Page{}, s.readFailed(p.first.offset, err))
			return false
		}
	}
	return p.yield(page, nil)
}

// readFullAt fills p; what the file does not have is io.ErrUnexpectedEOF.
func readFullAt(r io.ReaderAt, p []byte, offset int64) error {
	n, err := r.ReadAt(p, offset)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
