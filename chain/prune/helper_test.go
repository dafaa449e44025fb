// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/objstore"
)

var errOutage = errors.New("the store is away")

// world is a repository whose checkpoints are known.
type world struct {
	*chaintest.History
	keys      *chaintest.Keys // nil: it is plain
	forgotten map[string]bool
}

func newWorld(t *testing.T, seed uint64, checkpoints int) *world {
	t.Helper()
	return newSmallWorld(t, seed, checkpoints, 2<<20)
}

func newSmallWorld(t *testing.T, seed uint64, checkpoints int, size int64) *world {
	t.Helper()
	return newWorldOf(t, seed, checkpoints, size, nil)
}

// newWorldOf is a world whose repository has keys; nil: it is plain.
func newWorldOf(t *testing.T, seed uint64, checkpoints int, size int64, keys *chaintest.Keys) *world {
	t.Helper()
	w := &world{History: chaintest.NewHistoryOf(t, keys), keys: keys, forgotten: make(map[string]bool)}
	w.Random(rand.New(rand.NewPCG(seed, 1)), checkpoints, size)
	return w
}

// forget forgets the checkpoints with these numbers.
func (w *world) forget(t *testing.T, repo *chain.Repository, numbers ...int) {
	t.Helper()
	for _, n := range numbers {
		m, err := repo.Manifest(t.Context(), "web", w.Checkpoints[n].Checkpoint)
		if err == nil {
			err = chaintest.Forget(t.Context(), repo, m)
		}
		if err != nil {
			t.Fatal(err)
		}
		w.forgotten[w.Checkpoints[n].Checkpoint] = true
	}
}

// verify proves that each checkpoint that is not forgotten reads as it was stored, and
// that the repository is whole.
func (w *world) verify(t *testing.T, store objstore.Store) {
	t.Helper()
	repo := w.open(t, store)
	for i, m := range w.Checkpoints {
		if w.forgotten[m.Checkpoint] {
			continue
		}
		m, err := repo.Manifest(t.Context(), m.Domain, m.Checkpoint)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content(t, repo, &m.Disks[0]), w.Want[i]) {
			t.Fatalf("checkpoint %s reads otherwise", m.Checkpoint)
		}
	}
	report, err := check.Run(t.Context(), repo, check.Options{ReadData: true, Workers: 2})
	if err != nil || len(report.Findings) > 0 {
		t.Fatalf("%v, %+v", err, report.Findings)
	}
}

// content reads a disk.
func content(t *testing.T, repo *chain.Repository, d *chain.Disk) []byte {
	t.Helper()
	ms, err := chain.ReplayMaps(t.Context(), repo, d)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, d.Size)
	var entries []archive.Entry
	for e, err := range archive.Replay(t.Context(), ms, 0, d.Size) {
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	err = archive.NewFetcher(repo.Store, archive.FetcherOptions{}).Slices(t.Context(), entries, func(i int, data []byte, _ bool) error {
		copy(out[entries[i].Offset:], data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// objects are the sizes of all objects, by key.
func objects(t *testing.T, store objstore.Store) map[string]int64 {
	t.Helper()
	all := make(map[string]int64)
	for info, err := range store.List(context.Background(), "") {
		if err != nil {
			t.Fatal(err)
		}
		all[info.Key] = info.Size
	}
	return all
}

// keys are those with a prefix, sorted.
func keys(all map[string]int64, prefix string) []string {
	found := slices.DeleteFunc(slices.Collect(maps.Keys(all)), func(key string) bool { return !strings.HasPrefix(key, prefix) })
	slices.Sort(found)
	return found
}

// prune prunes, and must not fail.
func prune(t *testing.T, repo *chain.Repository, o Options) *Result {
	t.Helper()
	result, err := Run(t.Context(), repo, o)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// copyStore returns a store in memory with the same objects.
func copyStore(t *testing.T, from objstore.Store) objstore.Store {
	t.Helper()
	to := objstore.NewMem()
	for key := range objects(t, from) {
		data, err := objstore.ReadAll(t.Context(), from, key, 1<<30)
		if err == nil {
			err = to.Put(t.Context(), key, bytes.NewReader(data), objstore.PutOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// open opens the repository in a store, with its keys.
func (w *world) open(t *testing.T, store objstore.Store) *chain.Repository {
	t.Helper()
	repo, err := w.keys.Whole(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	return repo
}
