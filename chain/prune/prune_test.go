// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/objstore"
)

// soak is how many random worlds there are; IMGBACKUP_SOAK says more.
func soak(n int) uint64 {
	if more, err := strconv.Atoi(os.Getenv("IMGBACKUP_SOAK")); err == nil {
		return uint64(n * more)
	}
	return uint64(n)
}

// TestRandom: whatever is forgotten, what is left reads as before, and the packs hold
// what it reads and nothing more; a second prune has nothing to do.
func TestRandom(t *testing.T) {
	t.Parallel()
	var moved atomic.Int64
	t.Cleanup(func() {
		if moved.Load() == 0 {
			t.Error("nothing was ever moved")
		}
	})
	for seed := range soak(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			var keys *chaintest.Keys
			if seed%5 == 3 {
				keys = chaintest.NewKeys(t)
			}
			w := newWorldOf(t, seed, 8, 2<<20, keys)
			r := rand.New(rand.NewPCG(seed, 2))
			for round := range 3 {
				for n := range w.Checkpoints {
					if !w.forgotten[w.Checkpoints[n].Checkpoint] && r.IntN(3) == 0 && len(w.forgotten) < len(w.Checkpoints)-1 {
						w.forget(t, w.Repo, n)
					}
				}
				plan := prune(t, w.Repo, Options{DryRun: true})
				before := objects(t, w.Store)
				result := prune(t, w.Repo, Options{packSize: 64 << 10})
				w.verify(t, w.Store)
				after := objects(t, w.Store)
				// (Groups that are encrypted are moved whole.)
				if got, want := packBytes(after), w.readBytes(t); got != want && keys == nil {
					t.Fatalf("round %d: packs have %d bytes, %d are read", round, got, want)
				}
				w.checkIndexes(t, after)
				moved.Add(result.Repack.Moves)
				if fmt.Sprint(plan.Plan) != fmt.Sprint(result.Plan) {
					t.Errorf("planned was\n%+v, then\n%+v", plan.Plan, result.Plan)
				}
				if got := amounts(before, after); got.Total() != result.Removed.Total() {
					t.Errorf("removed %+v, the result says %+v", got, result.Removed)
				}
				again := prune(t, w.Repo, Options{packSize: 64 << 10})
				if !maps.Equal(after, objects(t, w.Store)) || again.Removed.Total().Objects != 0 || again.Repack.Packs != 0 {
					t.Fatalf("the second prune did something: %+v", again)
				}
			}
		})
	}
}

// checkIndexes: every pack is in some index.
func (w *world) checkIndexes(t *testing.T, all map[string]int64) {
	t.Helper()
	var listed []string
	for _, key := range keys(all, archive.IndexPrefix) {
		_, err := archive.ReadIndex(t.Context(), w.Repo.Store, key, archive.Indexing{}, func(pack archive.Ref, chunks []archive.PackChunk) error {
			listed = append(listed, archive.PackKey(pack.Name))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(listed)
	for _, key := range keys(all, archive.PackPrefix) {
		if _, found := slices.BinarySearch(listed, key); !found {
			t.Errorf("%s is in no index", key)
		}
	}
}

func packBytes(all map[string]int64) (sum int64) {
	for _, key := range keys(all, archive.PackPrefix) {
		sum += all[key]
	}
	return sum
}

// amounts are the objects that were there before and are gone.
func amounts(before, after map[string]int64) (a Amounts) {
	for key, size := range before {
		prefix, _, ok := archive.ParseKey(key)
		if _, there := after[key]; !there && (ok || strings.HasPrefix(key, objstore.ProbePrefix)) {
			a.add(kindName(prefix), 1, size)
		}
	}
	return a
}

// readBytes is the length of packs of just the frames that checkpoints read.
func (w *world) readBytes(t *testing.T) int64 {
	t.Helper()
	frames := make(map[archive.Ref]map[int64]int32)
	for _, m := range w.Checkpoints {
		if w.forgotten[m.Checkpoint] {
			continue
		}
		m, err := w.Repo.Manifest(t.Context(), "web", m.Checkpoint)
		if err != nil {
			t.Fatal(err)
		}
		opened, err := chain.ReplayMaps(t.Context(), w.Repo, &m.Disks[0])
		if err != nil {
			t.Fatal(err)
		}
		for e, err := range archive.Replay(t.Context(), opened, 0, m.Disks[0].Size) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Zero {
				continue
			}
			if frames[e.Pack] == nil {
				frames[e.Pack] = make(map[int64]int32)
			}
			frames[e.Pack][e.FrameOffset] = e.FrameLength
		}
	}
	var sum int64
	for _, f := range frames {
		var bytes int64
		for _, n := range f {
			bytes += int64(n)
		}
		sum += archive.PackLength(bytes, len(f))
	}
	return sum
}

// TestEveryKind: of each kind what no checkpoint needs goes, and nothing else.
func TestEveryKind(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, 3)
	want := objects(t, w.Store)
	garbage := map[string]string{
		"packs": archive.PackPrefix, "maps": archive.MapPrefix, "bitmaps": archive.BitmapPrefix,
		"files": archive.FilePrefix,
	}
	for kind, prefix := range garbage {
		for i := range 3 {
			data := fmt.Sprint(kind, i)
			put(t, w.Store, archive.ObjectKey(prefix, archive.Sum([]byte(data))), data)
		}
	}
	put(t, w.Store, objstore.ProbePrefix+"x", "probe")
	put(t, w.Store, "unknown/object", "of somebody else")
	want["unknown/object"] = int64(len("of somebody else"))
	result := prune(t, w.Repo, Options{MaxUnused: Limit{Unlimited: true}})
	var kinds []string
	for _, a := range result.Removed {
		kinds = append(kinds, fmt.Sprint(a.Kind, a.Objects))
	}
	if !slices.Equal(kinds, []string{"bitmaps3", "files3", "maps3", "packs3", "probes1"}) {
		t.Errorf("removed %v", kinds)
	}
	after := objects(t, w.Store)
	for key := range after {
		if strings.HasPrefix(key, "prune/") {
			delete(after, key)
		}
	}
	if !maps.Equal(after, want) {
		t.Errorf("left are %v, want %v", keys(after, ""), keys(want, ""))
	}
	w.verify(t, w.Store)
}

func put(t *testing.T, store objstore.Store, key, data string) {
	t.Helper()
	if err := store.Put(t.Context(), key, strings.NewReader(data), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}
