// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/cache"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

const limit = 64 << 20

// kind is Digested for d/SHA256, Tagged for t/…, Never for n/….
func kind(key string) (cache.Kind, [32]byte) {
	var name [32]byte
	switch prefix, rest, _ := strings.Cut(key, "/"); {
	case prefix == "d" && len(rest) == 64:
		_, _ = hex.Decode(name[:], []byte(rest))
		return cache.Digested, name
	case prefix == "o" && len(rest) == 64:
		_, _ = hex.Decode(name[:], []byte(rest))
		return cache.Own, name
	case prefix == "n":
		return cache.Never, name
	}
	return cache.Tagged, name
}

// counting is a store that counts how often objects are read.
type counting struct {
	objstore.Store
	gets  atomic.Int64
	bytes atomic.Int64
}

func (c *counting) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	c.gets.Add(1)
	r, err := c.Store.Get(ctx, key, offset, length)
	if v, ok := r.(objstore.VersionReader); ok {
		return &countingReader{v, c}, err
	}
	return r, err
}

type countingReader struct {
	objstore.VersionReader
	c *counting
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.VersionReader.Read(p)
	r.c.bytes.Add(int64(n))
	return n, err
}

// world is a store and the folder of what is remembered of it.
type world struct {
	*testing.T
	far *counting
	dir string
}

func newWorld(t *testing.T) *world {
	return &world{T: t, far: &counting{Store: objstore.NewMem()}, dir: filepath.Join(t.TempDir(), "cache")}
}

// open is the store as a new program sees it.
func (w *world) open() objstore.Store { return w.openLimit(limit) }

func (w *world) openLimit(limit int64) objstore.Store {
	w.Helper()
	d, err := cache.Open(w.dir, limit)
	if err != nil {
		w.Fatal(err)
	}
	return cache.New(w.far, d, cache.Options{ID: "id", Place: "far", Kind: kind})
}

func (w *world) put(s objstore.Store, key string, data []byte, mode objstore.Mode) {
	w.Helper()
	if err := s.Put(w.Context(), key, bytes.NewReader(data), objstore.PutOptions{Mode: mode}); err != nil {
		w.Fatal(err)
	}
}

// read reads a part of an object, or all of it, and says how often the store was asked.
func (w *world) read(s objstore.Store, key string, offset, length int64) (data []byte, gets int64) {
	w.Helper()
	before := w.far.gets.Load()
	r, err := s.Get(w.Context(), key, offset, length)
	if err != nil {
		w.Fatal(err)
	}
	data, err = io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		w.Fatal(err)
	}
	return data, w.far.gets.Load() - before
}

// listed reads an object as the store lists it.
func (w *world) listed(s objstore.Store, key string) (data []byte, gets int64) {
	w.Helper()
	before := w.far.gets.Load()
	for info, err := range s.List(w.Context(), key) {
		if err != nil {
			w.Fatal(err)
		}
		if data, err = objstore.ReadListed(w.Context(), s, info, 1<<30); err != nil {
			w.Fatal(err)
		}
	}
	return data, w.far.gets.Load() - before
}

func (w *world) want(what string, got, want []byte, gets, wantGets int64) {
	w.Helper()
	if !bytes.Equal(got, want) {
		w.Errorf("%s: other bytes", what)
	}
	if gets != wantGets {
		w.Errorf("%s: the store was asked %d times, want %d", what, gets, wantGets)
	}
}

// files lists what is remembered.
func (w *world) files() (paths []string, size int64) {
	w.Helper()
	err := filepath.WalkDir(w.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			w.Errorf("%s has the mode %v", path, info.Mode())
		}
		if e.Type().IsRegular() && e.Name() != "CACHEDIR.TAG" {
			paths = append(paths, path)
			size += info.Size()
		}
		return nil
	})
	if err != nil {
		w.Fatal(err)
	}
	return paths, size
}

func content(seed byte, n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(data) // never fails
	return data
}

func digested(data []byte) string {
	sum := sha256.Sum256(data)
	return "d/" + hex.EncodeToString(sum[:])
}

// A store that is remembered keeps every promise of a store.
func TestContract(t *testing.T) {
	t.Parallel()
	objstoretest.Run(t, func(t *testing.T) objstore.Store {
		w := newWorld(t)
		return w.open()
	})
}

// What never changes is read from the store once at most: never what was written here,
// nor by another program; and what is read in parts is fetched before long.
func TestDigested(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	small, large := content(1, 100<<10), content(2, 9<<20)
	w.put(w.open(), digested(small), small, objstore.Create)
	got, gets := w.read(w.open(), digested(small), 0, -1)
	w.want("what was written", got, small, gets, 0)

	w.put(w.far, digested(large), large, objstore.Create)
	s := w.open()
	var all int64
	for i := range int64(9) {
		got, gets := w.read(s, digested(large), (8-i)<<20, 1<<20)
		w.want("a part", got, large[(8-i)<<20:][:1<<20], gets, gets)
		all += gets
	}
	if all > 3 {
		t.Errorf("the store is asked %d times for parts", all)
	}
	got, gets = w.read(w.open(), digested(large), 5<<20, 100)
	w.want("a part, later", got, large[5<<20:][:100], gets, 0)
	if b := w.far.bytes.Load(); b > int64(len(large))+3<<20 {
		t.Errorf("%d bytes were read of %d", b, len(large))
	}
	// A range that passes the end is as short as the store's.
	r, err := w.open().Get(t.Context(), digested(small), int64(len(small))-5, 10)
	if err == nil {
		var data []byte
		data, err = io.ReadAll(r)
		_ = r.Close()
		if len(data) != 5 {
			t.Errorf("%d bytes of a range that passes the end", len(data))
		}
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a range that passes the end: %v", err)
	}
}

// Of what only this host's is kept, others' is read each time.
func TestOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	own, others := content(1, 1000), content(2, 1000)
	key := func(data []byte) string { return "o" + digested(data)[1:] }
	w.put(w.open(), key(own), own, objstore.Create)
	w.put(w.far, key(others), others, objstore.Create)
	for range 2 {
		got, gets := w.read(w.open(), key(own), 0, -1)
		w.want("own", got, own, gets, 0)
		got, gets = w.read(w.open(), key(others), 0, -1)
		w.want("another's", got, others, gets, 1)
	}
}

// A byte that was flipped in the folder, a file that was cut or emptied, or put under
// another name: it is dropped, and asked of the store.
func TestNotBelieved(t *testing.T) {
	t.Parallel()
	damages := map[string]func(data []byte) []byte{
		"first byte": func(d []byte) []byte { d[0] ^= 1; return d },
		"last byte":  func(d []byte) []byte { d[len(d)-1] ^= 0x80; return d },
		"cut":        func(d []byte) []byte { return d[:len(d)-1] },
		"empty":      func([]byte) []byte { return nil },
		"longer":     func(d []byte) []byte { return append(d, 0) },
	}
	for i := range 40 { // anywhere
		damages[fmt.Sprintf("bit %d", i)] = func(d []byte) []byte { d[len(d)*i/40] ^= 1 << (i % 8); return d }
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			a, b := content(1, 1000), content(2, 2000)
			w.put(w.open(), digested(a), a, objstore.Create)
			w.put(w.far, "t/b", b, objstore.Create)
			got, gets := w.listed(w.open(), "t/b")
			w.want("before", got, b, gets, 1)
			files, _ := w.files()
			if len(files) != 2 {
				t.Fatalf("%d files are kept", len(files))
			}
			for _, path := range files {
				data, err := os.ReadFile(path)
				if err == nil {
					err = os.WriteFile(path, damage(data), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			got, gets = w.read(w.open(), digested(a), 0, -1)
			w.want("digested", got, a, gets, 1)
			got, gets = w.listed(w.open(), "t/b")
			w.want("tagged", got, b, gets, 1)
			got, gets = w.read(w.open(), digested(a), 0, -1)
			w.want("digested, kept again", got, a, gets, 0)
			got, gets = w.listed(w.open(), "t/b")
			w.want("tagged, kept again", got, b, gets, 0)
		})
	}
}

// What may be replaced counts only with the tag that a listing shows now.
func TestTagged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.open()
	for i := range 3 {
		data := content(byte(i), 500) // of one size
		w.put(w.far, "t/a", data, objstore.Replace)
		got, gets := w.listed(s, "t/a")
		w.want("new", got, data, gets, 1)
		got, gets = w.listed(w.open(), "t/a")
		w.want("known", got, data, gets, 0)
		got, gets = w.read(s, "t/a", 0, -1) // without a listing
		w.want("by name", got, data, gets, 1)
	}
	// What a listing shows, and is replaced before it is read: the bytes of now, and
	// they are not kept for those of then.
	for info, err := range s.List(t.Context(), "t/a") {
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(t.Context(), "t/a"); err != nil { // and forgotten
			t.Fatal(err)
		}
		now := content(9, 500)
		w.put(w.far, "t/a", now, objstore.Create)
		for range 2 {
			got, err := objstore.ReadListed(t.Context(), s, info, 1<<20)
			if err != nil || !bytes.Equal(got, now) {
				t.Errorf("what was replaced since it was listed: %v", err)
			}
		}
	}
	// Neither is a part of an object kept for it, nor what a reader gave up.
	w.put(w.far, "t/b", content(1, 500), objstore.Create)
	for _, length := range []int64{100, 500} {
		w.read(s, "t/b", 0, length)
	}
	r, err := s.Get(t.Context(), "t/b", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil || r.Close() != nil {
		t.Fatal(err)
	}
	got, gets := w.listed(s, "t/b")
	w.want("after parts", got, content(1, 500), gets, 1)
}

// What is removed from the store is not given for what is there.
func TestRemoved(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.open()
	data := content(1, 500)
	w.put(s, digested(data), data, objstore.Create)
	if err := s.Delete(t.Context(), digested(data)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), digested(data), 0, -1); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("what was removed: %v", err)
	}
	w.put(s, digested(data), data, objstore.Create)
	if err := w.far.Delete(t.Context(), digested(data)); err != nil { // by another host
		t.Fatal(err)
	}
	if _, err := s.Stat(t.Context(), digested(data)); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("Stat of what another removed: %v", err)
	}
	if _, err := objstore.Direct(s).Get(t.Context(), digested(data), 0, -1); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("the store itself: %v", err)
	}
}

// The folder stays within its limit, whatever is written; what is read most lately stays.
func TestLimit(t *testing.T) {
	t.Parallel()
	const limit = 4 << 20
	w := newWorld(t)
	s := w.openLimit(limit)
	for i := range 60 {
		data := content(byte(i), 300<<10)
		w.put(s, digested(data), data, objstore.Create)
		if _, size := w.files(); size > limit+limit/8 {
			t.Fatalf("%d bytes are kept, of %d at most", size, limit)
		}
	}
	huge := content(99, limit)
	w.put(s, digested(huge), huge, objstore.Create)
	got, _ := w.read(s, digested(huge), 0, -1)
	w.want("larger than what may be kept", got, huge, 0, 0)
	last := content(59, 300<<10)
	got, gets := w.read(s, digested(last), 0, -1)
	w.want("the last one", got, last, gets, 0)
}

// The folder may be removed at any moment, and made unwritable; several programs may work
// in it.
func TestGoneAndShared(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var removed sync.WaitGroup
	removed.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = os.RemoveAll(w.dir) // others make it anew meanwhile
			}
		}
	})
	for i := range 4 {
		wg.Go(func() {
			d, err := cache.Open(filepath.Join(w.dir), limit)
			if err != nil {
				return // just removed
			}
			s := cache.New(w.far, d, cache.Options{ID: "id", Place: "far", Kind: kind})
			for j := range 100 {
				data := content(byte(j%7), 2000)
				err := s.Put(t.Context(), digested(data), bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace})
				if err != nil {
					t.Error(err)
				}
				got, err := objstore.ReadAll(t.Context(), s, digested(data), 1<<20)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("program %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	removed.Wait()
}

// A folder that others may write to is not used.
func TestNotOurs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := cache.Open(dir, limit); err == nil {
		t.Error("a folder that all may write to is used")
	}
}
