// SPDX-License-Identifier: Apache-2.0

package trust_test

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/imgbackup/imgbackup/backup/trust"
)

// play lets a world live as the bytes say, two for each event. Whatever they do to
// images and bitmaps, no backup may archive anything but what the disk holds; and
// as long as they do nothing but what a VM and QEMU do, none may have to read all.
func play(t *testing.T, life []byte, piece int, found map[trust.Reason]int) {
	if len(life) < 2 {
		return
	}
	w := newWorld(t, 4+int(life[0])%(maxSectors-4), found)
	w.piece = piece
	clusterBits := 9 + uint(life[1])%3
	for life = life[2:]; len(life) >= 2; life = life[2:] {
		w.event(life[0], life[1], clusterBits)
	}
	w.backup(true, 1, clusterBits, 2)
}

// event is one thing that happens.
func (w *world) event(what, how byte, clusterBits uint) {
	top := &w.image.layers[0]
	at := int(how) % len(w.image.content)
	var b *bitmap
	if n := len(top.bitmaps); n > 0 {
		b = &top.bitmaps[int(how)%n]
	}
	switch what % 32 {
	case 0, 1, 2, 3, 4, 5, 6:
		w.put(at, 1+how>>5, data, true)
	case 7:
		w.put(at, 0, data, true)
	case 8:
		w.put(at, 0, zeroes, true)
	case 9, 10, 11, 12, 13:
		w.backup(true, 1+int(how)%2, clusterBits, 2+int(how)%3)
	case 14, 15:
		w.backup(false, 1+int(how)%2, clusterBits, 3)
	case 16: // a snapshot
		if len(w.image.layers) < 3 {
			w.image.layers = append([]layer{{holds: make([]kind, len(w.image.content)), places: make([]int, len(w.image.content))}}, w.image.layers...)
		}
	case 17:
		w.honest = w.honest && !w.shrunk // nobody saw how small it was
		w.resize(min(maxSectors, len(w.image.content)+1+at%4))
	case 18:
		w.copies = append(w.copies, w.image.clone())
	case 19: // an older copy is put back
		if len(w.copies) > 0 {
			w.image, w.honest = w.copies[int(how)%len(w.copies)].clone(), false
		}
	case 20:
		w.resize(max(2, len(w.image.content)-1-at%4))
		w.shrunk = true
	case 21, 22: // a write that no bitmap saw
		w.put(at, 1+how>>5, data, false)
		w.honest = false
	case 23: // data that vanished
		w.put(at, 0, none, false)
		if w.below(at) == data {
			top.holds[at] = zeroes
		}
		w.honest = false
	default:
		w.tamper(what, how, b)
	}
}

// tamper does what people and tools do to bitmaps.
func (w *world) tamper(what, how byte, b *bitmap) {
	below := &w.image.layers[len(w.image.layers)-1]
	switch {
	case what%32 == 24 && len(w.image.layers) > 1: // a backing file is written to
		below.mtime++
		at := int(how) % len(w.image.content)
		if at < len(below.holds) && w.image.layers[0].holds[at] == none {
			w.image.layers[0].holds[at] = none
			below.holds[at] = data
			if w.holds(at) == data {
				w.image.content[at] = 1 + how>>5
			}
		}
	case what%32 == 25 && len(w.history) > 0:
		w.damaged[&w.history[int(how)%len(w.history)].Disks[0]] = true
	case b == nil:
		return
	case what%32 == 26:
		clear(b.dirty)
	case what%32 == 27:
		b.inUse = true
	case what%32 == 28:
		b.enabled = !b.enabled
	case what%32 == 29:
		b.dirty[int(how)%len(b.dirty)] = false
	case what%32 == 30:
		b.grain = 3 - b.grain
	default:
		b.dirty[int(how)%len(b.dirty)] = true
	}
	w.honest = false
}

// life returns a random life.
func life(seed uint64) []byte {
	random := rand.New(rand.NewPCG(seed, 15))
	events := make([]byte, 2*(2+random.IntN(48)))
	honest := random.IntN(3) == 0
	for i := range len(events) / 2 {
		binary.LittleEndian.PutUint16(events[2*i:], uint16(random.Uint32()))
		if honest && i > 0 {
			events[2*i] = [...]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 16, 17, 17, 18, 20}[random.IntN(18)]
		}
	}
	return events
}

// TestJudge lives many random lives. In so many, each accident must have happened
// and been seen.
func TestJudge(t *testing.T) {
	t.Parallel()
	found := make(map[trust.Reason]int)
	for seed := range uint64(4_000) {
		play(t, life(seed), 0, found)
		if t.Failed() {
			t.Fatalf("in life %d", seed)
		}
	}
	for _, code := range []trust.Reason{
		trust.ReasonTrusted, trust.ReasonMissing, trust.ReasonInUse, trust.ReasonDisabled, trust.ReasonGranularity,
		trust.ReasonBacking, trust.ReasonWitness, trust.ReasonContradicted, trust.ReasonMap, trust.ReasonContent,
		trust.ReasonArchive,
	} {
		if found[code] == 0 {
			t.Errorf("no backup came to %s: %v", code, found)
		}
	}
}

// TestJudgeWithoutKey lives lives in which a host can't read its archive, and compares pieces of
// some sectors by their digests: it must believe each bitmap that tells all, whatever has changed
// beside what the bitmap calls clean, and still convict others.
func TestJudgeWithoutKey(t *testing.T) {
	t.Parallel()
	found := make(map[trust.Reason]int)
	for seed := range uint64(1_500) {
		play(t, life(seed), 2+int(seed%4), found)
		if t.Failed() {
			t.Fatalf("in life %d", seed)
		}
	}
	for _, code := range []trust.Reason{trust.ReasonTrusted, trust.ReasonMap, trust.ReasonContent} {
		if found[code] == 0 {
			t.Errorf("no backup came to %s: %v", code, found)
		}
	}
}

// TestEndWithoutKey: a disk was cut in its last piece, of which the guest has written another part
// since. What the host can't tell there is read.
func TestEndWithoutKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 8, make(map[trust.Reason]int))
	w.piece = 4
	for i := range 8 {
		w.put(i, 1, data, true)
	}
	w.backup(true, 1, 9, 2)
	w.put(7, 0, data, false) // the rest of a cluster in which it was cut
	w.put(4, 2, data, true)
	v, err := w.judge(9).Verdict(t.Context(), trust.Question{WithData: true})
	if err != nil {
		t.Fatal(err)
	}
	w.checkVerdict(v)
}

func FuzzJudge(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(life(seed))
	}
	f.Fuzz(func(t *testing.T, life []byte) {
		play(t, life[:min(len(life), 400)], 0, make(map[trust.Reason]int))
	})
}
