// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/internal/zero"
)

// memory is a writable device that keeps its content in memory.
type memory struct {
	mu      sync.Mutex
	b       []byte
	bad     [2]int64 // reads of this range fail
	flushes int
}

var errBad = errors.New("this part is damaged")

func (m *memory) ReadAt(ctx context.Context, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off < m.bad[1] && off+int64(len(p)) > m.bad[0] {
		return errBad
	}
	copy(p, m.b[off:])
	return ctx.Err()
}

func (m *memory) WriteAt(_ context.Context, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.b[off:], p)
	return nil
}

func (m *memory) WriteZeroes(_ context.Context, off, length int64, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.b[off : off+length])
	return nil
}

func (m *memory) Trim(ctx context.Context, off, length int64) error {
	return m.WriteZeroes(ctx, off, length, true)
}

func (m *memory) Flush(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushes++
	return nil
}

// content is a copy of what the device holds.
func (m *memory) content() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.b)
}

func (m *memory) flushed() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.flushes
}

// damage makes reads of [start, end) fail.
func (m *memory) damage(start, end int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bad = [2]int64{start, end}
}

// allocation is the context base:allocation of the device.
func (m *memory) allocation(_ context.Context, start, end int64) iter.Seq2[Extent, error] {
	const block = 64 << 10
	return func(yield func(Extent, error) bool) {
		for pos := start - start%block; pos < end; pos += block {
			m.mu.Lock()
			to := min(pos+block, int64(len(m.b)))
			zeros := zero.Is(m.b[pos:to])
			m.mu.Unlock()
			if zeros && !yield(Extent{pos, to, StateHole | StateZero}, nil) {
				return
			}
		}
	}
}

// pattern is content without repetitions, with holes.
func pattern(size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(b)
	for pos := 3 << 20; pos < size; pos += 5 << 20 {
		clear(b[pos:min(size, pos+(2<<20)+(128<<10))])
	}
	return b
}

// diskSize is no multiple of a piece, nor of a block.
const diskSize = 37<<20 + 512*3

func dirtyRuns() bitmapstore.Runs {
	return bitmapstore.Of(bitmapstore.Run{Start: 0, End: 64 << 10}, bitmapstore.Run{Start: 5 << 20, End: 6<<20 + 512},
		bitmapstore.Run{Start: diskSize - 512, End: diskSize})
}

func exports(a, b *memory) []Export {
	return []Export{
		{Name: "vda", Description: "the first disk", Size: int64(len(a.b)), Device: a, Contexts: []Context{
			{Name: BaseAllocation, Extents: a.allocation},
			DirtyBitmap("monday", func(context.Context, int64, int64) bitmapstore.Runs { return dirtyRuns() }),
			DirtyBitmap("tuesday", func(context.Context, int64, int64) bitmapstore.Runs { return nil }),
		}},
		{Name: "vdb", Size: int64(len(b.b)), Device: b, ReadOnly: true, Contexts: []Context{
			{Name: BaseAllocation, Extents: b.allocation},
		}},
	}
}

// world is a server under test.
type world struct {
	t      *testing.T
	a, b   *memory
	socket string
	dir    string

	mu    sync.Mutex
	notes []error
}

func serveIn(t *testing.T, o ServerOptions) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{t: t, a: &memory{b: pattern(diskSize)}, b: &memory{b: pattern(3 << 20)}, dir: dir, socket: filepath.Join(dir, "s")}
	o.Notify = func(err error) {
		w.mu.Lock()
		w.notes = append(w.notes, err)
		w.mu.Unlock()
	}
	s, err := NewServer(exports(w.a, w.b), o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := ListenUnix(t.Context(), w.socket)
	if err != nil {
		t.Fatal(err)
	}
	run(t, s, l)
	return w
}

// run serves until the test ends, and then makes sure that it has ended.
func run(t *testing.T, s *Server, listeners ...net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.Serve(ctx, listeners...) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func (w *world) uri(export string) string { return "nbd+unix:///" + export + "?socket=" + w.socket }

func (w *world) noted() []error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]error(nil), w.notes...)
}

// fails runs a program that must fail.
func fails(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err == nil {
		t.Fatalf("%s %s succeeded:\n%s", name, strings.Join(args, " "), out)
	}
	return string(out)
}

func sameFile(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s differs from the device (%d and %d bytes)", path, len(got), len(want))
	}
}

func dial(t *testing.T, w *world, o ClientOptions) *Client {
	t.Helper()
	c, err := Dial(context.Background(), "unix", w.socket, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
