// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"encoding/binary"
	"iter"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

// largeMaps stores a full map and deltas that are each too large to be kept, newest
// first, over a disk of size bytes.
func largeMaps(t *testing.T, store objstore.Store, count int) (refs []MapRef, size int64) {
	t.Helper()
	const lines = 16 << 10
	size = lines * 64 << 10
	pack := random(1, 1<<20)
	ref := Ref{Name: Sum(pack), Length: int64(len(pack))}
	put(t, store, PackKey(ref.Name), pack)
	for i := range count {
		entries := iter.Seq2[Entry, error](func(yield func(Entry, error) bool) {
			var seed [16]byte
			seed[8] = byte(i)
			for n := range int64(lines) {
				binary.LittleEndian.PutUint64(seed[:], uint64(n))
				e := Entry{Offset: n * 64 << 10, Length: 1024 << min(i, 6), Pack: ref, FrameOffset: n, FrameLength: 5, Chunk: Sum(seed[:])}
				if !yield(e, nil) {
					return
				}
			}
		})
		r, err := WriteMap(t.Context(), store, MapOptions{Disk: "vda", Size: size, Full: i == count-1}, entries)
		refs = append(refs, must(t, r, err))
		if r.Length <= smallMap {
			t.Fatalf("the map has only %d bytes", r.Length)
		}
	}
	return refs, size
}

// TestLargeMapsAreNear: merging maps that are too large to be kept waits for the
// store twice, for their directories and for their frames, whether all of the disk
// is wanted or a part, and asks for nothing twice.
func TestLargeMapsAreNear(t *testing.T) {
	t.Parallel()
	store := objstore.NewMem()
	refs, size := largeMaps(t, store, 6)
	open := func(t *testing.T, s objstore.Store, refs []MapRef) (maps []*Map) {
		t.Helper()
		opened := make(chan struct{})
		maps = make([]*Map, len(refs))
		for i, r := range refs {
			go func() {
				maps[i], _ = OpenMap(t.Context(), s, r, 0)
				opened <- struct{}{}
			}()
		}
		for range refs {
			<-opened
		}
		if slices.Contains(maps, nil) {
			t.Fatal("a map cannot be opened")
		}
		return maps
	}
	for _, c := range []struct {
		count, trips, gets int // gets of maps' objects
		start, end         int64
	}{
		{1, 2, 3, 0, size},
		{aheadMaps, 2, 3 * aheadMaps, 0, size},
		{6, 2, 3 * 6, 0, size},
		{6, 2, 3 * 6, size / 2, size/2 + 64<<10},
	} {
		synctest.Test(t, func(t *testing.T) {
			far := objstoretest.NewFar(store)
			maps := open(t, far, refs[len(refs)-c.count:])
			next := c.start
			for e, err := range Replay(t.Context(), maps, c.start, c.end) {
				if err != nil || e.Offset != next {
					t.Fatalf("%+v after %d: %v", e, next, err)
				}
				next = e.End()
			}
			if next != c.end {
				t.Errorf("the merge ends at %d of %d", next, c.end)
			}
			if n := far.Elapsed(); n != c.trips || far.Gets("maps") != c.gets {
				t.Errorf("%d maps from %d to %d: %d round trips and %d requests, want %d and %d", c.count, c.start, c.end, n, far.Gets("maps"), c.trips, c.gets)
			}
		})
	}
}
