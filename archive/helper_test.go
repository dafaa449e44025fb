// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// fatal is what the helpers need of testing.TB and rapid.T.
type fatal interface {
	Helper()
	Fatalf(format string, args ...any)
}

func must[T any](t fatal, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatalf("unexpected error: %v", err)
	}
	return v
}

// random returns n bytes that do not compress.
func random(seed uint64, n int) []byte {
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 1})
	b := make([]byte, n)
	_, _ = src.Read(b) // never fails
	return b
}

// text returns n bytes that compress.
func text(seed uint64, n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "line %d of the file number %d\n", i*i, seed)
	}
	return b.Bytes()[:n]
}

// testKeys are keys of a repository, all of them.
func testKeys(t fatal) *crypt.Keys {
	t.Helper()
	g, err := crypt.Generate(1, false)
	if err != nil {
		t.Fatalf("keys: %v", err)
	}
	k, err := crypt.New(g)
	return must(t, k, err)
}

// plainAndEncrypted runs a test with an empty store of each kind.
func plainAndEncrypted(t *testing.T, test func(t *testing.T, store objstore.Store)) {
	t.Parallel()
	t.Run("plain", func(t *testing.T) { t.Parallel(); test(t, objstore.NewMem()) })
	t.Run("encrypted", func(t *testing.T) { t.Parallel(); test(t, Encrypted(objstore.NewMem(), testKeys(t))) })
}

type span struct{ off, length int64 }

// cells cuts spans at the grid.
func cells(spans ...span) iter.Seq[span] {
	return func(yield func(span) bool) {
		for _, s := range spans {
			for s.length > 0 {
				n := min(s.length, GridSize-s.off%GridSize)
				if !yield(span{s.off, n}) {
					return
				}
				s.off, s.length = s.off+n, s.length-n
			}
		}
	}
}

// addSpans gives parts of a disk's content to a map, as a backup does.
func addSpans(ctx context.Context, m *MapWriter, disk []byte, spans ...span) error {
	for c := range cells(spans...) {
		err := m.Add(ctx, c.off, c.length, func(_ context.Context, buf []byte) ([]Piece, error) {
			n := copy(buf, disk[c.off:c.off+c.length])
			return []Piece{{Offset: c.off, Length: c.length, Data: buf[:n]}}, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func tryBackup(ctx context.Context, store objstore.Store, o WriterOptions, disk []byte, full bool, spans ...span) (MapRef, Stats, error) {
	w, err := NewWriter(ctx, store, o)
	if err != nil {
		return MapRef{}, Stats{}, err
	}
	defer w.Abort()
	m := w.NewMap("vda", int64(len(disk)), full)
	if err := addSpans(ctx, m, disk, spans...); err != nil {
		return MapRef{}, Stats{}, err
	}
	if _, err := m.Close(ctx); err != nil {
		return MapRef{}, Stats{}, err
	}
	refs, stats, err := w.Finish(ctx)
	if err != nil {
		return MapRef{}, Stats{}, err
	}
	return refs[0], stats, nil
}

func backup(t fatal, store objstore.Store, disk []byte, full bool, spans ...span) (MapRef, Stats) {
	t.Helper()
	ref, stats, err := tryBackup(context.Background(), store, WriterOptions{}, disk, full, spans...)
	if err != nil {
		t.Fatalf("backup: %v", err)
	}
	return ref, stats
}

func fullBackup(t fatal, store objstore.Store, disk []byte) (MapRef, Stats) {
	t.Helper()
	return backup(t, store, disk, true, span{0, int64(len(disk))})
}

// tryRestore reads a checkpoint by its maps, newest first, into a buffer of junk.
func tryRestore(ctx context.Context, store objstore.Store, refs ...MapRef) ([]byte, error) {
	var maps []*Map
	for _, r := range refs {
		m, err := OpenMap(ctx, store, r, 0)
		if err != nil {
			return nil, err
		}
		maps = append(maps, m)
	}
	out := bytes.Repeat([]byte{0xa5}, int(maps[0].Size()))
	var entries []Entry
	var next int64
	for e, err := range Replay(ctx, maps, 0, maps[0].Size()) {
		if err != nil {
			return nil, err
		}
		if e.Offset != next || e.Length <= 0 {
			return nil, fmt.Errorf("gap or overlap: %+v after %d", e, next)
		}
		next = e.End()
		if e.Zero {
			clear(out[e.Offset:e.End()])
		}
		entries = append(entries, e)
	}
	if next != int64(len(out)) {
		return nil, fmt.Errorf("replay ends at %d instead of %d", next, len(out))
	}
	var mu sync.Mutex
	done := make([]bool, len(entries))
	err := NewFetcher(store, FetcherOptions{}).Batch(ctx, entries, func(indexes []int, chunk []byte) error {
		mu.Lock()
		defer mu.Unlock()
		for _, i := range indexes {
			e := &entries[i]
			copy(out[e.Offset:e.End()], chunk[e.ChunkOffset:])
			if done[i] {
				return fmt.Errorf("entry %d came twice", i)
			}
			done[i] = true
		}
		return nil
	})
	return out, err
}

func checkRestore(t fatal, store objstore.Store, want []byte, refs ...MapRef) {
	t.Helper()
	got, err := tryRestore(context.Background(), store, refs...)
	if err != nil {
		t.Fatalf("restore: %v", err)
	}
	if !bytes.Equal(got, want) {
		i := 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		t.Fatalf("restored %d bytes, want %d; first difference at %d", len(got), len(want), i)
	}
}

func keys(t fatal, store objstore.Store, prefix string) []string {
	t.Helper()
	var out []string
	for info, err := range store.List(context.Background(), prefix) {
		if err != nil {
			t.Fatalf("list: %v", err)
		}
		out = append(out, info.Key)
	}
	return out
}

func get(t fatal, store objstore.Store, key string) []byte {
	t.Helper()
	data, err := objstore.ReadAll(context.Background(), store, key, 1<<30)
	return must(t, data, err)
}

func put(t fatal, store objstore.Store, key string, data []byte) {
	t.Helper()
	if e, ok := store.(*encrypted); ok {
		store = e.Store // which takes anything
	}
	if err := store.Put(context.Background(), key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
		t.Fatalf("put: %v", err)
	}
}

// flip changes one bit of an object.
func flip(t fatal, store objstore.Store, key string, at int) {
	t.Helper()
	data := get(t, store, key)
	data[at] ^= 0x10
	put(t, store, key, data)
}

var errOutage = errors.New("the store does not answer")

// faulty fails the operations that fail chooses, and counts them all.
type faulty struct {
	objstore.Store
	mu   sync.Mutex
	ops  int
	hits int
	fail func(op, key string, n int) bool
}

// Unwrap returns the store that it is around.
func (f *faulty) Unwrap() objstore.Store { return f.Store }

func (f *faulty) check(op, key string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops++
	if f.fail != nil && f.fail(op, key, f.ops) {
		f.hits++
		return fmt.Errorf("%s %s: %w", op, key, errOutage)
	}
	return nil
}

func (f *faulty) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if err := f.check("put", key); err != nil {
		return err
	}
	return f.Store.Put(ctx, key, body, o)
}

func (f *faulty) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if err := f.check("get", key); err != nil {
		return nil, err
	}
	r, err := f.Store.Get(ctx, key, off, n)
	if err != nil {
		return nil, err
	}
	return &faultyReader{ReadCloser: r, f: f, key: key}, nil
}

// faultyReader fails in the middle of a body, in the way of a connection that ends.
type faultyReader struct {
	io.ReadCloser
	f   *faulty
	key string
}

func (r *faultyReader) Read(p []byte) (int, error) {
	if r.f.check("read", r.key) != nil {
		return 0, io.ErrUnexpectedEOF
	}
	return r.ReadCloser.Read(p)
}

func (f *faulty) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if err := f.check("stat", key); err != nil {
		return objstore.Info{}, err
	}
	return f.Store.Stat(ctx, key)
}

func (f *faulty) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		if err := f.check("list", prefix); err != nil {
			yield(objstore.Info{}, err)
			return
		}
		for i, err := range f.Store.List(ctx, prefix) {
			if !yield(i, err) {
				return
			}
		}
	}
}
