// SPDX-License-Identifier: Apache-2.0

package known

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// digest is the SHA-256 of a number.
func digest(kind string, n int) Digest {
	return sha256.Sum256(binary.BigEndian.AppendUint64([]byte(kind), uint64(n)))
}

// index is what an index says: its chunks are those from first on, a few in each pack.
type index struct {
	name         Digest
	first, count int
}

const perPack = 7

func newIndex(n, first, count int) index { return index{digest("index", n), first, count} }

// place is where the index says that its chunk i is.
func (x index) place(i int) Place {
	pack := i / perPack
	return Place{
		Pack:   Pack{Name: sha256.Sum256(append(x.name[:], byte(pack), byte(pack>>8), byte(pack>>16))), Length: int64(1000 + pack)},
		Offset: uint32(i%perPack) * 100, Length: uint32(i%100) + 1,
	}
}

func (x index) add(u *Update) error {
	return u.Add(x.name, func(add func(Pack, []Frame)) error {
		for i := 0; i < x.count; i += perPack {
			var frames []Frame
			for j := i; j < min(i+perPack, x.count); j++ {
				p := x.place(j)
				frames = append(frames, Frame{Chunk: digest("chunk", x.first+j), Offset: p.Offset, Length: p.Length})
			}
			add(x.place(i).Pack, frames)
		}
		return nil
	})
}

func names(list []index) (names []Digest) {
	for _, x := range list {
		names = append(names, x.name)
	}
	return names
}

func open(t testing.TB, dir string) *Table {
	t.Helper()
	table, err := Open(dir, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(table.Close)
	return table
}

// update makes the table that of these indexes.
func update(t testing.TB, table *Table, list []index) {
	t.Helper()
	u, lacking, err := table.Update(names(list))
	if err != nil || u == nil {
		t.Fatalf("update: %v, %v", u, err)
	}
	defer u.Close()
	for _, x := range list {
		if slices.Contains(lacking, x.name) {
			if err := x.add(u); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := u.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if lacking := table.Listed(names(list)); len(lacking) > 0 {
		t.Fatalf("%d indexes are lacking after the update", len(lacking))
	}
}

// verify demands that exactly what the indexes say is found.
func verify(t testing.TB, table *Table, list []index, chunks int, step int) {
	t.Helper()
	want := make(map[Place]int)
	has := make(map[int]bool)
	for _, x := range list {
		for i := range x.count {
			want[x.place(i)] = x.first + i
			has[x.first+i] = true
		}
	}
	for c := 0; c < chunks; c += step {
		d := digest("chunk", c)
		n := 0
		found := table.Find(&d, func(p Place) bool {
			n++
			if got, ok := want[p]; !ok || got != c {
				t.Fatalf("chunk %d is said to be at %+v", c, p)
			}
			return true
		})
		if found != has[c] || found != (n == 1) {
			t.Fatalf("chunk %d: found %v, in %d places, want %v", c, found, n, has[c])
		}
	}
}

// A table says what the listed indexes say, whatever was added and removed before.
func TestTable(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 0))
			dir := filepath.Join(t.TempDir(), "table")
			var list []index
			chunks, most := 0, 0
			for round := range 25 {
				for range random.IntN(3) {
					count := 1 + random.IntN(1<<random.IntN(13))
					first := chunks
					if random.IntN(4) == 0 {
						first = random.IntN(chunks + 1) // some that are known
					}
					list = append(list, newIndex(int(seed)<<20+len(list)<<8+round, first, count))
					chunks = max(chunks, first+count)
				}
				for random.IntN(4) == 0 && len(list) > 0 {
					list = slices.Delete(list, 0, 1+random.IntN(len(list)))
				}
				table := open(t, dir) // each time another program
				update(t, table, list)
				verify(t, table, list, chunks+50, 1+chunks/300)
				most = max(most, len(table.runs))
				again := open(t, dir)
				if lacking := again.Listed(names(list)); len(lacking) > 0 {
					t.Fatalf("%d indexes are lacking for the next program", len(lacking))
				}
				verify(t, again, list, chunks+50, 1+chunks/50)
				again.Close()
				table.Close()
			}
			if most > 9 {
				t.Errorf("%d runs", most)
			}
			files, err := os.ReadDir(dir)
			if err != nil || len(files) > most+2 {
				t.Errorf("%d files are left, of at most %d runs: %v", len(files), most, err)
			}
		})
	}
}

// Many records: more than a block, and than are kept in memory; each batch is a run, and
// all are merged.
func TestLarge(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var list []index
	const each = 1 << 16
	for i := range 12 {
		list = append(list, newIndex(i, i*each, each))
	}
	table := open(t, dir)
	update(t, table, list)
	if table.Len() != 12*each || len(table.runs) > 2 || table.runs[0].all != nil {
		t.Fatalf("%d records in %d runs", table.Len(), len(table.runs))
	}
	verify(t, table, list, 12*each+1000, 101)
	update(t, table, list[3:]) // dead ones are less than half
	verify(t, table, list[3:], 12*each, 1001)
	update(t, table, list[7:])
	if table.Len() != 5*each {
		t.Errorf("%d records, of %d that are listed", table.Len(), 5*each)
	}
	verify(t, table, list[7:], 12*each, 1001)
}

// What is damaged is nothing, or a promise that was made up; never a crash, and the next
// update puts it right.
func TestDamagedTable(t *testing.T) {
	t.Parallel()
	list := []index{newIndex(1, 0, 5000), newIndex(2, 5000, 20)}
	for seed := range uint64(80) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 1))
			dir := t.TempDir()
			table := open(t, dir)
			update(t, table, list)
			table.Close()
			damageFile(t, random, dir)
			damaged := open(t, dir)
			damaged.Listed(names(list))
			for c := range 5020 {
				d := digest("chunk", c)
				damaged.Find(&d, func(Place) bool { return false })
			}
			damaged.Drop() // as who finds it out does
			if d := digest("chunk", 1); damaged.Find(&d, func(Place) bool { return true }) {
				t.Error("it says something though it was given up")
			}
			damaged.Close()
			next := open(t, dir)
			if lacking := next.Listed(names(list)); len(lacking) != 2 {
				t.Fatalf("%d indexes are lacking of what was given up", len(lacking))
			}
			update(t, next, list)
			verify(t, next, list, 5040, 7)
		})
	}
}

// damageFile changes a file of a table.
func damageFile(t *testing.T, random *rand.Rand, dir string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, files[random.IntN(len(files))].Name())
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	switch n := len(data); {
	case random.IntN(6) == 0:
		err = os.Remove(path)
	case n == 0, random.IntN(6) == 0:
		data = append(data, "more"...)
	case random.IntN(6) == 0:
		data = data[:random.IntN(n)]
	case random.IntN(6) == 0:
		clear(data[random.IntN(n):])
	default:
		at := random.IntN(n)
		if random.IntN(2) == 0 {
			at = random.IntN(min(n, headLen))
		}
		data[at] ^= 1 << random.IntN(8)
	}
	if err == nil {
		err = os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A flipped bit in what a pack is called is seen.
func TestPackIsProven(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	list := []index{newIndex(1, 0, 100)}
	table := open(t, dir)
	update(t, table, list)
	path := filepath.Join(dir, table.runs[0].name)
	table.Close()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[headLen+5] ^= 4
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	table = open(t, dir)
	table.Listed(names(list))
	d := digest("chunk", 3) // in the first pack
	if table.Find(&d, func(Place) bool { return true }) || !table.Dropped() {
		t.Error("a pack is believed whose name was damaged")
	}
}

// An index that can't be read is not in the table, and one program at a time changes it.
func TestUpdates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	list := []index{newIndex(1, 0, 100), newIndex(2, 100, 100)}
	table, other := open(t, dir), open(t, dir)
	u, lacking, err := table.Update(names(list))
	if err != nil || len(lacking) != 2 {
		t.Fatal(lacking, err)
	}
	if second, _, err := other.Update(names(list)); second != nil || err != nil {
		t.Fatalf("two update at once: %v", err)
	}
	bad := errors.New("unreadable")
	err = u.Add(list[0].name, func(add func(Pack, []Frame)) error {
		add(Pack{}, []Frame{{}, {}})
		return bad
	})
	if !errors.Is(err, bad) {
		t.Fatal(err)
	}
	if err := errors.Join(list[1].add(u), u.Commit(t.Context())); err != nil {
		t.Fatal(err)
	}
	u.Close()
	if lacking := table.Listed(names(list)); len(lacking) != 1 || lacking[0] != list[0].name {
		t.Errorf("lacking: %x", lacking)
	}
	verify(t, table, list[1:], 200, 1)
	// What was not committed is given up, and leaves nothing.
	u, _, err = other.Update(names(list))
	if err != nil || u == nil {
		t.Fatal(u, err)
	}
	if err := errors.Join(list[0].add(u), u.flush()); err != nil {
		t.Fatal(err)
	}
	u.Close()
	update(t, open(t, dir), list)
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 3 {
		t.Errorf("%d files: %v", len(files), err)
	}
}

// A table stays within its limit.
func TestFull(t *testing.T) {
	t.Parallel()
	table, err := Open(t.TempDir(), 100<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	u, _, err := table.Update(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for i := range 100 {
		if err = newIndex(i, i*1000, 1000).add(u); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrFull) {
		t.Fatalf("a table of %d records at most is not full: %v", 100<<10/20, err)
	}
	if err := u.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := bytesOf(table.runs); n > 200<<10 {
		t.Errorf("it has %d bytes", n)
	}
}

// Several programs open a table that others update again and again.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var list []index
	for i := range 30 {
		list = append(list, newIndex(i, i*500, 500))
	}
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for n := 1; n <= len(list); n++ {
				table, err := Open(dir, 1<<30)
				if err != nil {
					t.Error(err)
					return
				}
				u, lacking, err := table.Update(names(list[:n]))
				if err != nil {
					t.Error(err)
				}
				if u != nil {
					for _, x := range list[:n] {
						if slices.Contains(lacking, x.name) {
							err = errors.Join(err, x.add(u))
						}
					}
					if err := errors.Join(err, u.Commit(t.Context())); err != nil {
						t.Error(err)
					}
					u.Close()
				}
				table.Listed(names(list[:n]))
				d := digest("chunk", 250*w)
				table.Find(&d, func(p Place) bool {
					if p != list[0].place(250*w) && 250*w < 500 {
						t.Errorf("program %d: %+v", w, p)
					}
					return true
				})
				table.Close()
			}
		})
	}
	wg.Wait()
	table := open(t, dir)
	update(t, table, list)
	verify(t, table, list, 30*500, 11)
}

// What a session has learnt is found, whatever is merged.
func TestSpill(t *testing.T) {
	t.Parallel()
	s := Spill{Dir: t.TempDir()}
	defer s.Close()
	n := 0
	for round := range 20 {
		var chunks []Learnt
		for range 100 * (1 + round%7) {
			chunks = append(chunks, Learnt{digest("chunk", n), uint32(n), uint32(2 * n), uint32(3 * n)})
			n++
		}
		slices.SortFunc(chunks, func(a, b Learnt) int { return bytes.Compare(a.Chunk[:], b.Chunk[:]) })
		if err := s.Add(t.Context(), chunks); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.runs) > 6 {
		t.Errorf("%d runs", len(s.runs))
	}
	for i := range n + 100 {
		d := digest("chunk", i)
		l, ok, err := s.Find(&d)
		if err != nil || ok != (i < n) || ok && (l != Learnt{d, uint32(i), uint32(2 * i), uint32(3 * i)}) {
			t.Fatalf("chunk %d of %d: %+v, %v, %v", i, n, l, ok, err)
		}
	}
	if left, err := os.ReadDir(s.Dir); err != nil || len(left) > 0 {
		t.Errorf("files have names: %v, %v", left, err)
	}
}

// FuzzRun: no file makes a run that can't be read without a crash or much memory.
func FuzzRun(f *testing.F) {
	dir := f.TempDir()
	table := open(f, dir)
	update(f, table, []index{newIndex(1, 0, 50), newIndex(2, 50, 9)})
	data, err := os.ReadFile(filepath.Join(dir, table.runs[0].name))
	if err != nil || !strings.HasPrefix(string(data), runMagic) {
		f.Fatal("no seed", err)
	}
	f.Add(data)
	f.Add(data[:headLen])
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "run-x")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := openRun(path, "run-x")
		if err != nil {
			return
		}
		defer r.close()
		for i := range 20 {
			d := digest("chunk", i)
			_, _ = r.find(&d, func(pack, _, _ uint32) bool { r.pack(pack); return true })
		}
		out, err := os.Create(filepath.Join(t.TempDir(), "merged"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		_ = mergeRuns(t.Context(), out, []*run{r})
	})
}
