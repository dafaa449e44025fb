// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/imgbackup/imgbackup/objstore"
)

// What the table takes where memory is not short, and what of it indexes may fill.
const (
	dedupMax  = dedupSlots / 8 * 7
	dedupLoad = dedupSlots / 8 * 6
)

// TestMemoryBounds: what may be held at once, added up.
func TestMemoryBounds(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	if n := dedupSlots * int(unsafe.Sizeof(dedupSlot{})); n > 24*mib {
		t.Errorf("the deduplication table takes %d bytes", n)
	}
	if n := 65 * (frameLines*runLineLen + bufSlack); n > 40*mib {
		t.Errorf("the frames of 65 maps take %d bytes", n)
	}
	// 16 workers: scratch, verification, read-back; cells in flight; packs.
	if n := 16*3*GridSize + (2*16+4)*GridSize + packBuffers*defaultPackSize; n > 184*mib {
		t.Errorf("the pipeline takes %d bytes", n)
	}
	if n := packTableLen(maxPackChunks); n > 2*mib {
		t.Errorf("a pack's table takes %d bytes", n)
	}
	if n := indexFrame + indexPackLen + maxPackChunks*indexChunkLen; n > maxText {
		t.Errorf("a frame of an index has %d bytes of text", n)
	}
}

// TestDedupTableIsBounded: beyond its limit the table takes nothing, and keeps what
// it has.
func TestDedupTableIsBounded(t *testing.T) {
	t.Parallel()
	table := dedupTable{most: dedupSlots}
	digest := func(i uint64) *Digest {
		var d Digest
		binary.LittleEndian.PutUint64(d[:], i*0x9e3779b97f4a7c15)
		return &d
	}
	at := func(i uint64) place { return place{pack: uint32(i), frameOff: uint32(2 * i), frameLen: 7} }
	for i := range uint64(dedupSlots) {
		table.put(digest(i), at(i), dedupLoad)
	}
	if table.used != dedupLoad || len(table.slots) != dedupSlots {
		t.Fatalf("%d chunks in %d slots", table.used, len(table.slots))
	}
	for i := uint64(dedupSlots); i < 2*dedupSlots; i++ {
		table.put(digest(i), at(i), dedupMax)
	}
	if table.used != dedupMax || len(table.slots) != dedupSlots {
		t.Fatalf("%d chunks in %d slots", table.used, len(table.slots))
	}
	for i := range uint64(dedupLoad) {
		if got, ok := table.recent(digest(i)); !ok || got != at(i) {
			t.Fatalf("chunk %d: %+v, %v", i, got, ok)
		}
	}
	if _, ok := table.recent(digest(dedupLoad)); ok {
		t.Error("a chunk beyond the limit is there")
	}
	table.prove(digest(5), at(5))
	table.prove(digest(6), at(5))
	a, _ := table.recent(digest(5))
	b, _ := table.recent(digest(6))
	if !a.proven() || a.length() != 7 || b.proven() {
		t.Errorf("%+v, %+v", a, b)
	}
}

// TestProvenIsSpilled: what a session has proven is known however much it is, and what
// indexes promise stays in memory.
func TestProvenIsSpilled(t *testing.T) {
	t.Parallel()
	const n = dedupMax + 100_000
	table := dedupTable{most: dedupSlots}
	table.spill.Dir = t.TempDir()
	defer table.close()
	digest := func(i uint64) *Digest {
		var d Digest
		binary.BigEndian.PutUint64(d[:], i*0x9e3779b97f4a7c15)
		binary.BigEndian.PutUint64(d[8:], i)
		return &d
	}
	at := func(i uint64) place { return place{pack: uint32(i), frameOff: uint32(2 * i), frameLen: 7 | provenBit} }
	table.put(digest(n), place{pack: 1, frameLen: 9}, dedupMax)
	for i := range uint64(n) {
		table.learn(t.Context(), digest(i), at(i))
	}
	if err := table.lost(); err != nil || len(table.slots) != dedupSlots {
		t.Fatalf("%d slots, %v", len(table.slots), err)
	}
	for i := uint64(0); i < n; i += 97 {
		if got, ok, err := table.lookup(digest(i)); !ok || got != at(i) || err != nil {
			t.Fatalf("chunk %d: %+v, %v, %v", i, got, ok, err)
		}
	}
	if got, ok, _ := table.lookup(digest(n)); !ok || got.proven() || got.length() != 9 {
		t.Errorf("the promise: %+v, %v", got, ok)
	}
	if _, ok, _ := table.lookup(digest(n + 1)); ok {
		t.Error("an unknown chunk is known")
	}
}

// TestBatchIsBounded: no more requests at once than there are buffers, and
// neighbours share one.
func TestBatchIsBounded(t *testing.T) {
	t.Parallel()
	store := objstore.NewMem()
	disk := random(1, 24*GridSize)
	ref, _ := fullBackup(t, store, disk)
	var entries []Entry
	for e, err := range must2(OpenMap(t.Context(), store, ref, 0))(t).Entries(t.Context(), 0, int64(len(disk))) {
		entries = append(entries, must(t, e, err))
	}
	gets := 0
	counting := &faulty{Store: store, fail: func(op, _ string, _ int) bool {
		if op == "get" {
			gets++
		}
		return false
	}}
	f := NewFetcher(counting, FetcherOptions{Parallel: 2})
	var running, most, calls atomic.Int64
	err := f.Batch(t.Context(), entries, func([]int, []byte) error {
		most.Store(max(most.Load(), running.Add(1)))
		calls.Add(1)
		running.Add(-1)
		return nil
	})
	if err != nil || calls.Load() != 24 || most.Load() > 2 || gets != 2 {
		t.Errorf("%v: %d chunks, %d at once, %d requests", err, calls.Load(), most.Load(), gets)
	}
	for range 2 {
		if frame, s := <-f.frames, <-f.decoders; cap(frame) > 5<<20 || s != nil && cap(s.chunk) > 2<<20 {
			t.Errorf("buffers of %d and %d bytes", cap(frame), cap(s.chunk))
		}
	}
}

// TestBatchErrors: what the callback returns stops the batch and comes out as it is.
func TestBatchErrors(t *testing.T) {
	t.Parallel()
	store := objstore.NewMem()
	disk := random(1, 9*GridSize)
	ref, _ := fullBackup(t, store, disk)
	var entries []Entry
	for e, err := range must2(OpenMap(t.Context(), store, ref, 0))(t).Entries(t.Context(), 0, int64(len(disk))) {
		entries = append(entries, must(t, e, err))
	}
	f := NewFetcher(store, FetcherOptions{})
	if err := f.Batch(t.Context(), entries, func([]int, []byte) error { return errOutage }); !errors.Is(err, errOutage) || IsDamage(err) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Batch(ctx, entries, func([]int, []byte) error { return nil }); err == nil {
		t.Error("a cancelled batch succeeds")
	}
	if err := f.Batch(ctx, nil, nil); err == nil {
		t.Error("a cancelled empty batch succeeds")
	}
}
