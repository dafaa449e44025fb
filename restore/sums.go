// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sort"
	"sync"

	"github.com/zeebo/xxh3"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Sums are fingerprints of what a restored disk has of each chunk, taken when it was proven by
// its digest and before it was written. So whoever reads the disk back fetches no chunk again,
// and takes no second SHA-256, which is most of what reading back costs. A nil *Sums has none.
// What it has not is proven by its digest, or fetched: it never fails.
//
// A fingerprint stands for a digest between memory and medium alone, within one process. It is
// XXH3's, of 128 bits, by a seed that is drawn anew for each disk: no fault of a medium
// keeps it, and nobody who has chosen the bytes knows it.
type Sums struct {
	seed    uint64
	records spool.Spool // by offset: the offset on the disk (8 bytes), and the fingerprint
	n       int
	first   []int64 // the offset of the first record of each block
	broken  bool    // there was no room for them

	mu    sync.Mutex
	block []byte // that was looked into last: who reads a disk goes through them in order
	at    int    // which that is
}

const (
	sumRecord = 8 + 16
	sumBlock  = 1024 // records that are read at once
)

// newSums returns some for one disk.
func newSums() *Sums { return &Sums{seed: rand.Uint64()} }

// partSums are those of a batch of entries; nil: nobody wants them.
type partSums []xxh3.Uint128

// begin begins a batch of so many entries.
func (s *Sums) begin(entries int) partSums {
	if s == nil || s.broken {
		return nil
	}
	return make(partSums, entries)
}

// take takes the fingerprint of an entry. It may be called for several at once.
func (s *Sums) take(to partSums, i int, data []byte) {
	if to != nil {
		to[i] = xxh3.Hash128Seed(data, s.seed)
	}
}

// add keeps the sums of a batch, which lies behind what was kept before.
func (s *Sums) add(entries []archive.Entry, sums partSums) {
	for i := range sums {
		if s.broken {
			return
		}
		var record [sumRecord]byte
		binary.BigEndian.PutUint64(record[:], uint64(entries[i].Offset))
		print := sums[i].Bytes()
		copy(record[8:], print[:])
		if _, err := s.records.Write(record[:]); err != nil {
			s.Close()
			s.broken = true
			return
		}
		if s.n%sumBlock == 0 {
			s.first = append(s.first, entries[i].Offset)
		}
		s.n++
	}
}

// sum is what bytes are known by: a fingerprint or, if there is none, a digest.
type sum struct {
	seed   uint64
	print  [16]byte
	digest archive.Digest
}

// is reports whether p is what is known by it.
func (s *sum) is(p []byte) bool {
	if s.digest != (archive.Digest{}) {
		return archive.Sum(p) == s.digest
	}
	return xxh3.Hash128Seed(p, s.seed).Bytes() == s.print
}

// of is what the bytes of an entry are known by, if they are. It may be called for several at once.
func (s *Sums) of(e *archive.Entry) (known sum, ok bool) {
	if s != nil && s.n > 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		block := s.lookInto(sort.Search(len(s.first), func(i int) bool { return s.first[i] > e.Offset }) - 1)
		offset := func(i int) int64 { return int64(binary.BigEndian.Uint64(block[i*sumRecord:])) }
		n := len(block) / sumRecord
		if i := sort.Search(n, func(i int) bool { return offset(i) >= e.Offset }); i < n && offset(i) == e.Offset {
			return sum{seed: s.seed, print: [16]byte(block[i*sumRecord+8:])}, true
		}
	}
	return sum{digest: e.Chunk}, e.ChunkOffset == 0
}

// lookInto returns the records of a block; of one that there is not, or that cannot be read, none.
func (s *Sums) lookInto(i int) []byte {
	if i < 0 {
		return nil
	}
	if s.block != nil && s.at == i {
		return s.block
	}
	s.at, s.block = i, make([]byte, min(sumBlock, s.n-i*sumBlock)*sumRecord)
	if _, err := s.records.ReadAt(s.block, int64(i*sumBlock*sumRecord)); err != nil {
		s.block = nil
	}
	return s.block
}

// rest gives memory back until they are used.
func (s *Sums) rest() {
	if s != nil {
		s.records.Rest()
	}
}

// Close gives back what the sums take; it may be called again.
func (s *Sums) Close() {
	if s != nil {
		s.records.Close()
		s.n, s.first, s.block = 0, nil, nil
	}
}

// Written is a disk that was restored, as a place where its content may be had: nearer than
// the repository, and proven all the same.
type Written struct {
	Image *qcow2.Image
	Sums  *Sums
}

// ReadEntry fills p with the bytes of an entry, all of it, as the image has them, and reports
// whether they are what the repository holds.
func (w *Written) ReadEntry(ctx context.Context, e *archive.Entry, p []byte) bool {
	known, ok := w.Sums.of(e)
	return ok && w.Image.ReadAt(ctx, p, e.Offset) == nil && known.is(p)
}
