// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

// near is a store that lies in a folder, as far as anybody asks.
type near struct{ objstore.Store }

func (near) Dir() string { return "/nowhere" }

// moveWorld stores a pack of eight chunks.
func moveWorld(t *testing.T, store objstore.Store) (pack Ref, chunks []PackChunk, want map[Digest][]byte) {
	t.Helper()
	enc, err := newEncoder(LevelFastest, false)
	if err != nil {
		t.Fatal(err)
	}
	b := &packBuilder{}
	want = make(map[Digest][]byte)
	for i := range 8 {
		data := slices.Concat(random(uint64(i), 30_000), make([]byte, 1000*i))
		frame, err := enc.frame(nil, data)
		if err != nil {
			t.Fatal(err)
		}
		b.add(frame, int32(len(data)), Sum(data))
		want[Sum(data)] = data
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
	for name, store := range map[string]objstore.Store{"far": objstore.NewMem(), "near": near{objstore.NewMem()}} {
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
			if err := m.Place(&other); !IsDamage(err) {
				t.Errorf("%s: another chunk has a place: %v", name, err)
			}
		}
		listed := 0
		for info, err := range store.List(t.Context(), IndexPrefix) {
			if err != nil {
				t.Fatal(err)
			}
			_, name, _ := ParseKey(info.Key)
			_, err := ReadIndex(t.Context(), store, Ref{Name: name, Length: info.Size}, func(p Ref, c []PackChunk) error {
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

// TestMoveDamaged: what is damaged is not moved; where the damage is in what is not moved
// anyway, the rest is.
func TestMoveDamaged(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		at   int // the chunk that is damaged
		good bool
	}{"what is moved": {2, false}, "what is not": {0, true}} {
		for _, store := range []objstore.Store{objstore.NewMem(), near{objstore.NewMem()}} {
			pack, chunks, _ := moveWorld(t, store)
			data, err := objstore.ReadAll(t.Context(), store, PackKey(pack.Name), 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			data[chunks[c.at].FrameOffset+100] ^= 1
			if err := store.Put(t.Context(), PackKey(pack.Name), bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
				t.Fatal(err)
			}
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
