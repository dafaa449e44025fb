// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// asked counts what a store is asked, by method and the first part of the key.
type asked struct {
	objstore.Store
	mu sync.Mutex
	n  map[string]int
}

func (a *asked) count(method, key string) {
	prefix, _, _ := strings.Cut(key, "/")
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n[method+" "+prefix]++
	a.n[method]++
}

func (a *asked) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	a.count("GET", key)
	return a.Store.Get(ctx, key, offset, length)
}

func (a *asked) Stat(ctx context.Context, key string) (objstore.Info, error) {
	a.count("HEAD", key)
	return a.Store.Stat(ctx, key)
}

func (a *asked) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	a.count("LIST", prefix)
	return a.Store.List(ctx, prefix)
}

// manyCheckpoints is a domain with a chain of qcow2 checkpoints in a repository that is far
// away, and n others.
type manyCheckpoints struct {
	*world
	store objstore.Store
	cache string
	n     int // of the chain
}

func newManyCheckpoints(t *testing.T, n int) *manyCheckpoints {
	m := &manyCheckpoints{world: newWorld(t, 1), store: objstore.NewMem(), cache: filepath.Join(t.TempDir(), "cache")}
	m.run("init")
	m.next()
	m.next()
	repo, err := chain.Open(t.Context(), m.store)
	if err != nil {
		t.Fatal(err)
	}
	first, err := repo.Manifest(t.Context(), domain, "c1")
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		other := *first
		other.Checkpoint, other.UUID = fmt.Sprintf("other%d", i), chain.NewUUID()
		other.Disks = append([]chain.Disk(nil), first.Disks...)
		other.Disks[0].Bitmap, other.Disks[0].NoBitmapReason, other.Disks[0].Granularity = "", "none", 0
		if err := repo.Commit(t.Context(), &other); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// run executes a command line, and returns what the store was asked.
func (m *manyCheckpoints) run(args ...string) map[string]int {
	m.Helper()
	a := &asked{Store: m.store, n: make(map[string]int)}
	o := m.runWith(program{cache: m.cache, wrap: func(objstore.Store) objstore.Store { return a }}, args...)
	if o.code != exitDone {
		m.Fatalf("imgbackup %v: exit status %d\n%s%s", args, o.code, o.out, o.err)
	}
	return a.n
}

// next makes the next checkpoint of the chain.
func (m *manyCheckpoints) next() map[string]int {
	m.Helper()
	mode := "auto"
	if m.n > 0 {
		mode = "incremental"
		m.guest("vda", fmt.Sprintf("write -P %d %dk 100k", m.n, 100*m.n))
	}
	m.n++
	return m.run(m.backup(fmt.Sprintf("c%d", m.n), "--mode", mode)...)
}

// What a backup and a listing read does not grow with the checkpoints that a domain has:
// what was known stays so, by one listing.
func TestManyCheckpointsAreKnown(t *testing.T) {
	t.Parallel()
	of := make(map[int]map[string]int)
	for _, n := range []int{10, 2000} {
		m := newManyCheckpoints(t, n)
		if first := m.next(); first["GET domains"] < n {
			t.Errorf("%d checkpoints: only %d were read to begin with", n, first["GET domains"])
		}
		of[n] = m.next()
		for what, most := range map[string]int{"GET domains": 5, "GET maps": 0, "GET bitmaps": 0, "GET index": 0, "LIST domains": 2} {
			if got := of[n][what]; got > most {
				t.Errorf("%d checkpoints: an incremental asks %d × %s, more than %d", n, got, what, most)
			}
		}
		m.run("list", domain)
		for _, args := range [][]string{{"list", domain}, {"list"}, {"show", domain}} {
			got := m.run(args...)
			want := 2 // the checkpoints and the drills
			if len(args) == 1 {
				want = 3 // which domains there are, and then which checkpoints
			}
			// The configuration, and when the domain was last seen to be unchanged.
			if got["GET"] != 2 || got["LIST"] != want || got["HEAD"] != 0 {
				t.Errorf("%d checkpoints: %q asks %v", n, args, got)
			}
		}
	}
	if !maps.Equal(of[10], of[2000]) {
		t.Errorf("an incremental beside 10 checkpoints asks %v, beside 2000 %v", of[10], of[2000])
	}
}

// Likewise with the entity tags of real servers.
func TestCheckpointsAreKnownInS3(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			w := newWorldIn(t, 1, newBucket(s3test.Start(t, kind)))
			run := func(args ...string) *s3test.Proxy {
				t.Helper()
				proxy := w.bucket.behind(t)
				if o := w.outcome(w.child(nil, args...)); o.code != exitDone {
					t.Fatalf("imgbackup %q: exit status %d: %s", args, o.code, o.err)
				}
				return proxy
			}
			run(w.backup("c1")...)
			w.guest("vda", "write -P 4 64k 100k")
			run(w.backup("c2", "--mode", "incremental")...)
			run("list", domain)
			for range 2 {
				p := run("list", domain)
				if gets, lists := p.Count("GET"), p.Count("LIST"); gets != 2 || lists != 2 { // the checkpoints and the drills
					t.Errorf("%d requests to read and %d to list: %q", gets, lists, p.Methods())
				}
			}
		})
	}
}

// A map that the repository has lost is not built on, though this machine still has it.
func TestLostMapIsNotBuiltOn(t *testing.T) {
	t.Parallel()
	m := newManyCheckpoints(t, 0)
	for info, err := range m.store.List(t.Context(), archive.MapPrefix) {
		if err == nil {
			err = m.store.Delete(t.Context(), info.Key)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	m.guest("vda", "write -P 77 200k 100k")
	m.look("vda")
	m.run(m.backup("after")...)
	m.cache = "off"
	out := filepath.Join(m.dir, "out")
	m.run("restore", domain, "--checkpoint", "after", "--output", out)
	if m.sum(filepath.Join(out, "vda.raw")) != m.now["vda"] {
		t.Error("the checkpoint after it restores to other bytes")
	}
}
