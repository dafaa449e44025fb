// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/internal/zero"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
)

func TestFullAndDelta(t *testing.T) { plainAndEncrypted(t, testFullAndDelta) }

func testFullAndDelta(t *testing.T, store objstore.Store) {
	disk := make([]byte, 5*GridSize+700*512)
	copy(disk, random(1, 2*GridSize+5000))
	copy(disk[3*GridSize:], text(2, 2*GridSize))
	first, stats := fullBackup(t, store, disk)
	checkRestore(t, store, disk, first)
	if stats.Data+stats.Zero != int64(len(disk)) || stats.Packs != 1 || stats.Chunks == 0 {
		t.Errorf("stats: %+v", stats)
	}
	v1 := slices.Clone(disk)
	clear(disk[100<<10 : 164<<10]) // zeros are data
	copy(disk[4*GridSize-512:], random(3, 1024))
	second, stats := backup(t, store, disk, false, span{64 << 10, 128 << 10}, span{4*GridSize - 512, 1024})
	checkRestore(t, store, disk, second, first)
	checkRestore(t, store, v1, first)
	if stats.Data != 128<<10+1024 || stats.Stored > 140<<10 {
		t.Errorf("stats of the delta: %+v", stats)
	}
	third, stats := backup(t, store, make([]byte, len(disk)), false, span{0, int64(len(disk))})
	checkRestore(t, store, make([]byte, len(disk)), third, second, first)
	if stats.Zero != int64(len(disk)) || stats.Data != 0 || stats.Packs != 0 {
		t.Errorf("stats of zeros: %+v", stats)
	}
}

func TestEmptyDisk(t *testing.T) { plainAndEncrypted(t, testEmptyDisk) }

func testEmptyDisk(t *testing.T, store objstore.Store) {
	ref, _ := fullBackup(t, store, nil)
	checkRestore(t, store, nil, ref)
	ref, _ = backup(t, store, make([]byte, 512), true)
	checkRestore(t, store, make([]byte, 512), ref)
	if err := VerifyMap(t.Context(), store, ref, true); err != nil {
		t.Error(err)
	}
}

// TestLives plays random lives of a disk, and checks every checkpoint through its
// chain, through a synthetic full, and in parts.
func TestLives(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		store := objstore.NewMem()
		if rapid.IntRange(0, 2).Draw(t, "encrypted") == 0 {
			store = Encrypted(store, testKeys(t))
		}
		o := WriterOptions{
			Workers:  rapid.IntRange(1, 4).Draw(t, "workers"),
			PackSize: rapid.SampledFrom([]int64{64 << 10, 300 << 10, 32 << 20}).Draw(t, "pack"),
			Level:    rapid.SampledFrom([]Level{LevelFastest, LevelNone, LevelDefault}).Draw(t, "level"),
		}
		disk := make([]byte, 512*rapid.IntRange(0, 6000).Draw(t, "sectors"))
		var chain []MapRef
		var states []recorded
		for step := range rapid.IntRange(1, 7).Draw(t, "steps") {
			low := int64(len(disk)) // nothing below it was cut off since the parent
			if step > 0 && rapid.Bool().Draw(t, "resize") {
				mid := 512 * rapid.IntRange(0, 6000).Draw(t, "shrink")
				end := 512 * rapid.IntRange(0, 6000).Draw(t, "grow")
				low = int64(min(len(disk), mid, end))
				disk = append(slices.Clone(disk[:low]), make([]byte, int64(end)-low)...)
			}
			dirty := make([]bool, (len(disk)+511)/512)
			for range rapid.IntRange(0, 6).Draw(t, "writes") {
				if len(disk) == 0 {
					break
				}
				a := rapid.IntRange(0, len(disk)/512-1).Draw(t, "at")
				n := min(rapid.IntRange(1, 2500).Draw(t, "n"), len(disk)/512-a)
				part := disk[a*512 : (a+n)*512]
				switch rapid.IntRange(0, 2).Draw(t, "what") {
				case 0:
					clear(part)
				case 1:
					copy(part, random(rapid.Uint64Range(0, 9).Draw(t, "seed"), len(part)))
				default:
					copy(part, text(rapid.Uint64Range(0, 9).Draw(t, "seed"), len(part)))
				}
				for i := a; i < a+n; i++ {
					dirty[i] = true
				}
			}
			for i := low / 512; i < int64(len(dirty)); i++ {
				dirty[i] = true
			}
			full := step == 0 || rapid.IntRange(0, 5).Draw(t, "full") == 0
			var spans []span
			for i := 0; i < len(dirty); i++ {
				if !dirty[i] && !full {
					continue
				}
				j := i
				for j < len(dirty) && (dirty[j] || full) {
					j++
				}
				spans = append(spans, span{int64(i) * 512, int64(j-i) * 512})
				i = j
			}
			ref, _, err := tryBackup(ctx, store, o, disk, full, spans...)
			if err != nil {
				t.Fatalf("backup: %v", err)
			}
			chain = append([]MapRef{ref}, chain...)
			checkRestore(t, store, disk, chain...)
			if rapid.IntRange(0, 3).Draw(t, "synthetic") == 0 {
				chain = []MapRef{synthetic(t, store, chain)}
				checkRestore(t, store, disk, chain...)
			}
			checkParts(t, store, disk, chain)
			states = append(states, recorded{slices.Clone(disk), chain})
			other := states[rapid.IntRange(0, len(states)-1).Draw(t, "other")]
			checkDiff(t, store, states[len(states)-1], other)
			checkDiff(t, store, other, states[len(states)-1])
			for _, r := range chain {
				if err := VerifyMap(ctx, store, r, true); err != nil {
					t.Fatalf("verify: %v", err)
				}
			}
		}
		for _, key := range keys(t, store, "") {
			if err := VerifyObject(ctx, store, key, -1, true); err != nil {
				t.Fatalf("verify: %v", err)
			}
		}
	})
}

// recorded is a state of a disk and the maps of its replay.
type recorded struct {
	disk  []byte
	chain []MapRef
}

// checkDiff looks whether every byte that differs is told, and none is of a state
// and itself.
func checkDiff(t *rapid.T, store objstore.Store, newer, older recorded) {
	runs, err := Diff(context.Background(), openAll(t, store, newer.chain), openAll(t, store, older.chain), 0, int64(len(newer.disk))).Collect()
	if err != nil {
		t.Fatalf("diff: %v", err)
	}
	if slices.Equal(newer.chain, older.chain) && len(runs) > 0 {
		t.Fatalf("a state differs from itself: %v", runs)
	}
	told := make([]bool, len(newer.disk))
	for i, r := range runs {
		if r.Len() <= 0 || r.End > int64(len(told)) || i > 0 && r.Start <= runs[i-1].End {
			t.Fatalf("diff: runs %v in a disk of %d", runs, len(told))
		}
		for at := r.Start; at < r.End; at++ {
			told[at] = true
		}
	}
	for i, b := range newer.disk {
		if !told[i] && (i >= len(older.disk) || older.disk[i] != b) {
			t.Fatalf("the difference at %d is not told", i)
		}
	}
}

func openAll(t fatal, store objstore.Store, refs []MapRef) []*Map {
	t.Helper()
	var maps []*Map
	for _, r := range refs {
		m, err := OpenMap(context.Background(), store, r, 0)
		maps = append(maps, must(t, m, err))
	}
	return maps
}

func synthetic(t fatal, store objstore.Store, refs []MapRef) MapRef {
	t.Helper()
	ctx := context.Background()
	maps := openAll(t, store, refs)
	ref, err := WriteMap(ctx, store, MapOptions{Disk: "vda", Size: maps[0].Size(), Full: true}, Replay(ctx, maps, 0, maps[0].Size()))
	return must(t, ref, err)
}

// checkParts replays a random part and compares it with the disk.
func checkParts(t *rapid.T, store objstore.Store, disk []byte, chain []MapRef) {
	ctx := context.Background()
	start := rapid.Int64Range(0, int64(len(disk))).Draw(t, "start")
	end := rapid.Int64Range(start, int64(len(disk))).Draw(t, "end")
	f := NewFetcher(store, FetcherOptions{Parallel: 1})
	var buf []byte
	next := start
	for e, err := range Replay(ctx, openAll(t, store, chain), start, end) {
		if err != nil {
			t.Fatalf("replay: %v", err)
		}
		if e.Offset != next {
			t.Fatalf("gap: %+v after %d", e, next)
		}
		next = e.End()
		if e.Zero {
			if !zero.Is(disk[e.Offset:e.End()]) {
				t.Fatalf("zeros in place of data at %d", e.Offset)
			}
			continue
		}
		if buf, err = f.Chunk(ctx, e, buf); err != nil {
			t.Fatalf("chunk: %v", err)
		}
		if !bytes.Equal(buf[e.ChunkOffset:][:e.Length], disk[e.Offset:e.End()]) {
			t.Fatalf("wrong data at %d", e.Offset)
		}
	}
	if next != end {
		t.Fatalf("replay ends at %d instead of %d", next, end)
	}
}

// TestSamePacks: the same input gives the same objects, whatever the workers.
func TestSamePacks(t *testing.T) {
	t.Parallel()
	disk := append(random(1, 3*GridSize), text(1, 9*GridSize)...)
	disk = append(disk, disk[:3*GridSize]...)
	var want []string
	for i := range 6 {
		store := objstore.NewMem()
		o := WriterOptions{Workers: 1 + i%4, PackSize: 2 << 20}
		if _, _, err := tryBackup(t.Context(), store, o, disk, true, span{0, int64(len(disk))}); err != nil {
			t.Fatal(err)
		}
		got := append(keys(t, store, PackPrefix), keys(t, store, MapPrefix)...)
		if i == 0 {
			want = got
		}
		if len(got) < 4 || !slices.Equal(got, want) {
			t.Errorf("run %d: other objects than before", i)
		}
	}
}

// TestPlainTools: packs, maps and indexes are files for zstd and sha256sum.
func TestPlainTools(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	store := must2(local.Create(dir, local.Options{}))(t)
	disk := append(random(1, 2*GridSize+512), text(1, 3*GridSize)...)
	for _, level := range []Level{LevelFastest, LevelDefault, LevelBetter, LevelBest, LevelNone} {
		disk[0]++
		if _, _, err := tryBackup(t.Context(), store, WriterOptions{Level: level}, disk, true, span{0, int64(len(disk))}); err != nil {
			t.Fatal(err)
		}
	}
	all := keys(t, store, "")
	packs := keys(t, store, PackPrefix)
	if len(packs) < 5 || len(all) < 15 {
		t.Fatalf("too few objects: %q", all)
	}
	for _, key := range all {
		path := filepath.Join(dir, key)
		if out, err := exec.Command("zstd", "-t", path).CombinedOutput(); err != nil {
			t.Errorf("zstd -t %s: %v: %s", key, err, out)
		}
		data := must2(os.ReadFile(path))(t)
		if _, name, ok := ParseKey(key); !ok || Sum(data) != name {
			t.Errorf("%s: its name is not its hash", key)
		}
	}
	out := must2(exec.Command("zstd", "-dc", filepath.Join(dir, packs[0])).Output())(t)
	_, name, _ := ParseKey(packs[0])
	info := must2(store.Stat(t.Context(), packs[0]))(t)
	chunks := must2(ReadPackTable(t.Context(), store, Ref{Name: name, Length: info.Size}))(t)
	for i, c := range chunks {
		if Sum(out[:c.Length]) != c.Chunk {
			t.Fatalf("chunk %d is not what zstd -dc gives", i)
		}
		out = out[c.Length:]
	}
	if len(out) != 0 || len(chunks) == 0 {
		t.Errorf("zstd -dc gives %d bytes more than the table says", len(out))
	}
}

func must2[T any](v T, err error) func(t fatal) T {
	return func(t fatal) T {
		t.Helper()
		return must(t, v, err)
	}
}

// TestSpooledMap: a map too large for memory, and one with many packs.
func TestSpooledMap(t *testing.T) {
	t.Parallel()
	store := objstore.NewMem()
	dir := t.TempDir()
	const n, packs = 120_000, 9000
	var refs [packs]Ref
	for i := range refs {
		refs[i] = Ref{Name: Sum(fmt.Appendf(nil, "pack %d", i)), Length: 5000}
		put(t, store, PackKey(refs[i].Name), make([]byte, 5000))
	}
	want := func(i int) Entry {
		return Entry{Offset: int64(i) * 4096, Length: 2048, Pack: refs[i%packs], FrameOffset: int64(i % 100), FrameLength: 100, Chunk: Sum(fmt.Append(nil, i))}
	}
	o := MapOptions{Disk: "vda", Size: n * 4096, TempDir: dir}
	ref, err := WriteMap(t.Context(), store, o, func(yield func(Entry, error) bool) {
		for i := range n {
			if !yield(want(i), nil) {
				return
			}
		}
	})
	must(t, ref, err)
	if ref.Length < 2*spool.Memory {
		t.Fatalf("the map has only %d bytes", ref.Length)
	}
	m := must2(OpenMap(t.Context(), store, ref, 0))(t)
	i := 0
	for e, err := range m.Entries(t.Context(), 0, m.Size()) {
		if err != nil || e != want(i) {
			t.Fatalf("entry %d: %+v, %v", i, e, err)
		}
		i++
	}
	if i != n || len(m.Packs()) != packs {
		t.Errorf("%d entries, %d packs", i, len(m.Packs()))
	}
	for e, err := range m.Entries(t.Context(), 4096*77_777+100, 4096*77_777+200) {
		w := want(77_777)
		w.Offset, w.Length, w.ChunkOffset = w.Offset+100, 100, 100
		if err != nil || e != w {
			t.Fatalf("part: %+v, %v", e, err)
		}
		i++
	}
	if i != n+1 {
		t.Errorf("%d entries in a part", i-n)
	}
	if left := must2(os.ReadDir(dir))(t); len(left) != 0 {
		t.Errorf("left in the folder for temporary files: %v", left)
	}
}

func bitmapRef(t *testing.T, w *Writer, h bitmapstore.Header, r bitmapstore.Runs) Ref {
	t.Helper()
	ref, _, err := w.PutBitmap(t.Context(), h, r)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestBitmap(t *testing.T) {
	t.Parallel()
	store := objstore.NewMem()
	w := must2(NewWriter(t.Context(), store, WriterOptions{}))(t)
	defer w.Abort()
	h := bitmapstore.Header{Name: "cp1.0011223344556677", Granularity: 65536, Size: 1 << 30}
	runs := bitmapstore.Of(bitmapstore.Run{Start: 65536, End: 131072})
	ref := bitmapRef(t, w, h, runs)
	data := get(t, store, BitmapKey(ref.Name))
	if int64(len(data)) != ref.Length || Sum(data) != ref.Name {
		t.Error("the reference is not that of the object")
	}
	again := bitmapRef(t, w, h, runs)
	if again != ref {
		t.Error("the same bitmap has another name")
	}
}

// Who goes over a stored bitmap may ask the store for another one meanwhile: a store that is
// asked one thing at a time would have it wait for ever, if the first was still being read.
func TestBitmapHoldsNoRequest(t *testing.T) {
	t.Parallel()
	store := objstore.NewMem()
	w := must2(NewWriter(t.Context(), store, WriterOptions{}))(t)
	defer w.Abort()
	h := bitmapstore.Header{Name: "cp1", Granularity: 65536, Size: 1 << 30}
	var runs []bitmapstore.Run
	for at := int64(0); at < h.Size; at += 2 * h.Granularity {
		runs = append(runs, bitmapstore.Run{Start: at, End: at + h.Granularity})
	}
	ref := bitmapRef(t, w, h, bitmapstore.Of(runs...))
	h.DirtyBytes = h.Size / 2
	one := &oneBody{Store: store}
	opened := func() bitmapstore.Runs { return must2(OpenBitmap(t.Context(), one, ref, h))(t) }
	if same, err := bitmapstore.Equal(opened(), opened()); err != nil || !same {
		t.Errorf("two stored bitmaps beside each other: %v, %v", same, err)
	}
}

// oneBody is a store that has nothing else read while a body is open.
type oneBody struct {
	objstore.Store
	open bool
}

func (o *oneBody) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if o.open {
		return nil, errors.New("asked while another body is open")
	}
	r, err := o.Store.Get(ctx, key, offset, length)
	if err != nil {
		return nil, err
	}
	o.open = true
	return &bodyOfOne{r, o}, nil
}

type bodyOfOne struct {
	io.ReadCloser
	of *oneBody
}

func (b *bodyOfOne) Close() error {
	b.of.open = false
	return b.ReadCloser.Close()
}
