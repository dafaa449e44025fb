// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive/known"
	"github.com/imgbackup/imgbackup/objstore"
)

// crowd adds indexes of n chunks, newer than all others, of packs that are not there.
func crowd(t *testing.T, store objstore.Store, n int) {
	t.Helper()
	w := must2(NewIndexWriter(store, 1<<40, t.TempDir(), Indexing{Folder: "crowd"}))(t)
	defer w.Close()
	chunks := make([]PackChunk, 4096)
	for i := 0; i < n; i += len(chunks) {
		for j := range chunks {
			sum := Sum(binary.BigEndian.AppendUint64(nil, uint64(i+j)))
			chunks[j] = PackChunk{FrameOffset: int64(j) * 100, FrameLength: 100, Length: minDedup, Chunk: sum}
		}
		pack := Ref{Name: Sum(binary.BigEndian.AppendUint64([]byte("pack"), uint64(i))), Length: 1 << 20}
		if err := w.Add(t.Context(), pack, chunks); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestOldChunksAreKnown: a chunk that is older than all that memory holds is found where
// this machine keeps a table; else it is stored anew, and that is said.
func TestOldChunksAreKnown(t *testing.T) {
	t.Parallel()
	mem := objstore.NewMem()
	disk := random(1, 20*GridSize)
	fullBackup(t, mem, disk)
	crowd(t, mem, dedupLoad+100_000)
	run := func(store objstore.Store, folder string) Stats {
		t.Helper()
		o := WriterOptions{Known: folder, KnownLimit: 1 << 30}
		ref, stats, err := tryBackup(t.Context(), store, o, disk, true, span{0, int64(len(disk))})
		if err != nil {
			t.Fatal(err)
		}
		checkRestore(t, mem, disk, ref)
		return stats
	}
	folder := filepath.Join(t.TempDir(), "known")
	if s := run(mem, folder); s.Stored != 0 || len(s.Notes) > 0 {
		t.Errorf("with a table: %+v", s)
	}
	gets := 0
	counting := &faulty{Store: mem, fail: func(op, key string, _ int) bool {
		if op == "get" && strings.HasPrefix(key, IndexPrefix) {
			gets++
		}
		return false
	}}
	// What the table says wrong is dropped: all of it is stored, and none is damaged.
	runs := must2(filepath.Glob(filepath.Join(folder, "run-*")))(t)
	for _, path := range runs {
		shiftFrames(t, path)
	}
	s := run(counting, folder)
	if s.Stored == 0 || len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "made anew") {
		t.Errorf("with a table that is wrong: %+v", s)
	}
	if gets > 0 {
		t.Errorf("with a table that is up to date %d indexes are read", gets)
	}
	if s := run(mem, folder); s.Stored != 0 || len(s.Notes) > 0 {
		t.Errorf("with a table that was made anew: %+v", s)
	}
	// The disk's indexes are the oldest: they are what is left out.
	if s := run(mem, ""); s.Stored == 0 || len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "IMGBACKUP_CACHE") {
		t.Errorf("without a table: %+v", s)
	}
}

// shiftFrames makes a run say that each frame lies a byte further on.
func shiftFrames(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	packs, indexes := binary.LittleEndian.Uint32(data[16:]), binary.LittleEndian.Uint32(data[20:])
	records := binary.LittleEndian.Uint64(data[24:])
	at := 32 + 48*int(packs) + 40*int(indexes)
	for range records {
		data[at+12]++
		at += 20
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTableIsBusy: while another program changes the table, what it has is used, and the
// rest is read into memory.
func TestTableIsBusy(t *testing.T) {
	t.Parallel()
	store := objstore.NewMem()
	disk := random(1, 5*GridSize)
	fullBackup(t, store, disk)
	crowd(t, store, 30000) // enough to be worth a table
	folder := filepath.Join(t.TempDir(), "known")
	busy := must2(known.Open(folder, 1<<30))(t)
	defer busy.Close()
	u, _, err := busy.Update(nil)
	if err != nil || u == nil {
		t.Fatal(u, err)
	}
	defer u.Close()
	o := WriterOptions{Known: folder, KnownLimit: 1 << 30}
	_, stats, err := tryBackup(t.Context(), store, o, disk, true, span{0, int64(len(disk))})
	if err != nil || stats.Stored != 0 || len(stats.Notes) > 0 {
		t.Errorf("%+v, %v", stats, err)
	}
}

// TestFewIndexesAreRead: of a fleet's many small indexes a session reads all of its own host, once,
// and a few of the others, the largest first, however many there are.
func TestFewIndexesAreRead(t *testing.T) {
	t.Parallel()
	const own, others = 30, 300
	mem := objstore.NewMem()
	list := func(folder string, first, chunks int) {
		w := must2(NewIndexWriter(mem, 1, t.TempDir(), Indexing{Folder: folder}))(t)
		defer w.Close()
		var all []PackChunk
		for i := range chunks {
			sum := Sum(binary.BigEndian.AppendUint64(nil, uint64(first+i)))
			all = append(all, PackChunk{FrameOffset: int64(i) * 100, FrameLength: 100, Length: minDedup, Chunk: sum})
		}
		pack := Ref{Name: Sum(binary.BigEndian.AppendUint64([]byte("pack"), uint64(first))), Length: 1 << 20}
		if err := w.Add(t.Context(), pack, all); err != nil {
			t.Fatal(err)
		}
		if err := w.Finish(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range own {
		list("me", i*1000, 1)
	}
	for i := range others {
		list("host", (own+i)*1000, 1+i%7)
	}
	list("host", 1<<30, 2000)
	folder := filepath.Join(t.TempDir(), "known")
	disk := random(1, GridSize)
	for session := range 3 {
		gets, sizes := 0, int64(0)
		counting := &faulty{Store: mem, fail: func(op, key string, _ int) bool {
			if op == "get" && strings.HasPrefix(key, IndexPrefix) {
				gets++
				sizes += must2(mem.Stat(t.Context(), key))(t).Size
			}
			return false
		}}
		o := WriterOptions{Known: folder, KnownLimit: 1 << 30, Indexing: Indexing{Folder: "me"}}
		if _, _, err := tryBackup(t.Context(), counting, o, disk, true, span{0, int64(len(disk))}); err != nil {
			t.Fatal(err)
		}
		// The first has all of its host to learn, and the large one; the second what the first has listed.
		if want := []int{own + 1 + smallOthers, 1 + smallOthers, smallOthers}[session]; gets > want || gets < smallOthers {
			t.Errorf("session %d: %d indexes were read, want %d", session, gets, want)
		}
		if session == 0 && sizes < smallIndex {
			t.Errorf("the large index was not read: %d bytes", sizes)
		}
	}
}
