// SPDX-License-Identifier: Apache-2.0

package view

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
)

// isData reports whether an object is one that a disk is read from, or a bitmap or a file.
func isData(key string) bool {
	prefix, _, ok := archive.ParseKey(key)
	return ok && !strings.HasPrefix(prefix, archive.IndexPrefix)
}

// Whatever is damaged: what is not said to be lost is the truth, the rest is zeros or the
// truth, and something is lost wherever a strict reader fails.
func TestTolerantOfAnyDamage(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	met := 0
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 7))
		h := chaintest.NewHistory(t)
		h.Random(random, 1+random.IntN(4), (1+random.Int64N(3<<10))*512)
		for range 1 + random.IntN(3) {
			chaintest.Harm(t, h.Repo.Store, random, isData, isData)
		}
		for i, m := range h.Checkpoints {
			var mu sync.Mutex
			var lost []chain.Lost
			reader := NewReader(ctx, h.Repo, Options{Lose: func(l chain.Lost) {
				mu.Lock()
				defer mu.Unlock()
				lost = append(lost, l)
			}})
			d, err := reader.Open(ctx, &m.Disks[0])
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, d.Size())
			if err := d.ReadAt(ctx, got, 0); err != nil {
				t.Fatal(err)
			}
			reader.Close()
			truth := slices.Clone(got)
			copy(truth, h.Want[i])
			for _, l := range lost {
				for pos := l.Offset; pos < l.End(); pos++ {
					if got[pos] == 0 {
						truth[pos] = 0
					}
				}
			}
			if !bytes.Equal(got, truth) {
				t.Fatalf("seed %d, checkpoint %d: what is not lost is not the truth", seed, i)
			}
			strict := NewReader(ctx, h.Repo, Options{})
			s, err := strict.Open(ctx, &m.Disks[0])
			if err == nil {
				err = s.ReadAt(ctx, make([]byte, s.Size()), 0)
			}
			strict.Close()
			if (err != nil) != (len(lost) > 0) {
				t.Fatalf("seed %d, checkpoint %d: strictly %v, lost %v", seed, i, err, lost)
			}
			met += len(lost)
		}
	}
	if met == 0 {
		t.Error("nothing was ever lost")
	}
}

// What a manifest says to be lost is not given out by who was not asked to.
func TestLostIsNotRead(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	h := chaintest.NewHistory(t)
	content := bytes.Repeat([]byte{7}, 1<<20)
	h.Commit(content, true, nil)
	disk := h.Checkpoints[0].Disks[0]
	disk.Lost = []chain.Lost{{Offset: 4096, Length: 512}, {Offset: 8192, Length: 512}}
	reader := NewReader(ctx, h.Repo, Options{})
	defer reader.Close()
	d, err := reader.Open(ctx, &disk)
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < 16<<10; off += 512 {
		_, is := slices.BinarySearchFunc(disk.Lost, off, func(l chain.Lost, at int64) int { return int(l.Offset - at) })
		if err := d.ReadAt(ctx, make([]byte, 512), off); (err != nil) != is {
			t.Errorf("at %d: %v", off, err)
		}
	}
}

// TestLostIsNotZero: whoever skips what is told to be zeros reads what is lost all the same, and meets
// the error.
func TestLostIsNotZero(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	content := make([]byte, 1<<20)
	copy(content, bytes.Repeat([]byte{7}, 4096))
	h.Commit(content, true, nil)
	disk := h.Checkpoints[0].Disks[0]
	disk.Lost = []chain.Lost{{Offset: 65536, Length: 4096}, {Offset: 131072, Length: 512}}
	reader := NewReader(t.Context(), h.Repo, Options{})
	defer reader.Close()
	d, err := reader.Open(t.Context(), &disk)
	if err != nil {
		t.Fatal(err)
	}
	var zeros int64
	for run, err := range d.Zeros(t.Context(), 0, d.Size()) {
		if err != nil {
			t.Fatal(err)
		}
		zeros += run.Len()
		for _, l := range disk.Lost {
			if run.Start < l.End() && l.Offset < run.End {
				t.Errorf("bytes %d to %d are zeros, of which %d to %d are lost", run.Start, run.End, l.Offset, l.End())
			}
		}
	}
	if zeros == 0 {
		t.Error("nothing is zeros")
	}
}

// What either of two states has lost may have changed between them.
func TestLostMayHaveChanged(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	h := chaintest.NewHistory(t)
	content := bytes.Repeat([]byte{7}, 1<<20)
	h.Commit(content, true, nil)
	h.Commit(content, false, nil)
	var layouts [2]*Layout
	for i := range layouts {
		disk := h.Checkpoints[i].Disks[0]
		disk.Lost = []chain.Lost{{Offset: int64(i+1) << 16, Length: 512}}
		var err error
		if layouts[i], err = OpenLayout(ctx, h.Repo, &disk); err != nil {
			t.Fatal(err)
		}
	}
	changed, err := layouts[1].ChangedSince(ctx, layouts[0], 0, 100<<10).Collect()
	if err != nil || len(changed) != 1 || changed[0].Start != 1<<16 || changed[0].Len() != 512 {
		t.Errorf("%v, %v", changed, err)
	}
	changed, err = layouts[1].ChangedSince(ctx, layouts[0], 0, 1<<20).Collect()
	if err != nil || len(changed) != 2 {
		t.Errorf("%v, %v", changed, err)
	}
}
