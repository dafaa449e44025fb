// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"encoding/binary"
	"sort"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Sums are the SHA-256 of what a restored disk has of chunks that it does not have whole, taken
// when these were proven and before they were written. So whoever reads the disk back fetches
// no chunk again. A nil *Sums has none. What it has not is fetched: it never fails.
type Sums struct {
	records spool.Spool // by offset: the offset on the disk (8 bytes), and the sum
	n       int
	broken  bool // there was no room for them
	all     bool // of whole chunks, too: those of an encrypted repository have keyed digests
}

const sumRecord = 8 + len(archive.Digest{})

// partSums are those of a batch of entries; nil: nobody wants them.
type partSums []archive.Digest

// begin begins a batch of so many entries.
func (s *Sums) begin(entries int) partSums {
	if s == nil || s.broken {
		return nil
	}
	return make(partSums, entries)
}

// take takes the sum of an entry. It may be called for several at once.
func (p partSums) take(i int, data []byte) {
	if p != nil {
		p[i] = archive.Sum(data)
	}
}

// wants reports whether the sum of an entry is to be taken, which may have its whole chunk.
func (s *Sums) wants(whole bool) bool { return s != nil && (s.all || !whole) }

// add keeps the sums of a batch, which lies behind what was kept before.
func (s *Sums) add(entries []archive.Entry, sums partSums) {
	for i := range sums {
		if s.broken || sums[i] == (archive.Digest{}) {
			continue
		}
		var record [sumRecord]byte
		binary.BigEndian.PutUint64(record[:], uint64(entries[i].Offset))
		copy(record[8:], sums[i][:])
		if _, err := s.records.Write(record[:]); err != nil {
			s.Close()
			s.broken = true
			return
		}
		s.n++
	}
}

// of is what the bytes of an entry must have as their sum, if that is known.
func (s *Sums) of(e *archive.Entry) (sum archive.Digest, ok bool) {
	var record [sumRecord]byte
	read := func(i int) int64 {
		if _, err := s.records.ReadAt(record[:], int64(i*sumRecord)); err != nil {
			return -1
		}
		return int64(binary.BigEndian.Uint64(record[:]))
	}
	if s != nil && s.n > 0 {
		i := sort.Search(s.n, func(i int) bool { return read(i) >= e.Offset })
		if i < s.n && read(i) == e.Offset {
			return archive.Digest(record[8:]), true
		}
	}
	return e.Chunk, e.ChunkOffset == 0
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
		s.n = 0
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
	sum, ok := w.Sums.of(e)
	return ok && w.Image.ReadAt(ctx, p, e.Offset) == nil && archive.Sum(p) == sum
}
