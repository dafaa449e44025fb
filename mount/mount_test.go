// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
)

// world is a repository that is mounted at dir, until the test ends.
type world struct {
	*testing.T
	*chaintest.History
	dir string

	mu     sync.Mutex
	failed map[string]error // the last one of each path
}

func mounted(t *testing.T, h *chaintest.History) *world {
	t.Helper()
	w := &world{T: t, History: h, dir: t.TempDir(), failed: make(map[string]error)}
	ctx, cancel := context.WithCancel(context.Background())
	m, err := Mount(ctx, h.Repo, w.dir, Options{
		Name: "test", always: true,
		Note: func(msg string) { t.Error(msg) },
		Failed: func(path string, err error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.failed[path] = err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- m.Wait(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(w.dir); err != nil || len(left) > 0 {
			t.Errorf("after it was unmounted the folder has %v: %v", left, err)
		}
	})
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, "web", name, "vda.raw") }

func (w *world) why(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed["web/"+name+"/vda.raw"]
}

func (w *world) open(name string) *os.File {
	w.Helper()
	f, err := os.Open(w.path(name))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { f.Close() })
	return f
}

// direct reads a file around the page cache (O_DIRECT).
func (w *world) direct(name string) (all []byte) {
	f, err := os.OpenFile(w.path(name), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		w.Error(err)
		return nil
	}
	defer func() { _ = f.Close() }() // only read
	aligned, err := unix.Mmap(-1, 0, 256<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		w.Error(err)
		return nil
	}
	defer func() { _ = unix.Munmap(aligned) }()
	for {
		n, err := f.ReadAt(aligned, int64(len(all)))
		all = append(all, aligned[:n]...)
		if err != nil || n < len(aligned) {
			if err != nil && !errors.Is(err, io.EOF) {
				w.Error(err)
			}
			return all
		}
	}
}

// device is a file as tests read it.
type device struct{ *os.File }

func (d device) ReadAt(_ context.Context, p []byte, off int64) error {
	n, err := d.File.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	return err
}

// holes are the holes of a file, as its seeks tell.
func holes(f *os.File, size int64) bitmapstore.Runs {
	return bitmapstore.Join(func(yield func(bitmapstore.Run, error) bool) {
		for pos := int64(0); pos < size; {
			hole, err := f.Seek(pos, unix.SEEK_HOLE)
			if err != nil || hole >= size {
				if err != nil {
					yield(bitmapstore.Run{}, err)
				}
				return
			}
			data, err := f.Seek(hole, unix.SEEK_DATA)
			if errors.Is(err, syscall.ENXIO) {
				data, err = size, nil
			}
			if err != nil || data <= hole || !yield(bitmapstore.Run{Start: hole, End: data}, nil) {
				yield(bitmapstore.Run{}, errors.Join(err, io.ErrNoProgress))
				return
			}
			pos = data
		}
	})
}

// Disks that grow and shrink, read from anywhere by several at once.
func TestChainIsReadAsItWas(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	h.Random(rand.New(rand.NewPCG(1, 2)), 8, 3<<20)
	w := mounted(t, h)
	var wg sync.WaitGroup
	for i, m := range h.Checkpoints {
		f, want := w.open(m.Checkpoint), h.Want[i]
		if fi, err := f.Stat(); err != nil || fi.Size() != int64(len(want)) || !fi.ModTime().Equal(m.Created) || fi.Mode() != 0o400 {
			t.Errorf("%s: %v, %v", m.Checkpoint, fi, err)
		}
		wg.Go(func() {
			chaintest.VerifyReads(t, rand.New(rand.NewPCG(3, uint64(i))), device{f}, want)
			chaintest.VerifyZeros(t, holes(f, int64(len(want))), want)
			if all, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30)); err != nil || !bytes.Equal(all, want) {
				t.Errorf("%s: %v", m.Checkpoint, err)
			}
			if all := w.direct(m.Checkpoint); !bytes.Equal(all, want) {
				t.Errorf("%s: around the page cache %d of %d bytes are read, or others", m.Checkpoint, len(all), len(want))
			}
		})
	}
	wg.Wait()
}

// What comes and goes meanwhile: checkpoints, and the link to the newest.
func TestTreeFollows(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	content := bytes.Repeat([]byte("a"), 300<<10)
	h.Commit(content, true, nil)
	w := mounted(t, h)
	latestIs := func(want string) {
		t.Helper()
		if got, err := os.Readlink(filepath.Join(w.dir, "web", "latest")); err != nil || got != want {
			t.Errorf("latest is %q: %v; want %s", got, err, want)
		}
	}
	latestIs("ca")
	if _, err := os.Stat(w.path("cb")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	content = bytes.Repeat([]byte("b"), 400<<10)
	h.Commit(content, true, nil)
	latestIs("cb")
	if got, err := os.ReadFile(w.path("latest")); err != nil || !bytes.Equal(got, content) {
		t.Error(err)
	}
	h.Forget(0)
	var names []string
	list, err := os.ReadDir(filepath.Join(w.dir, "web"))
	for _, e := range list {
		names = append(names, e.Name())
	}
	if err != nil || !slices.Equal(names, []string{"cb", "latest"}) {
		t.Errorf("%v: %v", names, err)
	}
	for _, name := range []string{"ca", ".x", "..", "vda.raw", "cb/vda", "cb/vdb.raw", "cb/.raw", "latest/vda.raw/x"} {
		if fi, err := os.Stat(filepath.Join(w.dir, "web") + "/" + name); err == nil && name != ".." {
			t.Errorf("%s is there: %v", name, fi)
		}
	}
	for _, err := range []error{
		os.WriteFile(w.path("cb"), nil, 0o600), os.Remove(w.path("cb")), os.Mkdir(filepath.Join(w.dir, "x"), 0o700),
		os.Chmod(w.path("cb"), 0o600), os.Rename(w.path("cb"), w.path("cb")+"x"), os.Truncate(w.path("cb"), 0),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("it is not read-only: %v", err)
		}
	}
}

// A file that is open is of its checkpoint: repacked or forgotten, and never of another one of
// the same name.
func TestOpenFileStaysItsCheckpoint(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	r := rand.New(rand.NewPCG(7, 7))
	old := make([]byte, 4<<20)
	chaintest.Fill(r, old)
	h.Commit(old, true, nil)
	w := mounted(t, h)
	f := w.open("ca")
	h.Repack(0)
	p := make([]byte, 64<<10)
	if _, err := f.ReadAt(p, 3<<20); err != nil || !bytes.Equal(p, old[3<<20:][:len(p)]) {
		t.Errorf("repacked: %v", err)
	}

	h.Forget(0)
	h.Prune()
	h.Checkpoints = h.Checkpoints[:0] // so that the next has the same name
	young := make([]byte, len(old))
	chaintest.Fill(r, young)
	h.Commit(young, true, nil)
	if _, err := f.ReadAt(p, 1<<20); !errors.Is(err, syscall.EIO) {
		t.Errorf("forgotten: %v", err)
	}
	if gone := (*chain.GoneError)(nil); !errors.As(w.why("ca"), &gone) {
		t.Errorf("told is: %v", w.why("ca"))
	}
	if got, err := os.ReadFile(w.path("ca")); err != nil || !bytes.Equal(got, young) {
		t.Errorf("the new one of that name: %v", err)
	}
}

// Readers who have gone, and files that were never closed, hold nothing up.
func TestUnmountedWhileOpen(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	h.Commit(make([]byte, 1<<20), true, nil)
	var f *os.File
	t.Cleanup(func() { // after the mount has ended
		if _, err := f.ReadAt(make([]byte, 1), 0); err == nil {
			t.Error("it can be read after the end")
		}
		f.Close()
	})
	w := mounted(t, h)
	var err error
	if f, err = os.Open(w.path("ca")); err != nil {
		t.Fatal(err)
	}
}

func TestNotMounted(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, file + "/x", filepath.Join(filepath.Dir(file), "none")} {
		if m, err := Mount(context.Background(), h.Repo, dir, Options{}); err == nil {
			t.Errorf("%s is mounted upon: %v", dir, m.Unmount())
		}
	}
}
