// SPDX-License-Identifier: Apache-2.0

package bitmapstore

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math/bits"
)

// Page is a stretch of a dense bitmap: bits FirstBit to FirstBit+NumBits.
type Page struct {
	FirstBit int64
	NumBits  int64
	Bits     []byte // bit n of the page is bit n%8, least significant first, of byte n/8; valid until the next page
	Ones     bool   // with nil Bits: whether all bits of the page are set, or none
}

// FromBits is the set that a dense bitmap describes: bit n covers bytes [n*granularity,
// (n+1)*granularity) of a disk of size bytes. Pages come in order and do not overlap; bits that no
// page covers are 0; bits beyond the disk are ignored, as QEMU does. granularity is more than 0.
func FromBits(granularity, size int64, pages iter.Seq2[Page, error]) Runs {
	if granularity <= 0 {
		return Fail(errGranularity(granularity))
	}
	if size <= 0 {
		return Of()
	}
	numBits := (size-1)/granularity + 1
	return func(yield func(Run, error) bool) {
		b := bitScanner{granularity: granularity, size: size, yield: yield, start: -1}
		next := int64(0)
		for p, err := range pages {
			if err == nil {
				err = p.check(next)
			}
			if err != nil {
				if b.cut() {
					yield(Run{}, err)
				}
				return
			}
			if p.FirstBit >= numBits {
				break
			}
			if p.FirstBit > next && !b.clear(next) {
				return
			}
			next = min(p.FirstBit+p.NumBits, numBits)
			if !b.page(p, next) {
				return
			}
			if next == numBits {
				break
			}
		}
		b.clear(next)
	}
}

// check refuses a page that breaks the rules of FromBits; next is the first bit that may come.
func (p *Page) check(next int64) error {
	if p.FirstBit < next || p.NumBits < 0 || p.FirstBit+p.NumBits < p.FirstBit {
		return fmt.Errorf("bitmapstore: page of %d bits at bit %d: it must not begin before bit %d", p.NumBits, p.FirstBit, next)
	}
	if p.Bits != nil && int64(len(p.Bits)) < (p.NumBits+7)/8 {
		return fmt.Errorf("bitmapstore: page of %d bits at bit %d has %d bytes", p.NumBits, p.FirstBit, len(p.Bits))
	}
	return nil
}

// bitScanner turns set bits into runs.
type bitScanner struct {
	granularity, size int64
	yield             func(Run, error) bool
	start             int64 // first bit of the pending run; -1: there is none
	limit             int64 // the pending run is known to reach up to this bit
}

// set says that the bits from bit to end are 1.
func (b *bitScanner) set(bit, end int64) {
	if b.start < 0 {
		b.start = bit
	}
	b.limit = end
}

// clear says that bit is 0: a pending run ends before it. false: the consumer has stopped.
func (b *bitScanner) clear(bit int64) bool {
	if b.start < 0 {
		return true
	}
	r := Run{Start: b.start * b.granularity, End: b.size}
	if bit <= (b.size-1)/b.granularity {
		r.End = bit * b.granularity
	}
	b.start = -1
	return b.yield(r, nil)
}

// cut ends a pending run where the known bits end.
func (b *bitScanner) cut() bool { return b.clear(b.limit) }

// page takes the bits of p up to bit end. false: the consumer has stopped.
func (b *bitScanner) page(p Page, end int64) bool {
	if p.Bits == nil {
		if !p.Ones {
			return b.clear(p.FirstBit)
		}
		if p.FirstBit < end {
			b.set(p.FirstBit, end)
		}
		return true
	}
	data := p.Bits
	for bit := p.FirstBit; bit < end; bit += 64 {
		var word uint64
		if len(data) >= 8 {
			word, data = binary.LittleEndian.Uint64(data), data[8:]
		} else {
			for i, c := range data {
				word |= uint64(c) << (8 * i)
			}
			data = nil
		}
		valid := min(end-bit, 64)
		if valid < 64 {
			word &= 1<<valid - 1
		}
		if !b.word(word, bit, valid) {
			return false
		}
	}
	return true
}

// word takes valid bits from bit on. false: the consumer has stopped.
func (b *bitScanner) word(word uint64, bit, valid int64) bool {
	switch {
	case word == 0:
		return b.start < 0 || b.clear(bit)
	case word == ^uint64(0):
		b.set(bit, bit+64)
		return true
	}
	for pos := int64(0); pos < valid; {
		if rest := word >> pos; rest&1 != 0 {
			ones := min(int64(bits.TrailingZeros64(^rest)), valid-pos)
			b.set(bit+pos, bit+pos+ones)
			pos += ones
			continue
		} else if rest == 0 {
			return b.clear(bit + pos)
		} else {
			if !b.clear(bit + pos) {
				return false
			}
			pos += int64(bits.TrailingZeros64(rest))
		}
	}
	return true
}
