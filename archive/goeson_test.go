// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// killedBackup leaves what a session leaves that ends before its Finish, once so many
// bytes of the disk have been taken.
func killedBackup(t *testing.T, store objstore.Store, o WriterOptions, disk []byte, taken int64) {
	t.Helper()
	w := must2(NewWriter(t.Context(), store, o))(t)
	m := w.NewMap("vda", int64(len(disk)), true)
	if err := addSpans(t.Context(), m, disk, span{0, taken}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.end() // so that it is known how far it came; nothing more is stored
	w.Abort()
}

// onPacks counts the operations on packs.
func onPacks(store objstore.Store) (objstore.Store, map[string]int) {
	n := make(map[string]int)
	return &faulty{Store: store, fail: func(op, key string, _ int) bool {
		if strings.HasPrefix(key, PackPrefix) {
			n[op]++
		}
		return false
	}}, n
}

// TestKilledSessionGoesOn: what a killed session has listed is not stored again, also
// where the disk has changed; and where the store vouches for its packs not all of it is
// read back.
func TestKilledSessionGoesOn(t *testing.T) {
	t.Parallel()
	const cells = 60
	o := WriterOptions{PackSize: 4 << 20, IndexEvery: 1, Workers: 2}
	for _, vouched := range []bool{false, true} {
		t.Run(fmt.Sprintf("vouched=%v", vouched), func(t *testing.T) {
			t.Parallel()
			mem := objstore.NewMem()
			disk := random(1, cells*GridSize)
			killedBackup(t, mem, o, disk, 54*GridSize)
			copy(disk[7*GridSize+5:], "changed meanwhile")
			store, n := onPacks(mem)
			o := o
			o.Vouched = vouched
			ref, stats, err := tryBackup(t.Context(), store, o, disk, true, span{0, int64(len(disk))})
			if err != nil {
				t.Fatal(err)
			}
			if again := stats.Stored / GridSize; again < 7 || again > 8 || len(stats.Notes) > 0 {
				t.Errorf("%d cells are stored, of 6 that are new and 1 that has changed; notes: %q", again, stats.Notes)
			}
			// 18 packs of 3 cells: of each one frame, and the table.
			if gets := n["get"]; vouched && gets > 18*2 || !vouched && gets != 53 {
				t.Errorf("%d reads of packs", gets)
			}
			checkRestore(t, mem, disk, ref)
		})
	}
}

// TestVouchedIsSampled: what the store vouches for counts only if it still gives it, and
// only where the pack's own table has it.
func TestVouchedIsSampled(t *testing.T) {
	t.Parallel()
	disk := random(3, 12*GridSize)
	o := WriterOptions{PackSize: 16 << 20, Vouched: true, Workers: 1}
	setup := func(t *testing.T) (store objstore.Store, pack string, content []byte) {
		store = objstore.NewMem()
		fullBackup(t, store, disk)
		for info, err := range store.List(t.Context(), PackPrefix) {
			if err != nil || pack != "" {
				t.Fatal("want one pack", err)
			}
			pack = info.Key
		}
		return store, pack, must(t, must2(objstore.ReadAll(t.Context(), store, pack, 1<<30))(t), nil)
	}
	again := func(t *testing.T, store objstore.Store) (Stats, MapRef) {
		ref, stats, err := tryBackup(t.Context(), store, o, disk, true, span{0, int64(len(disk))})
		if err != nil {
			t.Fatal(err)
		}
		return stats, ref
	}
	t.Run("rot", func(t *testing.T) {
		t.Parallel()
		store, pack, content := setup(t)
		for i := range content[:len(content)-4096] {
			content[i] ^= 1
		}
		// It still says what it was told when it was stored.
		lying := &vouching{Store: store, sums: map[string]Digest{pack: mustName(t, pack)}}
		put(t, store, pack, content)
		if stats, ref := again(t, lying); stats.Stored < int64(len(disk)) || len(stats.Notes) == 0 {
			t.Errorf("%+v", stats)
		} else {
			checkRestore(t, store, disk, ref)
		}
	})
	t.Run("another sum", func(t *testing.T) {
		t.Parallel()
		store, pack, _ := setup(t)
		counting, n := onPacks(&vouching{Store: store, sums: map[string]Digest{pack: {1}}})
		if stats, _ := again(t, counting); stats.Stored != 0 || n["get"] != 12 {
			t.Errorf("%d reads of packs, %+v", n["get"], stats)
		}
	})
	t.Run("an index that lies", func(t *testing.T) {
		t.Parallel()
		store, pack, _ := setup(t)
		name := mustName(t, pack)
		lines := must2(ReadPackTable(t.Context(), store, Ref{Name: name, Length: must2(store.Stat(t.Context(), pack))(t).Size}))(t)
		for i := range lines[:11] {
			lines[i].FrameOffset, lines[i].FrameLength = lines[i+1].FrameOffset, lines[i+1].FrameLength
		}
		replaceIndex(t, store, Ref{Name: name, Length: must2(store.Stat(t.Context(), pack))(t).Size}, lines)
		stats, ref := again(t, store)
		if stats.Stored < 11*GridSize || stats.Stored > 12*GridSize+4096 {
			t.Errorf("what the index lies about is believed: %+v", stats)
		}
		checkRestore(t, store, disk, ref)
	})
}

func mustName(t *testing.T, key string) Digest {
	t.Helper()
	_, name, ok := ParseKey(key)
	if !ok {
		t.Fatalf("%s is no key", key)
	}
	return name
}

// replaceIndex puts an index of one pack in the place of all.
func replaceIndex(t *testing.T, store objstore.Store, pack Ref, lines []PackChunk) {
	t.Helper()
	for info, err := range store.List(t.Context(), IndexPrefix) {
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Delete(t.Context(), info.Key); err != nil {
			t.Fatal(err)
		}
	}
	b := indexBuilder{tempDir: t.TempDir(), every: 1, enc: must2(newEncoder(LevelFastest, false))(t), now: time.Now}
	due := must2(b.add(pack, lines))(t)
	data := make([]byte, due[0].Size())
	_, _ = due[0].ReadAt(data, 0)
	put(t, store, IndexKey("host", sha256.Sum256(data)), data)
}

// vouching is a store that says what it likes of the bytes of some objects.
type vouching struct {
	objstore.Store
	sums map[string]Digest
}

func (v *vouching) Stat(ctx context.Context, key string) (objstore.Info, error) {
	info, err := v.Store.Stat(ctx, key)
	if sum, ok := v.sums[key]; ok {
		info.SHA256 = sum
	}
	return info, err
}

// TestIndexesDuringASession: by bytes, by the part of all, by time and by chunks.
func TestIndexesDuringASession(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	b := indexBuilder{tempDir: t.TempDir(), every: 100, enc: must2(newEncoder(LevelFastest, false))(t), now: func() time.Time { return now }}
	add := func(length int64, chunks int, want int) {
		t.Helper()
		lines := make([]PackChunk, chunks)
		for i := range lines {
			lines[i] = PackChunk{FrameLength: 1, Length: 1}
		}
		due, err := b.add(Ref{Length: length}, lines)
		if err != nil || len(due) != want {
			t.Errorf("pack of %d bytes: %d indexes are due, want %d; %v", length, len(due), want, err)
		}
	}
	add(60, 1, 0)
	add(60, 1, 1) // 120 bytes
	add(60, 1, 0)
	now = now.Add(indexTime)
	add(1, 1, 1)
	add(64*1000, 1, 1)
	add(900, 1, 0) // less than a 64th
	add(200, 1, 1)
	b.every = 1 << 30
	for range 4 {
		add(1, maxPackChunks, 0)
	}
	add(1, 1, 1)
	rest := must2(b.rest())(t)
	if rest == nil {
		t.Fatal("the last pack is in no index")
	}
	if rest := must2(b.rest())(t); rest != nil {
		t.Error("a pack is listed twice")
	}
}

// ownSeals are the signatures of one host.
type ownSeals struct{ name string }

func (s ownSeals) SignIndex(folder string, sum Digest) ([]byte, error) {
	return []byte(s.name + " " + folder + " " + sum.String()), nil
}

func (s ownSeals) CheckIndex(folder string, sum Digest, signature []byte) error {
	if string(signature) != s.name+" "+folder+" "+sum.String() {
		return errors.New("another has signed it")
	}
	return nil
}

// TestHostGoesOn: a session that can read nothing of what is stored goes on where one of the same
// host was killed, by what that has signed. What others say does not count; nor what is
// not there any more as it was.
func TestHostGoesOn(t *testing.T) {
	t.Parallel()
	g := must(t, must2(crypt.Generate(1, false))(t), nil)
	all := must(t, must2(crypt.New(g))(t), nil)
	g.Data.Identity = nil
	host := must(t, must2(crypt.New(g))(t), nil)
	own := Indexing{Folder: "h", Seals: ownSeals{"h"}}
	const cells = 12
	for _, c := range []struct {
		name     string
		killed   Indexing
		harm     bool // one group of 10 is another than it was
		from, to int64
		notes    bool
	}{
		{"own", own, false, 2, 3, false},
		{"rot", own, true, 3, 4, true},
		{"another folder", Indexing{Folder: "x", Seals: ownSeals{"h"}}, false, cells, cells, false},
		{"another's signature", Indexing{Folder: "h", Seals: ownSeals{"x"}}, false, cells, cells, true},
		{"unsigned", Indexing{Folder: "h"}, false, cells, cells, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			mem := objstore.NewMem()
			store := Encrypted(mem, host)
			disk := random(1, cells*GridSize)
			o := WriterOptions{PackSize: 2 << 20, IndexEvery: 1, Workers: 2, Indexing: c.killed}
			killedBackup(t, store, o, disk, 10*GridSize)
			if c.harm {
				harmOnePack(t, mem)
			}
			o.Indexing = own
			ref, stats, err := tryBackup(t.Context(), store, o, disk, true, span{0, int64(len(disk))})
			if err != nil {
				t.Fatal(err)
			}
			if again := stats.Stored / GridSize; again < c.from || again > c.to || (len(stats.Notes) > 0) != c.notes {
				t.Errorf("%d cells are stored, notes: %q", again, stats.Notes)
			}
			checkRestore(t, Encrypted(mem, all), disk, ref)
		})
	}
}

// harmOnePack changes a byte in the first group of a pack.
func harmOnePack(t *testing.T, store objstore.Store) {
	t.Helper()
	for info, err := range store.List(t.Context(), PackPrefix) {
		if err != nil {
			t.Fatal(err)
		}
		data := must2(objstore.ReadAll(t.Context(), store, info.Key, 1<<30))(t)
		data[1000] ^= 1
		put(t, store, info.Key, data)
		return
	}
	t.Fatal("there is no pack")
}
