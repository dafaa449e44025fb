// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/objstore"
)

// TestDedup: data that is in the repository is referred to, not stored again.
func TestDedup(t *testing.T) {
	t.Parallel()
	store := objstore.NewMem()
	disk := append(random(1, 3*GridSize), text(1, 2*GridSize)...)
	a, _ := fullBackup(t, store, disk)
	b, stats := fullBackup(t, store, disk)
	checkRestore(t, store, disk, b)
	if stats.Stored != 0 || stats.Packs != 0 || stats.Reused != int64(len(disk)) || len(stats.Notes) != 0 {
		t.Errorf("stats of the second full: %+v", stats)
	}
	if a != b {
		t.Error("the same disk has another map")
	}
	twice := slices.Concat(disk, disk[:GridSize], random(5, GridSize), random(5, GridSize))
	c, stats := fullBackup(t, store, twice)
	checkRestore(t, store, twice, c)
	if stats.Chunks != 1 || stats.Reused != 6*GridSize {
		t.Errorf("stats of equal cells: %+v", stats)
	}
}

// TestDedupPoison: a chunk in a damaged pack is never referred to by a new backup.
func TestDedupPoison(t *testing.T) {
	t.Parallel()
	disk := append(random(1, 3*GridSize), text(1, 2*GridSize)...)
	for name, poison := range map[string]func(t *testing.T, s objstore.Store, key string){
		"flipped": func(t *testing.T, s objstore.Store, key string) { flip(t, s, key, 1000) },
		"cut":     func(t *testing.T, s objstore.Store, key string) { put(t, s, key, get(t, s, key)[:GridSize]) },
		"longer":  func(t *testing.T, s objstore.Store, key string) { put(t, s, key, append(get(t, s, key), 1)) },
		"gone":    func(t *testing.T, s objstore.Store, key string) { _ = s.Delete(t.Context(), key) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := objstore.NewMem()
			fullBackup(t, store, disk)
			poison(t, store, keys(t, store, PackPrefix)[0])
			grown := append(bytes.Clone(disk), random(9, 512)...)
			ref, stats := fullBackup(t, store, grown)
			checkRestore(t, store, grown, ref)
			if len(stats.Notes) == 0 || stats.Chunks < 2 {
				t.Errorf("stats: %+v", stats)
			}
			// The whole pack again, under the name that stands.
			index := keys(t, store, IndexPrefix)
			for _, key := range index {
				_ = store.Delete(t.Context(), key)
			}
			ref, stats = fullBackup(t, store, disk)
			checkRestore(t, store, disk, ref)
			if name != "gone" && !slices.ContainsFunc(stats.Notes, func(n string) bool { return strings.Contains(n, "replaced") }) {
				t.Errorf("notes: %q", stats.Notes)
			}
			for _, key := range keys(t, store, PackPrefix) {
				if err := VerifyObject(t.Context(), store, key, -1, true); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestDamagedIndex: a broken index, or a store that does not give it, costs space
// and leaves a note.
func TestDamagedIndex(t *testing.T) {
	t.Parallel()
	disk := random(1, 40<<10)
	store := objstore.NewMem()
	fullBackup(t, store, disk)
	key := keys(t, store, IndexPrefix)[0]
	data := get(t, store, key)
	try := func(what string, stored []byte, via objstore.Store) {
		t.Helper()
		for _, k := range keys(t, store, IndexPrefix) { // those of earlier tries
			_ = store.Delete(t.Context(), k)
		}
		put(t, store, key, stored)
		ref, stats := fullBackup(t, via, disk)
		if len(stats.Notes) == 0 || stats.Chunks != 1 {
			t.Fatalf("%s: %+v", what, stats)
		}
		checkRestore(t, store, disk, ref)
	}
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 4
		try(fmt.Sprint("bit in byte ", i), bad, store)
		if i%16 == 0 {
			try(fmt.Sprint("cut to ", i), data[:i], store)
		}
	}
	for _, op := range []string{"list", "get", "read"} {
		f := &faulty{Store: store, fail: func(o, k string, _ int) bool { return o == op && strings.HasPrefix(k, IndexPrefix) }}
		if try(op+" fails", data, f); f.hits == 0 {
			t.Errorf("%s never failed", op)
		}
	}
	f := &faulty{Store: store, fail: func(o, k string, _ int) bool { return o == "put" && strings.HasPrefix(k, IndexPrefix) }}
	if _, stats := fullBackup(t, f, random(2, 4096)); len(stats.Notes) == 0 || f.hits == 0 {
		t.Errorf("an index that can't be stored: %+v", stats)
	}
}

// TestNewestIndexFirst: of more indexes than are read, the newest count.
func TestNewestIndexFirst(t *testing.T) {
	t.Parallel()
	store := objstore.NewMem()
	var infos []objstore.Info
	for i := range 5 {
		at := time.Unix(int64(1000+(i*3)%5), 0)
		b := indexBuilder{tempDir: t.TempDir(), every: 1, enc: must2(newEncoder(LevelFastest, false))(t), now: func() time.Time { return at }}
		due, err := b.add(Ref{Length: 100 + int64(i)}, []PackChunk{{FrameLength: 1, Length: 1}})
		if err != nil || len(due) != 1 {
			t.Fatal(due, err)
		}
		key := IndexKey("host", Digest{byte(i)})
		data := make([]byte, due[0].Size())
		_, _ = due[0].ReadAt(data, 0)
		put(t, store, key, data)
		infos = append(infos, objstore.Info{Key: key, Size: int64(len(data))})
	}
	put(t, store, infos[0].Key, []byte("junk"))
	dec := must2(newDecoder())(t)
	var got []byte
	for _, info := range newestFirst(t.Context(), store, infos, dec) {
		_, name, _ := ParseKey(info.Key)
		got = append(got, name[0])
	}
	if !bytes.Equal(got, []byte{3, 1, 4, 2, 0}) {
		t.Errorf("order: %v", got)
	}
}

// TestFaultsOfTheStore: whichever operation of a backup fails, the backup fails
// with the store's error or is whole, and never hangs.
func TestFaultsOfTheStore(t *testing.T) {
	t.Parallel()
	mem := objstore.NewMem()
	disk := append(random(1, 2*GridSize), text(1, GridSize)...)
	base, _ := fullBackup(t, mem, disk)
	disk = append(disk, random(2, GridSize)...)
	failed, whole := 0, 0
	// Some are done beside one another: which one fails is said by its kind, and not by its number alone.
	var all []string
	for n := 0; n == 0 || n <= len(all); n++ {
		times := make(map[string]int)
		store := &faulty{Store: mem, fail: func(op, key string, _ int) bool {
			kind, _, _ := strings.Cut(key, "/")
			times[op+" "+kind]++
			name := fmt.Sprint(op, " ", kind, " ", times[op+" "+kind])
			if n == 0 {
				all = append(all, name)
			}
			return n > 0 && name == all[n-1]
		}}
		o := WriterOptions{Workers: 1, PackSize: 1 << 20}
		ref, stats, err := tryBackup(t.Context(), store, o, disk, true, span{0, int64(len(disk))})
		if n > 0 && store.hits == 0 {
			t.Errorf("%s was not to be done", all[n-1])
			continue
		}
		switch {
		case err == nil:
			whole += min(n, 1)
			checkRestore(t, mem, disk, ref)
			if n > 0 && len(stats.Notes) == 0 {
				t.Errorf("%s failed and left no note", all[n-1])
			}
		case n == 0:
			t.Fatal(err)
		case IsDamage(err) || !errors.Is(err, errOutage) && !strings.Contains(err.Error(), "broke off"):
			t.Fatalf("%s failed: %v", all[n-1], err)
		default:
			failed++
		}
		// Begin each time from the same repository.
		fresh := objstore.NewMem()
		ref, _ = fullBackup(t, fresh, disk[:3*GridSize])
		if ref != base {
			t.Fatal("another base")
		}
		mem = fresh
	}
	if failed < 2 || whole < 3 {
		t.Errorf("%d failed, %d whole", failed, whole)
	}
}

// TestProducerFails: the first error stops the session, and all calls return it.
func TestProducerFails(t *testing.T) {
	t.Parallel()
	bad := errors.New("unreadable")
	for _, at := range []int64{0, 1, 7, 63} {
		w := must2(NewWriter(t.Context(), objstore.NewMem(), WriterOptions{Workers: 2, PackSize: 64 << 10}))(t)
		m := w.NewMap("vda", 64*GridSize, false)
		var err error
		for i := range int64(64) {
			err = m.Add(t.Context(), i*GridSize, GridSize, func(_ context.Context, buf []byte) ([]Piece, error) {
				if i == at {
					return nil, bad
				}
				copy(buf, random(uint64(i), 4096))
				return []Piece{{Offset: i * GridSize, Length: 4096, Data: buf[:4096]}}, nil
			})
			if err != nil {
				break
			}
		}
		if _, cerr := m.Close(t.Context()); !errors.Is(cerr, bad) {
			t.Errorf("at %d: Close: %v", at, cerr)
		}
		if err != nil && !errors.Is(err, bad) {
			t.Errorf("at %d: Add: %v", at, err)
		}
		if _, _, err := w.Finish(t.Context()); !errors.Is(err, bad) {
			t.Errorf("at %d: Finish: %v", at, err)
		}
		w.Abort()
	}
}

func TestBadPieces(t *testing.T) {
	t.Parallel()
	data := random(1, 512)
	for name, pieces := range map[string][]Piece{
		"before":       {{Offset: 511, Length: 512, Data: data}},
		"after":        {{Offset: 512 + 4096, Length: 512, Data: data}},
		"too long":     {{Offset: 4096, Length: 1024, Zero: true}},
		"empty":        {{Offset: 512, Zero: true}},
		"negative":     {{Offset: 512, Length: -5, Zero: true}},
		"huge":         {{Offset: 1024, Length: 1<<63 - 1, Zero: true}},
		"overlap":      {{Offset: 512, Length: 512, Data: data}, {Offset: 1000, Length: 512, Data: data}},
		"short data":   {{Offset: 512, Length: 513, Data: data}},
		"nothing":      {{Offset: 512, Length: 512}},
		"both":         {{Offset: 512, Length: 512, Zero: true, Data: data}},
		"other reuse":  {{Offset: 512, Length: 512, Reuse: &Entry{Offset: 513, Length: 512}}},
		"broken reuse": {{Offset: 512, Length: 512, Reuse: &Entry{Offset: 512, Length: 512, FrameOffset: -1}}},
		"lost reuse":   {{Offset: 512, Length: 512, Reuse: &Entry{Offset: 512, Length: 512, FrameLength: 5}}},
	} {
		w := must2(NewWriter(t.Context(), objstore.NewMem(), WriterOptions{}))(t)
		m := w.NewMap("vda", GridSize, false)
		if err := m.Add(t.Context(), 512, 4096, func(context.Context, []byte) ([]Piece, error) { return pieces, nil }); err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.Finish(t.Context()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	w := must2(NewWriter(t.Context(), objstore.NewMem(), WriterOptions{}))(t)
	defer w.Abort()
	m := w.NewMap("vda", 2*GridSize, false)
	none := func(context.Context, []byte) ([]Piece, error) { return nil, nil }
	if m.Add(t.Context(), GridSize-512, 1024, none) == nil {
		t.Error("a range over two cells is taken")
	}
	if err := m.Add(t.Context(), GridSize, 512, none); err != nil {
		t.Error(err)
	}
	if m.Add(t.Context(), GridSize, 512, none) == nil || m.Zero(0, 512) == nil {
		t.Error("a range is taken twice")
	}
	if m.Zero(GridSize, GridSize+1) == nil || m.Zero(GridSize+512, -1) == nil {
		t.Error("a range outside of the disk is taken")
	}
	for _, name := range []string{"", "a b", "a\nb", strings.Repeat("x", 300)} {
		if err := w.NewMap(name, 5, true).Zero(0, 1); err == nil {
			t.Errorf("the name %q is taken", name)
		}
	}
}

// TestReuse: pieces that refer to an older chunk, as a whole and in part.
func TestReuse(t *testing.T) {
	t.Parallel()
	store := objstore.NewMem()
	disk := random(1, 2*GridSize)
	base, _ := fullBackup(t, store, disk)
	var entries []Entry
	for e, err := range must2(OpenMap(t.Context(), store, base, 0))(t).Entries(t.Context(), 0, int64(len(disk))) {
		entries = append(entries, must(t, e, err))
	}
	counting := &faulty{Store: store}
	stats := map[string]int{}
	counting.fail = func(op, key string, _ int) bool {
		if strings.HasPrefix(key, PackPrefix) {
			stats[op]++
		}
		return false
	}
	run := func(s objstore.Store, withData bool) (MapRef, Stats, error) {
		w := must2(NewWriter(t.Context(), s, WriterOptions{}))(t)
		m := w.NewMap("vda", int64(len(disk)), true)
		for i := range entries {
			e := entries[i]
			p := []Piece{{Offset: e.Offset + 512, Length: 1024, Reuse: &e}, {Offset: e.Offset + 4096, Length: 512, Reuse: &e}}
			if withData {
				p[0].Data, p[1].Data = disk[e.Offset+512:][:1024], disk[e.Offset+4096:][:512]
			}
			if err := m.Add(t.Context(), e.Offset, GridSize, func(context.Context, []byte) ([]Piece, error) { return p, nil }); err != nil {
				t.Fatal(err)
			}
		}
		refs, stats, err := w.Finish(t.Context())
		if err != nil {
			return MapRef{}, stats, err
		}
		return refs[0], stats, nil
	}
	want := make([]byte, len(disk))
	for _, off := range []int{0, GridSize} {
		copy(want[off+512:][:1024], disk[off+512:])
		copy(want[off+4096:][:512], disk[off+4096:])
	}
	ref, st, err := run(counting, false)
	if err != nil || st.Reused != 2*1536 || st.Stored != 0 || stats["stat"] != 1 || stats["get"] != 0 {
		t.Fatalf("%v, %+v, operations on packs: %v", err, st, stats)
	}
	checkRestore(t, store, want, ref)
	put(t, store, PackKey(entries[0].Pack.Name), []byte("short"))
	if _, _, err := run(store, false); !IsDamage(err) {
		t.Errorf("a pack of the wrong length is referred to: %v", err)
	}
	ref, st, err = run(store, true)
	if err != nil || st.Reused != 0 || len(st.Notes) == 0 {
		t.Fatalf("with data to store instead: %v, %+v", err, st)
	}
	checkRestore(t, store, want, ref)
}

func TestSeveralDisks(t *testing.T) {
	t.Parallel()
	store := objstore.NewMem()
	w := must2(NewWriter(t.Context(), store, WriterOptions{PackSize: 1 << 20}))(t)
	defer w.Abort()
	var disks [][]byte
	var stats DiskStats
	for i := range 4 {
		disk := random(uint64(i), 3*GridSize+i*512)
		m := w.NewMap(fmt.Sprint("vd", i), int64(len(disk)), true)
		if err := addSpans(t.Context(), m, disk, span{0, int64(len(disk))}); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 { // the others are closed by Finish
			must2(m.Close(t.Context()))(t)
		}
		disks = append(disks, disk)
		stats.Data += int64(len(disk))
	}
	bitmapRef(t, w, bitmapstore.Header{Name: "b", Granularity: 512, Size: 512}, bitmapstore.Of())
	refs, got, err := w.Finish(t.Context())
	if err != nil || len(refs) != 4 || got.Data != stats.Data || got.Packs < 9 {
		t.Fatalf("%v, %+v", err, got)
	}
	for i, ref := range refs {
		checkRestore(t, store, disks[i], ref)
		if m := must2(OpenMap(t.Context(), store, ref, 0))(t); m.Disk() != fmt.Sprint("vd", i) || !m.Full() {
			t.Errorf("map %d is of disk %s", i, m.Disk())
		}
	}
}

// TestBounded: Add waits when as many cells are in flight as there may be, goes on
// when one is done, and every goroutine ends (else synctest fails).
func TestBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const workers, inFlight = 3, 2*3 + 4
		w := must2(NewWriter(t.Context(), objstore.NewMem(), WriterOptions{Workers: workers}))(t)
		defer w.Abort()
		m := w.NewMap("vda", 1000*GridSize, true)
		var added, running, most atomic.Int64
		var gates [1000]chan struct{}
		for i := range gates {
			gates[i] = make(chan struct{})
		}
		go func() {
			for i := range int64(len(gates)) {
				err := m.Add(t.Context(), i*GridSize, GridSize, func(ctx context.Context, buf []byte) ([]Piece, error) {
					n := running.Add(1)
					most.Store(max(n, most.Load()))
					defer running.Add(-1)
					select {
					case <-gates[i]:
					case <-ctx.Done():
					}
					return nil, ctx.Err()
				})
				if err != nil {
					return
				}
				added.Add(1)
			}
		}()
		synctest.Wait()
		if added.Load() != inFlight || running.Load() != workers {
			t.Errorf("%d cells are in flight, %d run", added.Load(), running.Load())
		}
		for i := range 5 { // the first five: a cell that is done is free when those before it are, too
			close(gates[i])
		}
		synctest.Wait()
		if added.Load() != inFlight+5 || most.Load() != workers {
			t.Errorf("%d cells were taken, %d ran at once", added.Load(), most.Load())
		}
		w.Abort() // with all of it waiting
		synctest.Wait()
		if _, _, err := w.Finish(t.Context()); !errors.Is(err, errAborted) {
			t.Errorf("Finish after Abort: %v", err)
		}
	})
}

// hanging never answers before its context ends.
type hanging struct {
	objstore.Store
	prefix string
}

func (h hanging) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if strings.HasPrefix(key, h.prefix) {
		<-ctx.Done()
		return ctx.Err()
	}
	return h.Store.Put(ctx, key, body, o)
}

// TestCancelled: a cancelled context ends every wait, and is the error.
func TestCancelled(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{PackPrefix, MapPrefix, IndexPrefix} {
		for _, whose := range []string{"session", "call"} {
			synctest.Test(t, func(t *testing.T) {
				session, call := t.Context(), t.Context()
				var cancel context.CancelFunc
				if whose == "session" {
					session, cancel = context.WithCancel(session)
				} else {
					call, cancel = context.WithCancel(call)
				}
				time.AfterFunc(time.Hour, cancel)
				w := must2(NewWriter(session, hanging{objstore.NewMem(), prefix}, WriterOptions{Workers: 2, PackSize: 64 << 10}))(t)
				m := w.NewMap("vda", 64*GridSize, true)
				disk := random(1, 64*4096)
				err := func() error {
					for i := range int64(64) {
						err := m.Add(call, i*GridSize, 65536, func(_ context.Context, buf []byte) ([]Piece, error) {
							return []Piece{{Offset: i * GridSize, Length: 4096, Data: disk[i*4096:][:4096]}}, nil
						})
						if err != nil {
							return err
						}
					}
					_, _, err := w.Finish(call)
					return err
				}()
				if !errors.Is(err, context.Canceled) {
					t.Errorf("%s, %s: %v", prefix, whose, err)
				}
				w.Abort()
			})
		}
	}
}

func TestLevels(t *testing.T) {
	t.Parallel()
	names := []string{"none", "fastest", "default", "better", "best"}
	for i, want := range []Level{LevelNone, LevelFastest, LevelDefault, LevelBetter, LevelBest} {
		if got := must2(ParseLevel(names[i]))(t); got != want {
			t.Errorf("%s is read as %d", names[i], got)
		}
		if got := must2(ParseLevel(fmt.Sprint(i)))(t); got != want {
			t.Errorf("%d is read as %d", i, got)
		}
	}
	if _, err := ParseLevel("5"); err == nil {
		t.Error("level 5 is read")
	}
}
