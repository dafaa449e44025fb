// SPDX-License-Identifier: Apache-2.0

package repair_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/chain/repair"
	"github.com/imgbackup/imgbackup/chain/transfer"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
	"github.com/imgbackup/imgbackup/view"
)

// soak is how many worlds of each kind are tried.
func soak(n int) uint64 {
	if more, err := strconv.Atoi(os.Getenv("IMGBACKUP_SOAK")); err == nil {
		n *= more
	}
	return uint64(n)
}

// world is a repository, and another with the same checkpoints.
type world struct {
	t    *testing.T
	h    *chaintest.History
	keys *chaintest.Keys // of both; nil: they are plain
	twin *chain.Repository
	rand *rand.Rand
}

func newWorld(t *testing.T, seed uint64, sectors int64) *world {
	t.Helper()
	w := &world{t: t, rand: rand.New(rand.NewPCG(seed, 11))}
	if seed%3 == 1 {
		w.keys = chaintest.NewKeys(t)
	}
	w.h = chaintest.NewHistoryOf(t, w.keys)
	w.h.Random(w.rand, 1+w.rand.IntN(4), (1+w.rand.Int64N(sectors))*512)
	var err error
	if w.twin, err = chaintest.Init(t.Context(), objstore.NewMem(), w.keys); err != nil {
		t.Fatal(err)
	}
	if _, err = transfer.Copy(t.Context(), w.h.Repo, w.twin, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	return w
}

func isManifest(key string) bool { return chain.ParseKey(key).Kind == chain.KeyManifest }

func isData(key string) bool { return chain.ParseKey(key).Kind == chain.KeyData }

// harm damages some objects; manifests, of which nothing tells that they are missing, are
// not removed.
func (w *world) harm(manifests bool) {
	for range 1 + w.rand.IntN(4) {
		chaintest.Harm(w.t, w.h.Repo.Store, w.rand, func(key string) bool { return isData(key) || manifests && isManifest(key) }, isData)
	}
}

func (w *world) repair(o repair.Options) *repair.Plan {
	w.t.Helper()
	p, err := repair.Make(w.t.Context(), w.h.Repo, o)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := p.Execute(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) fromTwin() repair.Options {
	return repair.Options{From: []repair.Source{{Name: "twin", Repo: w.twin}}}
}

// check wants the repository to be clean.
func (w *world) check() *check.Report {
	w.t.Helper()
	r, err := check.Run(w.t.Context(), w.h.Repo, check.Options{ReadData: true})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// read reads a checkpoint, as a restore does: with zeros where lose is told so, or strictly
// without it.
func read(ctx context.Context, repo *chain.Repository, name string, lose func(chain.Lost)) ([]byte, error) {
	m, err := repo.Manifest(ctx, "web", name)
	if err != nil {
		return nil, err
	}
	reader := view.NewReader(ctx, repo, view.Options{Lose: lose})
	defer reader.Close()
	d, err := reader.Open(ctx, &m.Disks[0])
	if err != nil {
		return nil, err
	}
	got := make([]byte, d.Size())
	return got, d.ReadAt(ctx, got, 0)
}

// whole wants each checkpoint to read as it was.
func (w *world) whole() {
	w.t.Helper()
	for i, m := range w.h.Checkpoints {
		got, err := read(w.t.Context(), w.h.Repo, m.Checkpoint, nil)
		if err != nil || !bytes.Equal(got, w.h.Want[i]) {
			w.t.Fatalf("checkpoint %s: %v", m.Checkpoint, err)
		}
	}
}

// Whatever is damaged, another repository that has it all heals it.
func TestRepairFromTwin(t *testing.T) {
	t.Parallel()
	for seed := range soak(10) {
		w := newWorld(t, seed, 3<<10)
		w.harm(true)
		p := w.repair(w.fromTwin())
		if r := w.check(); len(r.Findings) > 0 || len(r.Lost) > 0 || !p.Whole() {
			t.Fatalf("seed %d: %+v, after %+v", seed, r.Findings, p.Actions)
		}
		w.whole()
		if p = w.repair(w.fromTwin()); !p.Nothing() {
			t.Fatalf("seed %d: there is still something to do: %+v", seed, p)
		}
	}
}

// Without another repository, each checkpoint restores to the truth outside of what is
// listed, all that is listed is recorded, and nothing that checkpoints need is damaged any
// more. What is lost comes back when there is a repository that has it.
func TestRepairAlone(t *testing.T) {
	t.Parallel()
	lost := 0
	for seed := range soak(16) {
		w := newWorld(t, seed, 3<<10)
		before := make([]bool, len(w.h.Checkpoints))
		w.harm(false)
		for i, m := range w.h.Checkpoints {
			_, err := read(t.Context(), w.h.Repo, m.Checkpoint, nil)
			before[i] = err == nil
		}
		p := w.repair(repair.Options{})
		for i, m := range w.h.Checkpoints {
			got, err := read(t.Context(), w.h.Repo, m.Checkpoint, nil)
			if err == nil && bytes.Equal(got, w.h.Want[i]) {
				continue
			}
			if before[i] || err == nil {
				t.Fatalf("seed %d: checkpoint %s could be read, and is %v now", seed, m.Checkpoint, err)
			}
			var met []chain.Lost
			got, err = read(t.Context(), w.h.Repo, m.Checkpoint, func(l chain.Lost) { met = append(met, l) })
			if err != nil {
				t.Fatal(err)
			}
			now, err := w.h.Repo.Manifest(t.Context(), "web", m.Checkpoint)
			if err != nil || now.Revision < 2 || len(met) != len(now.Disks[0].Lost) || len(met) == 0 {
				t.Fatalf("seed %d: %s has revision %d, met %v, recorded %v: %v", seed, m.Checkpoint, now.Revision, met, now.Disks[0].Lost, err)
			}
			if !slices.ContainsFunc(p.Lost, func(l repair.Lost) bool { return l.Checkpoint == m.Checkpoint }) {
				t.Fatalf("seed %d: the plan does not say that %s loses something: %+v", seed, m.Checkpoint, p)
			}
			want := bytes.Clone(w.h.Want[i])
			for _, l := range met {
				lost++
				clear(want[l.Offset:l.End()])
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("seed %d: what is left of %s is not the truth, or not all that is lost is zeros", seed, m.Checkpoint)
			}
		}
		for _, f := range w.check().Findings {
			if f.Kind == check.KindPack && len(f.Affects) > 0 || f.Kind == check.KindMap && len(f.Affects) > 0 {
				t.Fatalf("seed %d: still %+v", seed, f)
			}
		}
		w.repair(w.fromTwin())
		w.whole()
		if r := w.check(); len(r.Lost) > 0 {
			t.Fatalf("seed %d: still lost: %+v", seed, r.Lost)
		}
	}
	if lost == 0 {
		t.Error("nothing was ever lost")
	}
}

// disk is an image of one state.
type disk []byte

func (d disk) ReadAt(_ context.Context, p []byte, off int64) error {
	copy(p, d[off:])
	return nil
}

// An image that still has the bytes of a chunk gives it back, and one that has others does
// not.
func TestRepairFromImage(t *testing.T) {
	t.Parallel()
	found := 0
	for seed := range soak(6) {
		w := newWorld(t, seed, 3<<10)
		isPack := func(key string) bool {
			prefix, _, ok := archive.ParseKey(key)
			return ok && prefix == archive.PackPrefix
		}
		for range 2 {
			chaintest.Harm(t, w.h.Repo.Store, w.rand, isPack, isPack)
		}
		o := repair.Options{}
		for i := range w.h.Want {
			data := w.h.Want[i]
			o.Images = append(o.Images, repair.Image{Disk: "vda", Name: "image", Size: int64(len(data)), Reader: disk(data)})
		}
		other := bytes.Repeat([]byte{9}, 4<<20)
		o.Images = append(o.Images, repair.Image{Disk: "vda", Name: "other", Size: int64(len(other)), Reader: disk(other)})
		p := w.repair(o)
		if !p.Whole() {
			t.Fatalf("seed %d: %+v", seed, p)
		}
		for _, a := range p.Actions {
			found += a.Found
		}
		w.whole()
	}
	if found == 0 {
		t.Error("no chunk was ever found")
	}
}

// breakLeases says that who has a lease has ended: this process has not, and only crashed.
func (w *world) breakLeases() {
	w.t.Helper()
	leases, _, err := w.h.Repo.Leases(w.t.Context())
	for _, l := range leases {
		err = errors.Join(err, w.h.Repo.BreakLease(w.t.Context(), l))
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

var errCrash = errors.New("crashed")

// A repair that is cut off at any operation harms nothing that could be read, and the next
// one does the rest.
func TestRepairCrashes(t *testing.T) {
	t.Parallel()
	for seed := range soak(1) {
		for _, alone := range []bool{false, true} {
			ops := 1
			for crash := 0; crash < ops; crash++ {
				w := newWorld(t, seed, 1<<10)
				w.harm(!alone)
				o := w.fromTwin()
				if alone {
					o = repair.Options{}
				}
				readable := make([]bool, len(w.h.Checkpoints))
				for i, m := range w.h.Checkpoints {
					_, err := read(t.Context(), w.h.Repo, m.Checkpoint, nil)
					readable[i] = err == nil
				}
				plain := w.h.Repo
				store := objstoretest.NewFaulty(t, plain.Store)
				broken := *plain
				broken.Store = store
				p, err := repair.Make(t.Context(), &broken, o)
				if err != nil {
					t.Fatal(err)
				}
				before := store.Count()
				if crash > 0 || ops > 1 {
					store = objstoretest.NewFaulty(t, plain.Store, objstoretest.Fault{After: crash, Err: errCrash})
				}
				broken.Store = store
				_, err = p.Execute(t.Context())
				if ops == 1 { // the first time nothing fails, to count
					if err != nil {
						t.Fatal(err)
					}
					ops = store.Count() - before
					crash = -1
					continue
				}
				if err == nil && crash < ops-2 { // but to give back the lease
					t.Fatalf("seed %d: operation %d of %d failed, and nobody said so", seed, crash, ops)
				}
				w.breakLeases()
				for i, m := range w.h.Checkpoints {
					got, err := read(t.Context(), plain, m.Checkpoint, nil)
					if readable[i] && (err != nil || !bytes.Equal(got, w.h.Want[i])) {
						t.Fatalf("seed %d: crashed at operation %d of %d, and %s cannot be read any more: %v", seed, crash, ops, m.Checkpoint, err)
					}
				}
				p = w.repair(o)
				w.repair(w.fromTwin())
				w.whole()
				if alone {
					continue
				}
				if r := w.check(); len(r.Findings) > 0 {
					t.Fatalf("seed %d: crashed at operation %d of %d: %+v, after %+v", seed, crash, ops, r.Findings, p.Actions)
				}
			}
			if ops < 5 {
				t.Fatalf("only %d operations", ops)
			}
		}
	}
}
