// SPDX-License-Identifier: Apache-2.0

package lock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/retry"
	"github.com/imgbackup/imgbackup/objstore/s3"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

const days = 6 // so 2 slices, and 15 days in all

// world is a locked repository, and a clock.
type world struct {
	*chaintest.History
	t      *testing.T
	kind   s3test.Kind
	server *s3.Store
	now    time.Time
}

func newWorld(t *testing.T, server *s3test.Server) *world {
	t.Helper()
	store, err := s3.Open(server.Config(server.LockedBucket(), "p"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	w := &world{t: t, kind: server.Kind(), server: store, now: time.Now()}
	o := chain.InitOptions{Lock: &chain.ObjectLock{Mode: "compliance", Days: days}, SingleWriter: w.kind == s3test.VersityGW}
	w.History = chaintest.NewHistoryIn(t, retry.New(store, retry.Options{}), o)
	w.Created = w.now
	return w
}

func (w *world) lock() *Result {
	w.t.Helper()
	r, err := Run(w.t.Context(), w.Repo, Options{Now: func() time.Time { return w.now }})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// safe sees that all that a checkpoint needs is kept until it is as old as was promised.
func (w *world) safe(m *chain.Manifest) {
	w.t.Helper()
	objects, err := w.Repo.Needs(w.t.Context(), m, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	objects = append(objects, chain.Object{Key: chain.ManifestKey(m.Domain, m.Checkpoint)}, chain.Object{Key: chain.ConfigKey})
	for _, o := range objects {
		for v, err := range w.server.ListVersions(w.t.Context(), o.Key, "") {
			if err != nil {
				w.t.Fatal(err)
			}
			if v.Marker {
				continue
			}
			until, _, err := w.server.Retained(w.t.Context(), o.Key, v.ID)
			told := !until.IsZero() // versitygw does not tell of what its rule keeps, and lets that be shortened
			if rule := v.Stored.Add(15 * 24 * time.Hour); !told && w.kind == s3test.VersityGW {
				until = rule
			}
			if err != nil || until.Before(m.Created.Add(days*24*time.Hour-time.Minute)) || until.Before(w.now) {
				w.t.Errorf("%s needs %s, which is kept until %s (now %s), %v", m.Checkpoint, o.Key, until, w.now, err)
			}
			if err := w.server.DeleteVersion(w.t.Context(), o.Key, v.ID); err == nil {
				w.t.Errorf("%s could be removed", o.Key)
			}
			if !told {
				continue
			}
			for _, how := range []objstore.Retention{objstore.Compliance, objstore.Governance} {
				if err := w.server.Retain(w.t.Context(), o.Key, v.ID, time.Now().Add(time.Hour), how); err == nil {
					w.t.Errorf("%s: its time could be shortened, as %s", o.Key, how)
				}
			}
		}
	}
}

// TestLock: night after night, and after nights without it, what young checkpoints need is
// kept till they are old, by few requests; whoever has all rights can't remove any of it.
func TestLock(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, s3test.StartVersioned(t, kind))
			content := make([]byte, 3<<20)
			chaintest.Fill(rng(), content)
			first := w.Commit(content, true, nil)
			if r := w.lock(); r.Checkpoints != 1 || r.Extended != 0 || r.Needed < 4 {
				t.Fatalf("of what was just stored: %+v", r)
			}
			w.safe(first)
			total := 0
			for _, nights := range []int{1, 1, 1, 1, 1, 7} {
				w.now = w.now.Add(time.Duration(nights) * 24 * time.Hour)
				w.Created = w.now
				m := w.Commit(content, false, []chaintest.Change{{Start: 0, End: 4096, Zero: true}})
				total += w.lock().Extended
				w.safe(m)
			}
			if total == 0 {
				t.Error("nothing was kept on")
			}
			w.covered(first)
			if err := w.server.SetLockRule(t.Context(), objstore.LockRule{Days: 1}); err != nil {
				t.Fatal(err)
			}
			if _, err := Run(t.Context(), w.Repo, Options{}); err == nil || !strings.Contains(err.Error(), "rule") {
				t.Errorf("with a shorter rule: %v", err)
			}
		})
	}
}

// covered: what lies on top of a pack is told, and the right version goes on being kept.
func (w *world) covered(m *chain.Manifest) {
	w.t.Helper()
	objects, err := w.Repo.Needs(w.t.Context(), m, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	key := objects[0].Key // a pack
	if err := w.server.Put(w.t.Context(), key, strings.NewReader("junk"), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
		w.t.Fatal(err)
	}
	w.now = w.now.Add(24 * time.Hour)
	r, err := Run(w.t.Context(), w.Repo, Options{Now: func() time.Time { return w.now }, All: true})
	if err != nil || len(r.Covered) != 1 || r.Covered[0].Key != key {
		w.t.Fatalf("%+v, %v", r, err)
	}
	body, err := w.server.GetOld(w.t.Context(), key, r.Covered[0].ID, 0, -1)
	if err != nil {
		w.t.Fatal(err)
	}
	data, err := io.ReadAll(body)
	if err := errors.Join(err, body.Close()); err != nil || int64(len(data)) != objects[0].Ref.Length {
		w.t.Errorf("%d bytes of %d, %v", len(data), objects[0].Ref.Length, err)
	}
	until, _, err := w.server.Retained(w.t.Context(), key, r.Covered[0].ID)
	if err != nil || !until.Equal(r.Until) && w.kind == s3test.MinIO { // versitygw does not tell
		w.t.Errorf("what lies below is kept until %s, %v, want %s", until, err, r.Until)
	}
	if err := w.server.DeleteVersion(w.t.Context(), key, r.Covered[0].ID); err == nil {
		w.t.Error("what lies below could be removed")
	}
}

// TestUnlocked: a store that can't keep anything is refused by init, and a repository that
// needs nothing kept by lock.
func TestUnlocked(t *testing.T) {
	t.Parallel()
	_, err := chain.Init(t.Context(), objstore.NewMem(), chain.InitOptions{Lock: &chain.ObjectLock{Mode: "compliance", Days: 1}})
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("init: %v", err)
	}
	if _, err := Run(context.Background(), chaintest.NewHistory(t).Repo, Options{}); err == nil || !strings.Contains(err.Error(), "--object-lock") {
		t.Errorf("lock: %v", err)
	}
}

// TestTurn: whatever the days on which it runs, each object's turn comes within as many days as
// there are slices after a run, or at the first run after them.
func TestTurn(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		slices := rapid.IntRange(1, 30).Draw(t, "slices")
		key := fmt.Sprint(rapid.Int().Draw(t, "key"))
		start := time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "start"), 0)
		extended, last := start, start
		for range 100 {
			now := last.Add(time.Duration(rapid.IntRange(1, 24*9).Draw(t, "hours")) * time.Hour)
			if turn(key, slices, last, now) {
				extended = now
			}
			if days := now.Unix()/86400 - extended.Unix()/86400; days >= int64(slices) {
				t.Fatalf("not kept on for %d days, of %d", days, slices)
			}
			last = now
		}
	})
}

// TestLockDamaged: a manifest that is damaged on top, or was taken away, keeps nothing from
// being kept on, of its own checkpoint neither: what lies below tells what it needs. It is told.
func TestLockDamaged(t *testing.T) {
	t.Parallel()
	w := newWorld(t, s3test.StartVersioned(t, s3test.MinIO))
	content := make([]byte, 2<<20)
	chaintest.Fill(rng(), content)
	var all []*chain.Manifest
	for range 3 {
		all = append(all, w.Commit(content, true, nil))
	}
	key := func(i int) string { return chain.ManifestKey(all[i].Domain, all[i].Checkpoint) }
	if err := errors.Join(
		w.server.Put(t.Context(), key(0), strings.NewReader("junk"), objstore.PutOptions{Mode: objstore.Replace}),
		w.server.Delete(t.Context(), key(1)),
	); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		w.now = w.now.Add(24 * time.Hour)
		r, err := Run(t.Context(), w.Repo, Options{Now: func() time.Time { return w.now }})
		if !chain.Unusable(err) || !strings.Contains(err.Error(), all[0].Checkpoint) || r == nil || r.Checkpoints != 3 {
			t.Errorf("%+v, %v", r, err)
		}
		for _, m := range all {
			w.safe(m)
		}
	}
}

// TestForgedLast: whoever says each night that lock has just run keeps nothing from being kept on.
func TestForgedLast(t *testing.T) {
	t.Parallel()
	w := newWorld(t, s3test.StartVersioned(t, s3test.MinIO))
	content := make([]byte, 2<<20)
	chaintest.Fill(rng(), content)
	m := w.Commit(content, true, nil)
	extended := 0
	for range 5 {
		w.now = w.now.Add(24 * time.Hour)
		if err := w.Repo.PutLocked(t.Context(), w.now); err != nil {
			t.Fatal(err)
		}
		extended += w.lock().Extended
		w.safe(m)
	}
	if extended == 0 {
		t.Error("nothing was kept on")
	}
}

// TestLockForged: a manifest that somebody has made, and that names what others need wrongly,
// keeps none of that from being kept on.
func TestLockForged(t *testing.T) {
	t.Parallel()
	w := newWorld(t, s3test.StartVersioned(t, s3test.MinIO))
	content := make([]byte, 2<<20)
	chaintest.Fill(rng(), content)
	m := w.Commit(content, true, nil)
	forge := func(name string, change func(*archive.MapRef)) {
		t.Helper()
		f := *m
		f.Checkpoint, f.UUID, f.Parent = name, chain.NewUUID(), nil
		f.Created = w.now.Add(-days*24*time.Hour + time.Hour).UTC().Truncate(time.Second)
		f.Disks = slices.Clone(m.Disks)
		f.Disks[0].Maps = slices.Clone(m.Disks[0].Maps)
		change(&f.Disks[0].Maps[0])
		data, err := chain.Seal(&f)
		if err == nil {
			err = w.server.Put(t.Context(), chain.ManifestKey(f.Domain, name), bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	forge("a", func(r *archive.MapRef) { r.DirDigest[0] ^= 1 })
	forge("b", func(r *archive.MapRef) { r.Length++ })
	m = w.Commit(content, false, []chaintest.Change{{Start: 0, End: 4096, Zero: true}})
	k := &keeper{repo: w.Repo, rule: w.Repo.Config.ObjectLock, begun: w.now}
	want, err := k.needed(t.Context(), &Result{})
	if err != nil {
		t.Fatal(err)
	}
	if len(k.wrong) != 2 {
		t.Errorf("told: %v", k.wrong)
	}
	objects, err := w.Repo.Needs(t.Context(), m, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if _, ok := want[claim{o.Key, o.Ref.Length}]; !ok {
			t.Errorf("%s is not kept on", o.Key)
		}
	}
}

// What a repository needs kept on that a newer version writes to is not known here.
func TestNewerWriter(t *testing.T) {
	t.Parallel()
	repo, err := chain.Init(t.Context(), objstore.NewMem(), chain.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	repo.Config.ObjectLock, repo.Config.MinWriter = &chain.ObjectLock{Mode: "compliance", Days: 30}, 2
	var newer *chain.NewerError
	if _, err := Run(t.Context(), repo, Options{}); !errors.As(err, &newer) {
		t.Error(err)
	}
}
