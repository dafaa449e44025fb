// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

// small stores a disk of a few short chunks, in several frames and kinds of lines.
func small(t *testing.T, store objstore.Store) (disk []byte, refs []MapRef) {
	disk = make([]byte, 12<<10)
	copy(disk[4096:], text(1, 3000))
	copy(disk[8192:], random(2, 500))
	base, _ := backup(t, store, disk, true, span{4096, 3000}, span{8192, 500})
	clear(disk[4608:5120])
	copy(disk[512:], random(3, 400))
	delta, _ := backup(t, store, disk, false, span{512, 400}, span{4608, 512})
	return disk, []MapRef{delta, base}
}

// verifyAll checks every object of a repository, maps by their references.
func verifyAll(t *testing.T, store objstore.Store, refs []MapRef) error {
	t.Helper()
	var errs []error
	for _, r := range refs {
		errs = append(errs, VerifyMap(t.Context(), store, r, true))
		m, err := OpenMap(t.Context(), store, r, 0)
		if errs = append(errs, err); err != nil {
			continue
		}
		for _, p := range m.Packs() {
			errs = append(errs, VerifyPack(t.Context(), store, p, false))
		}
	}
	for info, err := range store.List(t.Context(), "") {
		if errs = append(errs, err); err == nil {
			errs = append(errs, VerifyObject(t.Context(), store, info.Key, -1, true))
		}
	}
	return errors.Join(errs...)
}

// neverLies: a restore over a damaged object fails with damage that names it, or
// gives the right bytes.
func neverLies(t *testing.T, store objstore.Store, disk []byte, refs []MapRef, key, what string) (failed bool) {
	t.Helper()
	got, err := tryRestore(t.Context(), store, refs...)
	if err == nil {
		if !bytes.Equal(got, disk) {
			t.Fatalf("%s, %s: a restore gave wrong bytes", key, what)
		}
		return false
	}
	var d *DamageError
	if !errors.As(err, &d) {
		t.Fatalf("%s, %s: not a DamageError: %v", key, what, err)
	}
	if d.Object != key {
		t.Fatalf("%s, %s: the error names %s: %v", key, what, d.Object, err)
	}
	return true
}

// everyByte is from one byte to the next that is harmed: of what is encrypted, where each look
// opens several age files, some are.
func everyByte(store objstore.Store) int {
	if KeysOf(store) != nil {
		return 29
	}
	return 1
}

func TestEveryFlippedBitIsSeen(t *testing.T) { plainAndEncrypted(t, testEveryFlippedBitIsSeen) }

func testEveryFlippedBitIsSeen(t *testing.T, store objstore.Store) {
	disk, refs := small(t, store)
	if err := verifyAll(t, store, refs); err != nil {
		t.Fatal(err)
	}
	all := keys(t, store, "")
	if len(all) != 6 {
		t.Fatalf("objects: %q", all)
	}
	for _, key := range all {
		data := get(t, store, key)
		failed := 0
		for i := 0; i < len(data); i += everyByte(store) {
			flip(t, store, key, i)
			what := fmt.Sprintf("byte %d of %d", i, len(data))
			if err := verifyAll(t, store, refs); !IsDamage(err) {
				t.Fatalf("%s, %s: check says %v", key, what, err)
			}
			if neverLies(t, store, disk, refs, key, what) {
				failed++
			}
			put(t, store, key, data)
		}
		if isIndex := strings.HasPrefix(key, IndexPrefix); isIndex != (failed == 0) {
			t.Errorf("%s: %d of %d flipped bits were seen by a restore", key, failed, len(data))
		}
	}
}

func TestEveryTruncationIsSeen(t *testing.T) { plainAndEncrypted(t, testEveryTruncationIsSeen) }

func testEveryTruncationIsSeen(t *testing.T, store objstore.Store) {
	disk, refs := small(t, store)
	for _, key := range keys(t, store, "") {
		data := get(t, store, key)
		for n := 0; n < len(data); n += everyByte(store) {
			put(t, store, key, data[:n])
			what := fmt.Sprintf("cut to %d of %d", n, len(data))
			if err := verifyAll(t, store, refs); !IsDamage(err) {
				t.Fatalf("%s, %s: check says %v", key, what, err)
			}
			neverLies(t, store, disk, refs, key, what)
		}
		put(t, store, key, append(bytes.Clone(data), 0))
		if err := verifyAll(t, store, refs); !IsDamage(err) {
			t.Fatalf("%s, a byte longer: check says %v", key, err)
		}
		put(t, store, key, data)
	}
}

func TestMissingObject(t *testing.T) { plainAndEncrypted(t, testMissingObject) }

func testMissingObject(t *testing.T, store objstore.Store) {
	disk, refs := small(t, store)
	for _, prefix := range []string{PackPrefix, MapPrefix} {
		for _, key := range keys(t, store, prefix) {
			data := get(t, store, key)
			if err := store.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			_, err := tryRestore(t.Context(), store, refs...)
			if !IsDamage(err) || !errors.Is(err, objstore.ErrNotFound) {
				t.Errorf("%s missing: %v", key, err)
			}
			if err := verifyAll(t, store, refs); !IsDamage(err) || !errors.Is(err, objstore.ErrNotFound) {
				t.Errorf("%s missing: check says %v", key, err)
			}
			put(t, store, key, data)
		}
	}
	checkRestore(t, store, disk, refs...)
}

// TestBatchSaysWhichEntries: an error of a batch names the entries that are hit, and
// no others, although they share a request.
func TestBatchSaysWhichEntries(t *testing.T) { plainAndEncrypted(t, testBatchSaysWhichEntries) }

func testBatchSaysWhichEntries(t *testing.T, store objstore.Store) {
	disk := random(1, 4*GridSize)
	ref, _ := fullBackup(t, store, disk)
	m := must2(OpenMap(t.Context(), store, ref, 0))(t)
	var entries []Entry
	for e, err := range m.Entries(t.Context(), 0, m.Size()) {
		entries = append(entries, must(t, e, err))
	}
	entries = append(entries, Entry{Zero: true, Length: 5}, entries[2])
	key := PackKey(entries[0].Pack.Name)
	data := get(t, store, key)
	check := func(what string) {
		t.Helper()
		err := NewFetcher(store, FetcherOptions{Parallel: 1}).Batch(t.Context(), entries, func([]int, []byte) error { return nil })
		var e *EntryError
		if !errors.As(err, &e) || len(e.Indexes) != 2 || e.Indexes[0] != 2 || e.Indexes[1] != 5 || !IsDamage(err) {
			t.Errorf("%s: %v (%+v)", what, err, e)
		}
	}
	flip(t, store, key, int(entries[2].FrameOffset)+1000)
	check("flipped")
	put(t, store, key, data[:entries[2].FrameOffset+10])
	check("cut")
}

// TestOutageIsNotDamage: whatever operation fails, reading tells an outage, or
// gives the right bytes.
func TestOutageIsNotDamage(t *testing.T) { plainAndEncrypted(t, testOutageIsNotDamage) }

func testOutageIsNotDamage(t *testing.T, mem objstore.Store) {
	disk, refs := small(t, mem)
	total := 0
	for n := 1; ; n++ {
		store := &faulty{Store: mem, fail: func(_, _ string, i int) bool { return i == n }}
		got, err := tryRestore(t.Context(), store, refs...)
		if store.hits == 0 {
			break
		}
		total++
		if err == nil && !bytes.Equal(got, disk) {
			t.Fatalf("operation %d failed: wrong bytes", n)
		}
		if err == nil || IsDamage(err) || errors.Is(err, objstore.ErrNotFound) {
			t.Fatalf("operation %d failed: %v", n, err)
		}
	}
	for n := 1; ; n++ {
		store := &faulty{Store: mem, fail: func(_, _ string, i int) bool { return i == n }}
		err := verifyAll(t, store, refs)
		if store.hits == 0 {
			break
		}
		total++
		if err == nil || IsDamage(err) {
			t.Fatalf("check: operation %d failed: %v", n, err)
		}
	}
	if total < 20 {
		t.Errorf("only %d operations", total)
	}
}

// TestWrongReferences: numbers in a reference are judged before they cost memory.
func TestWrongReferences(t *testing.T) { plainAndEncrypted(t, testWrongReferences) }

func testWrongReferences(t *testing.T, store objstore.Store) {
	_, refs := small(t, store)
	ctx := t.Context()
	for _, change := range []func(r *MapRef){
		func(r *MapRef) { r.Length++ },
		func(r *MapRef) { r.Length-- },
		func(r *MapRef) { r.DirLength++ },
		func(r *MapRef) { r.DirLength = 0 },
		func(r *MapRef) { r.DirLength = -1 },
		func(r *MapRef) { r.DirLength = 1 << 60 },
		func(r *MapRef) { r.DirLength, r.Length = maxDirLength, 1<<40 },
		func(r *MapRef) { r.Length = 1 << 62 },
		func(r *MapRef) { r.DirDigest[0]++ },
		func(r *MapRef) { r.Name[0]++ },
	} {
		r := refs[0]
		change(&r)
		if _, err := OpenMap(ctx, store, r, 0); !IsDamage(err) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	m := must2(OpenMap(ctx, store, refs[1], 0))(t)
	var e Entry
	for v, err := range m.Entries(ctx, 0, m.Size()) {
		e = must(t, v, err)
	}
	f := NewFetcher(store, FetcherOptions{})
	for _, change := range []func(e *Entry){
		func(e *Entry) { e.FrameLength = -1 },
		func(e *Entry) { e.FrameLength = 1 << 30 },
		func(e *Entry) { e.FrameOffset = -1 },
		func(e *Entry) { e.FrameOffset = 1 << 62 },
		func(e *Entry) { e.FrameOffset++ },
		func(e *Entry) { e.FrameLength-- },
		func(e *Entry) { e.ChunkOffset = -1 },
		func(e *Entry) { e.ChunkOffset += 2000 },
		func(e *Entry) { e.Length = 1 << 40 },
		func(e *Entry) { e.Chunk[0]++ },
		func(e *Entry) { e.Pack.Length = 1 << 62; e.FrameOffset = 1 << 61 },
		func(e *Entry) { e.Pack.Length = 10 },
	} {
		c := e
		change(&c)
		if _, err := f.Chunk(ctx, c, nil); !IsDamage(err) {
			t.Errorf("chunk of %+v: %v", c, err)
		}
		err := f.Batch(ctx, []Entry{c}, func([]int, []byte) error { return nil })
		if !IsDamage(err) {
			t.Errorf("batch of %+v: %v", c, err)
		}
	}
	if _, err := f.Chunk(ctx, e, nil); err != nil {
		t.Errorf("the entry itself: %v", err)
	}
}

func TestDecodeChunk(t *testing.T) {
	t.Parallel()
	enc := must2(newEncoder(LevelFastest, true))(t)
	data := text(1, 5000)
	frame := must2(enc.frame(nil, data))(t)
	dec := must2(newDecoder())(t)
	defer dec.close()
	got, err := dec.chunk(frame, nil, Sum(data))
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%v", err)
	}
	raw := appendRawFrame(nil, random(1, GridSize))
	if _, err := dec.chunk(raw, nil, Sum(random(1, GridSize))); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string][]byte{
		"empty":        {},
		"two frames":   append(bytes.Clone(frame), frame...),
		"trailing":     append(bytes.Clone(frame), 0),
		"skippable":    append(appendSkippable(nil, 1), 0),
		"then skip":    append(bytes.Clone(frame), appendSkippable(nil, 0)...),
		"too long":     appendRawFrame(nil, make([]byte, GridSize+1)),
		"far too long": appendRawFrame(nil, make([]byte, maxText+1)),
	} {
		if _, err := dec.chunk(bad, nil, Sum(data)); err == nil {
			t.Errorf("%s is decoded", name)
		}
	}
	if _, err := dec.chunk(frame, nil, Digest{}); err == nil {
		t.Error("a wrong digest is not seen")
	}
}

func TestReplayArguments(t *testing.T) {
	t.Parallel()
	store := objstore.NewMem()
	disk, refs := small(t, store)
	maps := openAll(t, store, refs)
	size := int64(len(disk))
	for name, seq := range map[string]func(func(Entry, error) bool){
		"no maps":     Replay(t.Context(), nil, 0, 0),
		"no full one": Replay(t.Context(), maps[:1], 0, size),
		"past end":    Replay(t.Context(), maps, 0, size+1),
		"negative":    Replay(t.Context(), maps, -1, size),
		"inverted":    Replay(t.Context(), maps, 2, 1),
		"entries":     maps[0].Entries(t.Context(), 0, size+1),
	} {
		var last error
		seq(func(_ Entry, err error) bool { last = err; return err == nil })
		if last == nil {
			t.Errorf("%s: no error", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var last error
	Replay(ctx, maps, 0, size)(func(_ Entry, err error) bool { last = err; return err == nil })
	if !errors.Is(last, context.Canceled) {
		t.Errorf("cancelled: %v", last)
	}
}
