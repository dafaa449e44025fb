// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// history is a repository with a chain of checkpoints of one disk, and what each
// of them holds.
type history struct {
	t     testing.TB
	repo  *chain.Repository
	store *counting
	ms    []*chain.Manifest
	want  [][]byte
}

// counting counts what is asked of a store, by key.
type counting struct {
	objstore.Store
	mu   sync.Mutex
	gets map[string]int
	read int64 // bytes of packs
}

func (c *counting) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	c.mu.Lock()
	c.gets[key]++
	if strings.HasPrefix(key, "packs/") {
		c.read += length
	}
	c.mu.Unlock()
	return c.Store.Get(ctx, key, offset, length)
}

// of is the number of reads of objects whose key begins with prefix.
func (c *counting) of(prefix string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, m := range c.gets {
		if strings.HasPrefix(key, prefix) {
			n += m
		}
	}
	return n
}

func newHistory(t testing.TB) *history {
	store := &counting{Store: objstore.NewMem(), gets: make(map[string]int)}
	repo, err := chain.Init(context.Background(), store)
	if err != nil {
		t.Fatal(err)
	}
	return &history{t: t, repo: repo, store: store}
}

// fill gives a range content that nothing else has.
func fill(r *rand.Rand, p []byte) {
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(r.Uint32())
	}
	rand.NewChaCha8(seed).Read(p)
}

// isZero tells whether p holds nothing but zeros.
func isZero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}

// change is a range that a checkpoint stores anew.
type change struct {
	start, end int64
	zero       bool
}

// commit archives content as the next checkpoint: all of it, or the changes.
func (h *history) commit(content []byte, full bool, changes []change) *chain.Manifest {
	h.t.Helper()
	ctx := context.Background()
	w, err := archive.NewWriter(ctx, h.repo.Store, archive.WriterOptions{Workers: 1})
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
			if !isZero(content[pos:end]) {
				changes = append(changes, change{start: pos, end: end})
			}
		}
	}
	for _, c := range changes {
		if c.zero {
			err = m.Zero(c.start, c.end-c.start)
		} else {
			for pos := c.start; pos < c.end && err == nil; {
				end := min(pos-pos%archive.GridSize+archive.GridSize, c.end)
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
	n := len(h.ms)
	man := &chain.Manifest{
		Kind: chain.KindArchive, Domain: "web", Host: chain.Host{Name: "h"}, Checkpoint: "c" + string(rune('a'+n)), UUID: chain.NewUUID(),
		Sequence: int64(n + 1), Created: time.Unix(1e9, 0).UTC(), Locking: chain.LockingQEMU, Requested: chain.ModeAuto,
	}
	d := chain.Disk{
		Target: "vda", Size: size, Source: chain.Source{Path: "/vm/a.raw", Format: "raw"},
		Requested: chain.ModeAuto, Mode: chain.ModeFull, Detection: chain.DetectionNone, NoBitmapReason: "raw", Maps: maps,
	}
	if !full {
		base := h.ms[n-1]
		d.Mode, d.Detection, d.IncrementalFrom = chain.ModeIncremental, chain.DetectionContent, base.Ref()
		d.Maps = append(d.Maps, base.Disks[0].Maps...)
		man.Parent = base.Ref()
	}
	man.Disks = []chain.Disk{d}
	if err := h.repo.Commit(ctx, man); err != nil {
		h.t.Fatal(err)
	}
	h.ms = append(h.ms, man)
	h.want = append(h.want, slices.Clone(content))
	return man
}

// random makes a chain of n checkpoints of a disk that changes in size, too.
func (h *history) random(r *rand.Rand, n int, size int64) {
	content := make([]byte, size)
	for range 6 {
		at := r.Int64N(size)
		fill(r, content[at:min(size, at+r.Int64N(1<<20))])
	}
	h.commit(content, true, nil)
	for i := 1; i < n; i++ {
		if r.IntN(4) == 0 {
			was := size
			size = max(4096, size+(r.Int64N(1<<20)-1<<19)/512*512)
			content = append(content[:min(was, size)], make([]byte, max(0, size-was))...)
		}
		if r.IntN(6) == 0 {
			at := r.Int64N(size)
			fill(r, content[at:min(size, at+100<<10)])
			h.commit(content, true, nil)
			continue
		}
		var changes []change
		for at := int64(0); ; {
			start := at + r.Int64N(1<<20)/512*512
			end := min(start+512+r.Int64N(300<<10)/512*512, size)
			if start >= size {
				break
			}
			c := change{start: start, end: end, zero: r.IntN(3) == 0}
			if c.zero {
				clear(content[start:end])
			} else {
				fill(r, content[start:end])
			}
			changes = append(changes, c)
			at = end
		}
		h.commit(content, false, changes)
	}
}

// open opens checkpoint i.
func (h *history) open(t testing.TB, i int, o Options) *Checkpoint {
	t.Helper()
	c, err := Open(context.Background(), h.repo, h.ms[i], o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}
