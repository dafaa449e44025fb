// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"io"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

// near is a store that lies in a folder, as far as anybody asks.
type near struct{ objstore.Store }

func (near) Dir() string { return "/nowhere" }

func (near) Contains(string) (bool, error) { return false, nil }

var _ objstore.Placed = near{}

// moveWorld stores a pack of eight chunks.
func moveWorld(t *testing.T, store objstore.Store) (pack Ref, chunks []PackChunk, want map[Digest][]byte) {
	t.Helper()
	return movePack(t, store, 0, 1000)
}

// movePack stores a pack of eight chunks, the i-th with i times zeros at its end, which
// compress.
func movePack(t *testing.T, store objstore.Store, seed uint64, zeros int) (pack Ref, chunks []PackChunk, want map[Digest][]byte) {
	t.Helper()
	enc, err := newEncoder(LevelFastest, false)
	if err != nil {
		t.Fatal(err)
	}
	b := &packBuilder{keys: KeysOf(store)}
	want = make(map[Digest][]byte)
	for i := range 8 {
		data := slices.Concat(random(seed+uint64(i), 30_000), make([]byte, zeros*i))
		frame, err := enc.frame(nil, data)
		if err != nil {
			t.Fatal(err)
		}
		chunk := ChunkDigest(b.keys, data)
		want[chunk] = data
		if b.keys == nil {
			b.add(frame, int32(len(data)), chunk)
			continue
		}
		group, err := appendLone(nil, b.keys, frame, len(data), &chunk)
		if err != nil {
			t.Fatal(err)
		}
		b.addLone(group, int32(len(data)), chunk, &KeyedChunk{Frame: int32(len(frame)), Group: Sum(group), Generation: 1, Parts: b.keys.Digests().Parts(nil, data)})
	}
	if err := b.seal(); err != nil {
		t.Fatal(err)
	}
	pack = Ref{Name: Sum(b.buf), Length: int64(len(b.buf))}
	put(t, store, PackKey(pack.Name), b.buf)
	return pack, b.chunks, want
}

// TestMove: frames are moved as they are, each is found in its new place, and packs and
// index prove themselves; near and far.
func TestMove(t *testing.T) {
	t.Parallel()
	for name, store := range map[string]objstore.Store{"far": objstore.NewMem(), "near": near{objstore.NewMem()},
		"far, encrypted": Encrypted(objstore.NewMem(), testKeys(t)), "near, encrypted": Encrypted(near{objstore.NewMem()}, testKeys(t).Unpadded())} {
		pack, chunks, want := moveWorld(t, store)
		m, err := NewMover(t.Context(), store, MoveOptions{PackSize: minPackSize})
		if err != nil {
			t.Fatal(err)
		}
		var offsets []uint32
		for _, i := range []int{1, 2, 5, 6} {
			offsets = append(offsets, uint32(chunks[i].FrameOffset))
		}
		if err := m.Move(pack, offsets); err != nil {
			t.Fatal(err)
		}
		stats, err := m.Finish()
		if err != nil || stats.Chunks != 4 || stats.Packs < 2 || int(stats.Packs) != len(m.Packs()) {
			t.Fatalf("%s: %+v, %v", name, stats, err)
		}
		for _, p := range m.Packs() {
			if err := VerifyPack(t.Context(), store, p, true); err != nil {
				t.Error(err)
			}
		}
		f := NewFetcher(store, FetcherOptions{})
		for i, c := range chunks {
			e := Entry{Length: int64(c.Length), Pack: pack, FrameOffset: c.FrameOffset, FrameLength: c.FrameLength, Chunk: c.Chunk}
			err := m.Place(&e)
			if !slices.Contains(offsets, uint32(c.FrameOffset)) {
				if !IsDamage(err) {
					t.Errorf("%s: chunk %d was not moved, and has a place: %v", name, i, err)
				}
				continue
			}
			data, ferr := f.Chunk(t.Context(), e, nil)
			if err != nil || ferr != nil || e.Pack == pack || !bytes.Equal(data, want[c.Chunk]) {
				t.Errorf("%s: chunk %d: %v, %v", name, i, err, ferr)
			}
			other := Entry{Length: 1, Pack: pack, FrameOffset: c.FrameOffset, FrameLength: c.FrameLength, Chunk: Sum(nil)}
			if err := m.Place(&other); !IsDamage(err) && KeysOf(store) == nil { // a group may have it
				t.Errorf("%s: another chunk has a place: %v", name, err)
			}
		}
		listed := 0
		for info, err := range store.List(t.Context(), IndexPrefix) {
			if err != nil {
				t.Fatal(err)
			}
			_, err := ReadIndex(t.Context(), store, info.Key, Indexing{}, func(p Ref, c []PackChunk) error {
				if listed += len(c); !slices.Contains(m.Packs(), p) {
					t.Errorf("%s is listed", p.Name)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
		if listed != 4 {
			t.Errorf("%s: %d chunks are listed", name, listed)
		}
	}
}

// reads counts the requests for whole packs, and for parts of packs that are not their tables.
type reads struct {
	near
	lengths      map[string]int64
	whole, parts atomic.Int64
}

func (r *reads) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	switch n := r.lengths[key]; {
	case n > 0 && offset == 0 && length == n:
		r.whole.Add(1)
	case n > 0 && offset+length < n:
		r.parts.Add(1)
	}
	return r.near.Get(ctx, key, offset, length)
}

// TestMoveByName: what is moved of a pack is proven by the pack's name where that costs
// less than to decode it; many packs go into few, in their order.
func TestMoveByName(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		zeros       int
		whole, part bool
	}{"compressed": {10_000, true, false}, "not compressed": {0, false, true}} {
		store := &reads{near: near{objstore.NewMem()}, lengths: make(map[string]int64)}
		var packs []Ref
		var offsets [][]uint32
		var entries []Entry
		for n := range 10 {
			pack, chunks, _ := movePack(t, store, uint64(n)<<8, c.zeros)
			packs, offsets = append(packs, pack), append(offsets, nil)
			for i := 0; i < len(chunks); i += 2 {
				f := &chunks[i]
				offsets[n] = append(offsets[n], uint32(f.FrameOffset))
				entries = append(entries, Entry{Length: int64(f.Length), Pack: pack,
					FrameOffset: f.FrameOffset, FrameLength: f.FrameLength, Chunk: f.Chunk})
			}
			store.lengths[PackKey(pack.Name)] = pack.Length
		}
		m, err := NewMover(t.Context(), store, MoveOptions{PackSize: 512 << 10})
		if err != nil {
			t.Fatal(err)
		}
		for n, pack := range packs {
			if err := m.Move(pack, offsets[n]); err != nil {
				t.Fatal(err)
			}
		}
		stats, err := m.Finish()
		if err != nil || stats.Chunks != 40 || stats.Packs != 3 || stats.Bytes < 40*30_000 {
			t.Fatalf("%s: %+v, %v", name, stats, err)
		}
		if whole, parts := store.whole.Load(), store.parts.Load(); whole > 0 != c.whole || parts > 0 != c.part {
			t.Errorf("%s: %d packs were read whole, and %d parts", name, whole, parts)
		}
		var at []int
		for i := range entries {
			if err := m.Place(&entries[i]); err != nil {
				t.Fatal(err)
			}
			at = append(at, slices.Index(m.Packs(), entries[i].Pack)<<20+int(entries[i].FrameOffset))
		}
		if !slices.IsSorted(at) || slices.Min(at) != 0 {
			t.Errorf("%s: they are not in their order", name)
		}
		for _, p := range m.Packs() {
			if err := VerifyPack(t.Context(), store, p, true); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestMoveDamaged: what is damaged is not moved; where the damage is in what is not moved
// anyway, the rest is.
func TestMoveDamaged(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		at   int // the chunk that is damaged
		good bool
	}{"what is moved": {2, false}, "what is not": {0, true}} {
		for _, store := range []objstore.Store{objstore.NewMem(), near{objstore.NewMem()}, Encrypted(objstore.NewMem(), testKeys(t))} {
			pack, chunks, _ := moveWorld(t, store)
			data, err := objstore.ReadAll(t.Context(), store, PackKey(pack.Name), 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			data[chunks[c.at].FrameOffset+100] ^= 1
			put(t, store, PackKey(pack.Name), data)
			m, err := NewMover(t.Context(), store, MoveOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var offsets []uint32
			for _, i := range chunks[1:] {
				offsets = append(offsets, uint32(i.FrameOffset))
			}
			merr := m.Move(pack, offsets)
			_, err = m.Finish()
			if c.good && (merr != nil || err != nil) || !c.good && !IsDamage(err) {
				t.Errorf("%s, %T: %v, %v", name, store, merr, err)
			}
		}
	}
	store := objstore.NewMem()
	pack, chunks, _ := moveWorld(t, store)
	m, err := NewMover(t.Context(), store, MoveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Move(pack, []uint32{uint32(chunks[1].FrameOffset) + 1}); !IsDamage(err) {
		t.Errorf("a frame that the table does not have: %v", err)
	}
	if _, err := m.Finish(); err != nil {
		t.Error(err)
	}
}
