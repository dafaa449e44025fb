// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

// hiding leaves objects out of the listings with some prefixes only.
type hiding struct {
	objstore.Store
	hidden func(prefix, key string) bool
}

func (h *hiding) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	hidden := func(key string) bool { return h.hidden(prefix, key) }
	return (&objstoretest.Hiding{Store: h.Store, Hidden: hidden}).List(ctx, prefix)
}

// TestListingsThatLie: what a listing leaves out is found to be there, and nothing is
// deleted.
func TestListingsThatLie(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 4, 5)
	prune(t, w.Repo, Options{packSize: 64 << 10}) // it has nothing to do, and leaves no census
	w.forget(t, w.Repo, 0)
	prune(t, w.Repo, Options{packSize: 64 << 10})
	w.forget(t, w.Repo, 2)
	newest := chain.ManifestKey("web", w.Checkpoints[4].Checkpoint)
	parent := chain.ManifestKey("web", w.Checkpoints[3].Checkpoint)
	pack := keys(objects(t, w.Store), archive.PackPrefix)[0]
	for name, c := range map[string]struct {
		object string
		hidden func(prefix, key string) bool
	}{
		"the configuration":              {chain.ConfigKey, func(_, key string) bool { return key == chain.ConfigKey }},
		"one that only the census knows": {newest, func(_, key string) bool { return key == newest }},
		"a parent":                       {parent, func(_, key string) bool { return key == parent }},
		"from one listing":               {newest, func(prefix, key string) bool { return key == newest && prefix == "domains/" }},
		"from another one":               {newest, func(prefix, key string) bool { return key == newest && strings.HasPrefix(prefix, "domains/web/") }},
		"all of a domain":                {"", func(_, key string) bool { return strings.HasPrefix(key, "domains/") }},
		"a pack":                         {pack, func(_, key string) bool { return key == pack }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := copyStore(t, w.Store)
			before := objects(t, store)
			_, err := Run(t.Context(), w.open(t, &hiding{store, c.hidden}), Options{packSize: 64 << 10})
			var lie *chain.ListingError
			if !errors.As(err, &lie) || c.object != "" && lie.Object != c.object {
				t.Errorf("%v, want that %s is not listed", err, c.object)
			}
			if !maps.Equal(objects(t, store), before) {
				t.Error("it wrote")
			}
		})
	}
}

// TestUnreadable: what can't be read ends the prune, before anything is written.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 5, 4)
	w.forget(t, w.Repo, 1)
	all := objects(t, w.Store)
	manifest := chain.ManifestKey("web", w.Checkpoints[2].Checkpoint)
	needed, err := w.Repo.Manifest(t.Context(), "web", w.Checkpoints[2].Checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	aMap := archive.MapKey(needed.Disks[0].Maps[0].Name)
	overwrite := func(key, data string) func(*testing.T, objstore.Store) {
		return func(t *testing.T, s objstore.Store) {
			t.Helper()
			if err := s.Put(t.Context(), key, strings.NewReader(data), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(key string) func(*testing.T, objstore.Store) {
		return func(t *testing.T, s objstore.Store) {
			t.Helper()
			if err := s.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, harm := range map[string]func(*testing.T, objstore.Store){
		"damaged manifest": overwrite(manifest, "{}"),
		"damaged map":      overwrite(aMap, strings.Repeat("x", int(all[aMap]))),
		"missing map":      remove(aMap),
		"missing packs": func(t *testing.T, s objstore.Store) {
			t.Helper()
			for _, key := range keys(all, archive.PackPrefix) {
				remove(key)(t, s)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := copyStore(t, w.Store)
			harm(t, store)
			before := objects(t, store)
			_, err := Run(t.Context(), w.open(t, store), Options{packSize: 64 << 10})
			if !archive.IsDamage(err) {
				t.Errorf("%v is no damage", err)
			}
			if !maps.Equal(objects(t, store), before) {
				t.Error("it wrote")
			}
		})
	}
	for _, f := range []objstoretest.Fault{
		{Op: objstoretest.List, Prefix: "", Cut: 5, Err: errOutage},
		{Op: objstoretest.List, Prefix: "domains/", Cut: 1, Err: errOutage},
		{Op: objstoretest.Get, Prefix: manifest, Err: errOutage},
		{Op: objstoretest.Get, Prefix: archive.MapPrefix, After: 2, Err: errOutage},
		{Op: objstoretest.Get, Prefix: archive.IndexPrefix, Err: errOutage},
	} {
		store := copyStore(t, w.Store)
		before := objects(t, store)
		faulty := objstoretest.NewFaulty(t, store, f)
		if _, err := Run(t.Context(), w.open(t, faulty), Options{packSize: 64 << 10}); !errors.Is(err, errOutage) || archive.IsDamage(err) {
			t.Errorf("%s of %q fails: %v", f.Op, f.Prefix, err)
		}
		if !maps.Equal(objects(t, store), before) {
			t.Errorf("%s of %q fails: it wrote", f.Op, f.Prefix)
		}
	}
}

// TestDamagedPack: a pack of the right size with wrong bytes is not repacked, and told of;
// what else is unneeded goes.
func TestDamagedPack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 5)
	w.forget(t, w.Repo, 0, 1, 3)
	store := copyStore(t, w.Store)
	plan, err := Run(t.Context(), w.open(t, store), Options{DryRun: true})
	if err != nil || plan.Plan.Repack.Moves == 0 {
		t.Fatalf("%+v, %v", plan, err)
	}
	sizes := objects(t, store)
	damaged := make(map[string]string)
	for _, key := range keys(sizes, archive.PackPrefix) {
		data, err := objstore.ReadAll(t.Context(), store, key, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		for i := range len(data) - 1000 {
			data[i] ^= 1 // and not the table
		}
		damaged[key] = string(data)
		if err := store.Put(t.Context(), key, strings.NewReader(damaged[key]), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
			t.Fatal(err)
		}
	}
	result, err := Run(t.Context(), w.open(t, store), Options{packSize: 64 << 10})
	if !archive.IsDamage(err) || result.Repack.Moves != 0 {
		t.Errorf("%v, %+v", err, result)
	}
	after := objects(t, store)
	if lost := amounts(sizes, after); lost.Total() != result.Removed.Total() || lost.Total().Objects == 0 {
		t.Errorf("removed %+v, told %+v", lost, result.Removed)
	}
	for _, m := range w.Checkpoints {
		if w.forgotten[m.Checkpoint] {
			continue
		}
		m, err := w.open(t, store).Manifest(t.Context(), "web", m.Checkpoint)
		if err != nil {
			t.Fatal(err)
		}
		needs, err := w.open(t, store).Needs(t.Context(), m, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range needs {
			if _, there := after[o.Key]; !there {
				t.Errorf("%s is needed and gone", o.Key)
			}
		}
	}
}

// TestWaiting: what a writer at work may need stays, and the next prune, of any host,
// deletes it.
func TestWaiting(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 6, 3)
	w.forget(t, w.Repo, 0, 1, 2)
	lease, err := w.Repo.Hold(t.Context(), "backup of web")
	if err != nil {
		t.Fatal(err)
	}
	result := prune(t, w.Repo, Options{})
	if len(result.Waiting) != 1 || result.Waiting[0].UUID != lease.UUID() || result.Left.Total().Objects == 0 || len(result.Removed) > 0 {
		t.Fatalf("%+v", result)
	}
	var stands *chain.MarkStandsError
	if _, err := w.Repo.BeginRepair(t.Context()); !errors.As(err, &stands) || !strings.Contains(err.Error(), "imgbackup prune goes on") {
		t.Errorf("a repair beside what was left: %v", err)
	}
	again := prune(t, w.Repo, Options{})
	if len(again.Waiting) != 1 || again.Plan != nil {
		t.Fatalf("%+v", again)
	}
	if err := lease.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	last := prune(t, w.Repo, Options{})
	if last.Resumed.Total() != result.Left.Total() || len(last.Waiting) > 0 {
		t.Fatalf("%+v, before %+v", last, result)
	}
	for key := range objects(t, w.Store) {
		if _, _, data := archive.ParseKey(key); data {
			t.Errorf("%s is left", key)
		}
	}
}

// hooked calls do before a Put or after it.
type hooked struct {
	objstore.Store
	before, after func(key string)
	deleted       func(key string)
}

func (h *hooked) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if h.before != nil {
		h.before(key)
	}
	err := h.Store.Put(ctx, key, body, o)
	if h.after != nil && err == nil {
		h.after(key)
	}
	return err
}

func (h *hooked) Delete(ctx context.Context, key string) error {
	err := h.Store.Delete(ctx, key)
	if h.deleted != nil && err == nil {
		h.deleted(key)
	}
	return err
}

// TestNeededMeanwhile: what a checkpoint needs that was committed after the mark was
// made stays, with its index.
func TestNeededMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 7, 4)
	last := w.Checkpoints[3]
	m, err := w.Repo.Manifest(t.Context(), "web", last.Checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	whole := objects(t, w.Store)
	w.forget(t, w.Repo, 0, 1, 2, 3)
	committed := false
	h := &hooked{Store: w.Store}
	h.after = func(key string) {
		if key == chain.MarkKey && !committed {
			committed = true
			delete(w.forgotten, last.Checkpoint)
			again := *m
			again.UUID, again.Revision = chain.NewUUID(), 0
			if err := w.Repo.Commit(t.Context(), &again); err != nil {
				t.Error(err)
			}
		}
	}
	prune(t, w.open(t, h), Options{})
	if !committed {
		t.Fatal("there was no mark")
	}
	w.verify(t, w.Store)
	needs, err := w.Repo.Needs(t.Context(), m, nil)
	if err != nil {
		t.Fatal(err)
	}
	packs := 0
	for _, o := range needs {
		if strings.HasPrefix(o.Key, archive.PackPrefix) {
			packs++
		}
	}
	after := objects(t, w.Store)
	if n := len(keys(after, archive.IndexPrefix)); n == 0 || n > packs {
		t.Errorf("%d indexes of %d packs, there were %d", n, packs, len(keys(whole, archive.IndexPrefix)))
	}
}

// TestLostMark: who finds that the mark is another's by now sends no further delete, and
// neither does who was suspended, before it has looked.
func TestLostMark(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 8, 4)
	w.forget(t, w.Repo, 0, 1, 2, 3)
	var deleted []string
	h := &hooked{Store: w.Store}
	h.deleted = func(key string) {
		deleted = append(deleted, key)
		if m, err := w.Repo.Mark(t.Context()); err != nil || len(deleted) > 1 {
			t.Errorf("%v, deleted %q", err, deleted)
		} else if _, err := w.Repo.TakeOver(t.Context(), m); err != nil {
			t.Error(err)
		}
	}
	if _, err := Run(t.Context(), w.open(t, h), Options{batch: 1}); !errors.Is(err, ErrLostMark) || len(deleted) != 1 {
		t.Errorf("%v, deleted %q", err, deleted)
	}
	allHaveEnded(t, w.open(t, w.Store))
	var now, deletes, looks atomic.Int64
	h.deleted = func(string) {
		deletes.Add(1)
		now.Add(int64(time.Hour)) // and so it is at the next one
	}
	o := Options{now: func() time.Duration { return time.Duration(now.Load()) }}
	if _, err := Run(t.Context(), w.open(t, &counting{Store: h, looks: &looks}), o); err != nil {
		t.Error(err)
	}
	if deletes.Load() < batchDeletes || looks.Load() < deletes.Load()/batchDeletes {
		t.Errorf("%d looks for %d deletes that are an hour apart", looks.Load(), deletes.Load())
	}
}

// batchDeletes is how many deletes may be on their way at once.
const batchDeletes = 16

// counting counts how often the mark is read.
type counting struct {
	objstore.Store
	looks *atomic.Int64
}

func (c *counting) Get(ctx context.Context, key string, offset, length int64) (r io.ReadCloser, err error) {
	if key == chain.MarkKey {
		c.looks.Add(1)
	}
	return c.Store.Get(ctx, key, offset, length)
}

// TestMayNotDelete: where nothing may be deleted, that is told, and the mark ends.
func TestMayNotDelete(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 9, 3)
	w.forget(t, w.Repo, 2)
	faulty := objstoretest.NewFaulty(t, w.Store, objstoretest.Fault{Op: objstoretest.Delete, Prefix: "", Err: fs.ErrPermission})
	result, err := Run(t.Context(), w.open(t, faulty), Options{MaxUnused: Limit{Unlimited: true}})
	if !errors.Is(err, fs.ErrPermission) || result.Removed.Total().Objects != 0 {
		t.Errorf("%v, %+v", err, result)
	}
	if m, err := w.Repo.Mark(t.Context()); err != nil || m.Standing() {
		t.Errorf("the mark stands: %+v, %v", m, err)
	}
	w.verify(t, w.Store)
}

// TestFull: where there is no more room a repack fails, and leaves nothing that the next
// one does not remove.
func TestFull(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 5)
	w.forget(t, w.Repo, 0, 1, 3)
	full := errors.New("no space left on device")
	for _, prefix := range []string{archive.PackPrefix, archive.MapPrefix, archive.IndexPrefix, "domains/"} {
		store := copyStore(t, w.Store)
		faulty := objstoretest.NewFaulty(t, store, objstoretest.Fault{Op: objstoretest.Put, Prefix: prefix, After: 0, Err: full})
		if _, err := Run(t.Context(), w.open(t, faulty), Options{packSize: 64 << 10}); !errors.Is(err, full) {
			t.Errorf("%s: %v", prefix, err)
		}
		w.verify(t, store)
		if left := keys(objects(t, store), "leases/"); len(left) > 0 {
			t.Errorf("%s: %q are left", prefix, left)
		}
		if result := prune(t, w.open(t, store), Options{packSize: 64 << 10}); slices.ContainsFunc(result.Waiting, func(Waiting) bool { return true }) {
			t.Errorf("%s: %+v", prefix, result)
		}
		w.verify(t, store)
	}
}

// TestFullMakesRoom: where there is no room to repack, what is unneeded is deleted all the
// same, and then the repack finds the room that this made.
func TestFullMakesRoom(t *testing.T) {
	t.Parallel()
	for _, times := range []int32{1, 0} { // the disk is full once; for good
		w := newWorld(t, 3, 5)
		w.forget(t, w.Repo, 0, 1, 3)
		plan, err := Run(t.Context(), w.open(t, w.Store), Options{DryRun: true})
		if err != nil || plan.Plan.Repack.Moves == 0 || plan.Plan.Remove.Total().Objects == 0 {
			t.Fatalf("%+v, %v", plan, err)
		}
		full := &fullStore{Store: w.Store, times: times}
		result, err := Run(t.Context(), w.open(t, full), Options{packSize: 64 << 10})
		if refused := full.refused.Load(); refused == 0 || (times == 1) != (err == nil) || err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("full %d times: %v, %d puts refused", times, err, refused)
		}
		if n := result.Removed.Total().Objects; n < plan.Plan.Remove.Total().Objects {
			t.Errorf("full %d times: %d objects removed", times, n)
		}
		if (times == 1) != (result.Repack.Moves > 0) {
			t.Errorf("full %d times: %+v", times, result.Repack)
		}
		w.verify(t, w.Store)
	}
}

// fullStore has no room for packs, this many times; 0: never.
type fullStore struct {
	objstore.Store
	times   int32
	refused atomic.Int32
}

func (f *fullStore) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if strings.HasPrefix(key, archive.PackPrefix) && (f.refused.Add(1) <= f.times || f.times == 0) {
		return &fs.PathError{Op: "write", Path: key, Err: syscall.ENOSPC}
	}
	return f.Store.Put(ctx, key, body, o)
}

// TestDamagedMark: a mark that can't be read lets nobody write, and is told of, until a
// person says that its prune has ended.
func TestDamagedMark(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 7, 4)
	w.forget(t, w.Repo, 1)
	prune(t, w.Repo, Options{packSize: 64 << 10})
	w.forget(t, w.Repo, 2)
	mark, err := objstore.ReadAll(t.Context(), w.Store, chain.MarkKey, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(mark)
	flipped[len(flipped)/2] ^= 1
	for name, harmed := range map[string][]byte{"cut": mark[:100], "empty": {}, "flipped": flipped} {
		store := copyStore(t, w.Store)
		err := store.Put(t.Context(), chain.MarkKey, bytes.NewReader(harmed), objstore.PutOptions{Mode: objstore.Replace})
		if err != nil {
			t.Fatal(err)
		}
		repo, before := w.open(t, store), objects(t, store)
		report, err := check.Run(t.Context(), repo, check.Options{})
		if err != nil || len(report.Findings) != 1 || report.Findings[0].Kind != check.KindMark || report.Findings[0].Object != chain.MarkKey {
			t.Errorf("%s: %v, %+v", name, err, report.Findings)
		}
		for _, o := range []Options{{}, {DryRun: true}, {DryRun: true, TakeOver: true}} {
			if _, err := Run(t.Context(), repo, o); !archive.IsDamage(err) || !strings.Contains(err.Error(), "--take-over") {
				t.Errorf("%s, %+v: %v", name, o, err)
			}
		}
		err = repo.Under(t.Context(), "a writer", func(*chain.Hold) error { return nil })
		if !archive.IsDamage(err) || !strings.Contains(err.Error(), "--take-over") {
			t.Errorf("%s: a writer: %v", name, err)
		}
		if !maps.Equal(objects(t, store), before) {
			t.Errorf("%s: it wrote", name)
		}
		result := prune(t, repo, Options{TakeOver: true, packSize: 64 << 10})
		if result.Removed.Total().Objects == 0 {
			t.Errorf("%s: %+v", name, result)
		}
		if err := repo.Under(t.Context(), "a writer", func(*chain.Hold) error { return nil }); err != nil {
			t.Errorf("%s: a writer afterwards: %v", name, err)
		}
		w.verify(t, store)
	}
	if err := w.Repo.ReplaceDamagedMark(t.Context()); !errors.Is(err, chain.ErrMarkChanged) {
		t.Errorf("one that is sound: %v", err)
	}
}

// TestNoConditions: a store that ignores conditions is refused, and what it was asked
// leaves no mark behind, which would let nobody write.
func TestNoConditions(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 5)
	w.forget(t, w.Repo, 0, 1, 3)
	repo := w.open(t, ignoring{w.Store})
	if _, err := Run(t.Context(), repo, Options{MaxUnused: Limit{Unlimited: true}}); err == nil || !strings.Contains(err.Error(), "without looking") {
		t.Errorf("%v", err)
	}
	if _, err := w.Repo.Mark(t.Context()); !errors.Is(err, chain.ErrNoMark) {
		t.Errorf("a mark stands: %v", err)
	}
	w.verify(t, w.Store)
}

// ignoring replaces without looking at conditions.
type ignoring struct{ objstore.Store }

func (s ignoring) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	o.Old = nil
	return s.Store.Put(ctx, key, body, o)
}
