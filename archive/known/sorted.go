// SPDX-License-Identifier: Apache-2.0

package known

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"math/bits"
	"sync"
)

// sorted are sorted records, somewhere in a file or in memory. It is safe for concurrent
// use.
type sorted struct {
	in     io.ReaderAt
	offset int64 // of the first record
	count  int64
	key    int // bytes of a digest that a record has
	fences []uint64
	all    []byte // if they are few
}

// fewRecords is how many bytes of records are read as a whole.
const fewRecords = 256 << 10

func (s *sorted) size() int     { return s.key + placeLen }
func (s *sorted) perBlock() int { return blockSize / s.size() }
func (s *sorted) bytes() int64  { return s.count * int64(s.size()) }

// blocks is how many blocks so many records have.
func blocks(count int64, perBlock int) int64 { return (count + int64(perBlock) - 1) / int64(perBlock) }

// load reads them, if they are few.
func (s *sorted) load() error {
	if s.bytes() > fewRecords {
		return nil
	}
	all := make([]byte, s.bytes())
	if _, err := s.in.ReadAt(all, s.offset); err != nil {
		return err
	}
	s.all = all
	return nil
}

var blockPool = sync.Pool{New: func() any { return new([blockSize]byte) }}

// find calls fn with the place of each record of a chunk, until it returns false. more
// is whether it never did.
func (s *sorted) find(chunk *Digest, fn func(pack, offset, length uint32) bool) (more bool, err error) {
	if s.count == 0 {
		return true, nil
	}
	if s.all != nil {
		more, _ := s.within(s.all, chunk, fn)
		return more, nil
	}
	buf := blockPool.Get().(*[blockSize]byte)
	defer blockPool.Put(buf)
	for b := s.block(keyOf(chunk)); b < len(s.fences); b++ {
		n := min(int64(s.perBlock()), s.count-int64(b)*int64(s.perBlock()))
		block := buf[:n*int64(s.size())]
		if _, err := s.in.ReadAt(block, s.offset+int64(b)*int64(s.perBlock()*s.size())); err != nil {
			return true, err
		}
		more, beyond := s.within(block, chunk, fn)
		if !more || beyond {
			return more, nil
		}
	}
	return true, nil
}

// within is find in some of the records. beyond is whether there is a later chunk, too.
func (s *sorted) within(block []byte, chunk *Digest, fn func(pack, offset, length uint32) bool) (more, beyond bool) {
	size := s.size()
	for i := search(block, size, s.key, chunk); i < len(block)/size; i++ {
		r := block[i*size:][:size]
		if !bytes.Equal(r[:s.key], chunk[:s.key]) {
			return true, true
		}
		if !fn(getPlace(r[s.key:])) {
			return false, false
		}
	}
	return true, false
}

// block is the first block that may have a key. Digests are evenly spread, so it is near
// where it would be if they were exactly so.
func (s *sorted) block(key uint64) int {
	f := s.fences
	hi, _ := bits.Mul64(key, uint64(len(f)))
	low, high := int(hi), int(hi)
	for step := 1; low > 0 && f[low] >= key; step *= 2 {
		high, low = low, max(low-step, 0)
	}
	for step := 1; high < len(f) && f[high] < key; step *= 2 {
		low, high = high, min(high+step, len(f))
	}
	for low < high { // the first whose own first key is not below
		mid := int(uint(low+high) / 2)
		if f[mid] < key {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return max(low-1, 0)
}

// reader reads all records, in their order.
func (s *sorted) reader() *bufio.Reader {
	return bufio.NewReaderSize(io.NewSectionReader(s.in, s.offset, s.bytes()), 64<<10)
}

// sortedWriter writes records that come sorted.
type sortedWriter struct {
	w      *bufio.Writer
	key    int
	count  int64
	fences []uint64
}

func newSortedWriter(w io.Writer, key int) *sortedWriter {
	return &sortedWriter{w: bufio.NewWriterSize(w, 256<<10), key: key}
}

func (w *sortedWriter) add(record []byte) error {
	if w.count%int64(blockSize/(w.key+placeLen)) == 0 {
		w.fences = append(w.fences, binary.BigEndian.Uint64(record))
	}
	w.count++
	_, err := w.w.Write(record)
	return err
}
