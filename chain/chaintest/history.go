// SPDX-License-Identifier: Apache-2.0

// Package chaintest makes repositories for tests.
package chaintest

import (
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/zero"
	"github.com/imgbackup/imgbackup/objstore"
)

// TB is what is asked of a test; [testing.TB] and rapid.T are such.
type TB interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// History is a repository with a chain of checkpoints of one disk, and what each
// of them holds.
type History struct {
	t           TB
	Repo        *chain.Repository
	Store       *Counting
	Checkpoints []*chain.Manifest
	Want        [][]byte
	Created     time.Time // of the next checkpoints; zero: long ago
}

// Unwrap is the store whose requests are counted.
func (c *Counting) Unwrap() objstore.Store { return c.Store }

// Counting counts what is asked of a store, by key.
type Counting struct {
	objstore.Store
	mu   sync.Mutex
	gets map[string]int
	read int64
}

// Read is the number of bytes of packs that were asked for.
func (c *Counting) Read() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.read
}

func (c *Counting) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	c.mu.Lock()
	c.gets[key]++
	if strings.HasPrefix(key, "packs/") {
		c.read += length
	}
	c.mu.Unlock()
	return c.Store.Get(ctx, key, offset, length)
}

// Of is the number of reads of objects whose key begins with prefix.
func (c *Counting) Of(prefix string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, m := range c.gets {
		if strings.HasPrefix(key, prefix) {
			n += m
		}
	}
	return n
}

// NewHistory makes an empty repository in memory.
func NewHistory(t TB) *History { return NewHistoryOf(t, nil) }

// NewHistoryOf makes an empty repository in memory, with keys; nil: a plain one.
func NewHistoryOf(t TB, k *Keys) *History { return NewHistoryIn(t, objstore.NewMem(), k.Options()) }

// NewHistoryIn makes an empty repository in a store.
func NewHistoryIn(t TB, s objstore.Store, o chain.InitOptions) *History {
	store := &Counting{Store: s, gets: make(map[string]int)}
	repo, err := chain.Init(context.Background(), store, o)
	if err != nil {
		t.Fatal(err)
	}
	return &History{t: t, Repo: repo, Store: store}
}

// Fill gives a range content that nothing else has.
func Fill(r *rand.Rand, p []byte) {
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(r.Uint32())
	}
	_, _ = rand.NewChaCha8(seed).Read(p) // never fails
}

// Change is a range that a checkpoint stores anew.
type Change struct {
	Start, End int64 // bytes, half open
	Zero       bool  // reads as zeros now
}

// Commit archives content as the next checkpoint: all of it, or the changes.
func (h *History) Commit(content []byte, full bool, changes []Change) *chain.Manifest {
	h.t.Helper()
	ctx := context.Background()
	w, err := archive.NewWriter(ctx, h.Repo.Store, archive.WriterOptions{Workers: 1})
	if err != nil {
		h.t.Fatal(err)
	}
	defer w.Abort()
	size := int64(len(content))
	m := w.NewMap("vda", size, full)
	if full {
		changes = nil
		for pos := int64(0); pos < size; pos += 64 << 10 {
			end := min(pos+64<<10, size)
			if !zero.Is(content[pos:end]) {
				changes = append(changes, Change{Start: pos, End: end})
			}
		}
	}
	for _, c := range changes {
		if c.Zero {
			err = m.Zero(c.Start, c.End-c.Start)
		} else {
			for pos := c.Start; pos < c.End && err == nil; {
				end := min(pos-pos%archive.GridSize+archive.GridSize, c.End)
				at, part := pos, content[pos:end]
				err = m.Add(ctx, pos, end-pos, func(context.Context, []byte) ([]archive.Piece, error) {
					return []archive.Piece{{Offset: at, Length: int64(len(part)), Data: part}}, nil
				})
				pos = end
			}
		}
		if err != nil {
			h.t.Fatal(err)
		}
	}
	maps, _, err := w.Finish(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	h.Want = append(h.Want, slices.Clone(content))
	return h.record(ctx, maps, size, full)
}

// CommitMap archives a disk of size bytes whose full map consists of entries, true or
// not, as the next checkpoint; of what it reads as there is no copy in h.Want.
func (h *History) CommitMap(size int64, entries ...archive.Entry) *chain.Manifest {
	h.t.Helper()
	ctx := context.Background()
	ref, err := archive.WriteMap(ctx, h.Repo.Store, archive.MapOptions{Disk: "vda", Size: size, Full: true}, func(yield func(archive.Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.Want = append(h.Want, nil)
	return h.record(ctx, []archive.MapRef{ref}, size, true)
}

// name is that of checkpoint n: ca, cb, …
func name(n int) string {
	s := "c" + string(rune('a'+n%26))
	if n >= 26 {
		s += strconv.Itoa(n / 26)
	}
	return s
}

// record makes a checkpoint of a map that has been written.
func (h *History) record(ctx context.Context, maps []archive.MapRef, size int64, full bool) *chain.Manifest {
	h.t.Helper()
	n := len(h.Checkpoints)
	man := &chain.Manifest{
		Kind: chain.KindArchive, Domain: "web", Host: chain.Host{Name: "h"}, Checkpoint: name(n), UUID: chain.NewUUID(),
		Sequence: int64(n + 1), Created: time.Unix(1e9, 0).UTC(), Locking: chain.LockingQEMU, Requested: chain.ModeAuto,
	}
	if !h.Created.IsZero() {
		man.Created = h.Created.UTC()
	}
	d := chain.Disk{
		Name: "vda", Size: size, Source: chain.Source{Path: "/vm/a.raw", Format: "raw"},
		Requested: chain.ModeAuto, Mode: chain.ModeFull, Detection: chain.DetectionNone, NoBitmapReason: "raw", Maps: maps,
	}
	if !full {
		base := h.Checkpoints[n-1]
		d.Mode, d.Detection, d.IncrementalFrom = chain.ModeIncremental, chain.DetectionContent, base.Ref()
		d.Maps = append(d.Maps, base.Disks[0].Maps...)
		man.Parent = base.Ref()
	}
	man.Disks = []chain.Disk{d}
	if err := h.Repo.Commit(ctx, man); err != nil {
		h.t.Fatal(err)
	}
	h.Checkpoints = append(h.Checkpoints, man)
	return man
}

// Random makes a chain of n checkpoints of a disk that changes in size, too.
func (h *History) Random(r *rand.Rand, n int, size int64) {
	content := make([]byte, size)
	for range 6 {
		at := r.Int64N(size)
		Fill(r, content[at:min(size, at+r.Int64N(1<<20))])
	}
	h.Commit(content, true, nil)
	for i := 1; i < n; i++ {
		if r.IntN(4) == 0 {
			was := size
			size = max(4096, size+(r.Int64N(1<<20)-1<<19)/512*512)
			content = append(content[:min(was, size)], make([]byte, max(0, size-was))...)
		}
		if r.IntN(6) == 0 {
			at := r.Int64N(size)
			Fill(r, content[at:min(size, at+100<<10)])
			h.Commit(content, true, nil)
			continue
		}
		var changes []Change
		for at := int64(0); ; {
			start := at + r.Int64N(1<<20)/512*512
			end := min(start+512+r.Int64N(300<<10)/512*512, size)
			if start >= size {
				break
			}
			c := Change{Start: start, End: end, Zero: r.IntN(3) == 0}
			if c.Zero {
				clear(content[start:end])
			} else {
				Fill(r, content[start:end])
			}
			changes = append(changes, c)
			at = end
		}
		h.Commit(content, false, changes)
	}
}
