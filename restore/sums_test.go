// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"encoding/binary"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
)

// TestSums: every entry is known by its own fingerprint, in whatever order it is asked for, and by
// no other; what was not taken is known by its digest, if it begins its chunk.
func TestSums(t *testing.T) {
	t.Parallel()
	const n = 3*sumBlock + 7
	content := func(i int) []byte { return binary.BigEndian.AppendUint64(make([]byte, 100), uint64(i)) }
	entry := func(i int) archive.Entry { return archive.Entry{Offset: int64(i) * 512, Length: 512, ChunkOffset: 9} }
	s := newSums()
	t.Cleanup(s.Close)
	for from := 0; from < n; from += 100 {
		var batch []archive.Entry
		for i := from; i < min(from+100, n); i++ {
			batch = append(batch, entry(i))
		}
		sums := s.begin(len(batch))
		for i := range batch {
			s.take(sums, i, content(from+i))
		}
		s.add(batch, sums)
	}
	s.rest()
	for _, step := range []int{1, 997, n - 1} { // coprime to n
		for k := range n {
			i := k * step % n
			e := entry(i)
			known, ok := s.of(&e)
			if !ok || !known.is(content(i)) || known.is(content(i+1)) {
				t.Fatalf("entry %d: known %v", i, ok)
			}
			e.Offset++
			if _, ok := s.of(&e); ok {
				t.Fatalf("what begins behind entry %d is known", i)
			}
		}
	}
	whole := archive.Entry{Offset: 1, Chunk: archive.Sum([]byte("whole"))}
	for _, sums := range []*Sums{s, nil} {
		if known, ok := sums.of(&whole); !ok || !known.is([]byte("whole")) || known.is([]byte("other")) {
			t.Errorf("a whole chunk is not known by its digest: %v", ok)
		}
	}
}
