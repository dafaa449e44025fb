// SPDX-License-Identifier: Apache-2.0

package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/chain/transfer"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
	"github.com/imgbackup/imgbackup/view"
)

// newRepo makes a repository in a store.
func newRepo(t *testing.T, store objstore.Store) *chain.Repository { return keyedRepo(t, store, nil) }

// keyedRepo makes one with keys; nil: a plain one.
func keyedRepo(t *testing.T, store objstore.Store, k *chaintest.Keys) *chain.Repository {
	t.Helper()
	repo, err := chaintest.Init(t.Context(), store, k)
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// eachPair tests with a source and a destination that have the same keys or none, other keys, or
// of which only one has keys.
func eachPair(t *testing.T, test func(t *testing.T, from, to *chaintest.Keys)) {
	t.Helper()
	one, two := chaintest.NewKeys(t), chaintest.NewKeys(t)
	for name, pair := range map[string][2]*chaintest.Keys{
		"plain": {}, "same keys": {one, one}, "other keys": {one, two}, "to plain": {one, nil}, "from plain": {nil, one},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, pair[0], pair[1])
		})
	}
}

// commit archives data as a checkpoint of a raw disk, on top of base if it is
// given.
func commit(t *testing.T, repo *chain.Repository, name string, data []byte, base *chain.Manifest) *chain.Manifest {
	t.Helper()
	w, err := archive.NewWriter(t.Context(), repo.Store, archive.WriterOptions{PackSize: 64 << 10, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	m := w.NewMap("vda", int64(len(data)), base == nil)
	err = m.Add(t.Context(), 0, int64(len(data)), func(context.Context, []byte) ([]archive.Piece, error) {
		return []archive.Piece{{Offset: 0, Length: int64(len(data)), Data: data}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	maps, _, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d := chain.Disk{
		Name: "vda", Size: int64(len(data)), Source: chain.Source{Path: "/vm/a.raw", Format: "raw"},
		Requested: chain.ModeAuto, Mode: chain.ModeFull, Detection: chain.DetectionNone, Maps: maps,
	}
	man := &chain.Manifest{
		Kind: chain.KindArchive, Domain: "web", Host: chain.Host{Name: "h"}, Checkpoint: name, UUID: chain.NewUUID(),
		Sequence: 1, Created: time.Unix(1e9, 0).UTC(), Locking: chain.LockingQEMU, Requested: chain.ModeAuto,
	}
	if base != nil {
		d.Mode, d.Detection = chain.ModeIncremental, chain.DetectionContent
		d.IncrementalFrom = base.Ref()
		d.Maps = append(d.Maps, base.Disks[0].Maps...)
		man.Parent, man.Sequence = base.Ref(), base.Sequence+1
	}
	man.Disks = []chain.Disk{d}
	if err := repo.Commit(t.Context(), man); err != nil {
		t.Fatal(err)
	}
	return man
}

// content is data that does not compress and differs by seed.
func content(seed byte) []byte {
	data := make([]byte, 128<<10)
	x := uint32(seed) + 1
	for i := range data {
		x = x*1664525 + 1013904223
		data[i] = byte(x >> 24)
	}
	return data
}

// read returns what a checkpoint holds.
func read(t *testing.T, repo *chain.Repository, name string) []byte {
	t.Helper()
	m, err := repo.Manifest(t.Context(), "web", name)
	if err != nil {
		t.Fatal(err)
	}
	layout, err := view.OpenLayout(t.Context(), repo, &m.Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	f := archive.NewFetcher(repo.Store, archive.FetcherOptions{})
	out := make([]byte, m.Disks[0].Size)
	for e, err := range layout.Entries(t.Context(), 0, m.Disks[0].Size) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Zero {
			continue
		}
		chunk, err := f.Chunk(t.Context(), e, nil)
		if err != nil {
			t.Fatal(err)
		}
		copy(out[e.Offset:e.End()], chunk[e.ChunkOffset:])
	}
	return out
}

// TestResume cuts a copy off at each operation of the destination in turn. The
// next one completes it, and what had arrived is whole.
func TestResume(t *testing.T) {
	t.Parallel()
	eachPair(t, func(t *testing.T, fromKeys, toKeys *chaintest.Keys) {
		from := keyedRepo(t, objstore.NewMem(), fromKeys)
		c1 := commit(t, from, "c1", content(1), nil)
		commit(t, from, "c2", content(2), c1)
		broken := errors.New("the store broke")
		for _, op := range []objstoretest.Op{objstoretest.Put, objstoretest.Stat, objstoretest.List} {
			for n := 0; ; n++ {
				store := objstore.NewMem()
				to := keyedRepo(t, store, toKeys)
				counted := objstoretest.NewFaulty(t, store)
				to.Store = archive.Encrypted(counted, archive.KeysOf(to.Store))
				if _, err := transfer.Copy(t.Context(), from, to, transfer.Options{}); err != nil {
					t.Fatal(err)
				}
				if n >= counted.Count(op) {
					if n == 0 && (op != objstoretest.Stat || fromKeys == toKeys) { // nothing stands there to be looked at
						t.Fatalf("a copy does no %v", op)
					}
					break
				}

				store = objstore.NewMem()
				to = keyedRepo(t, store, toKeys)
				var met string // no copy fails for want of an index
				to.Store = archive.Encrypted(objstoretest.NewFaulty(t, store, objstoretest.Fault{
					Op: op, After: n, Times: 1, Err: broken, Hook: func(key string) { met = key },
				}), archive.KeysOf(to.Store))
				_, err := transfer.Copy(t.Context(), from, to, transfer.Options{})
				if index := strings.HasPrefix(met, archive.IndexPrefix); index && err != nil || !index && !errors.Is(err, broken) {
					t.Fatalf("%v %d of %s: got %v", op, n, met, err)
				}
				to.Store = archive.Encrypted(store, archive.KeysOf(to.Store))
				left, _, err := to.Manifests(t.Context(), "web")
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range left {
					read(t, to, m.Checkpoint)
				}
				if _, err := transfer.Copy(t.Context(), from, to, transfer.Options{}); err != nil {
					t.Fatalf("%v %d: gone on with: %v", op, n, err)
				}
				if !bytes.Equal(read(t, to, "c1"), content(1)) || !bytes.Equal(read(t, to, "c2"), content(2)) {
					t.Fatalf("%v %d: the copy differs", op, n)
				}
			}
		}
	})
}

// TestDamageStaysBehind: what is damaged in the source, or left damaged in the
// destination by somebody else, does not become part of a copied checkpoint.
func TestDamageStaysBehind(t *testing.T) {
	t.Parallel()
	eachPair(t, func(t *testing.T, fromKeys, toKeys *chaintest.Keys) {
		flip := func(t *testing.T, s objstore.Store, prefix string) string {
			t.Helper()
			for info, err := range s.List(t.Context(), prefix) {
				if err != nil {
					t.Fatal(err)
				}
				data, err := objstore.ReadAll(t.Context(), s, info.Key, 1<<20)
				if err != nil {
					t.Fatal(err)
				}
				data[len(data)/2] ^= 1
				if err := s.Put(t.Context(), info.Key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
					t.Fatal(err)
				}
				return info.Key
			}
			t.Fatalf("no object under %s", prefix)
			return ""
		}
		for _, prefix := range []string{archive.PackPrefix, archive.MapPrefix} {
			store := objstore.NewMem()
			from := keyedRepo(t, store, fromKeys)
			commit(t, from, "c1", content(1), nil)
			key := flip(t, store, prefix)
			to := keyedRepo(t, objstore.NewMem(), toKeys)
			_, err := transfer.Copy(t.Context(), from, to, transfer.Options{})
			if !archive.IsDamage(err) || !strings.Contains(err.Error(), key) {
				t.Errorf("%s: got %v", prefix, err)
			}
			if names, err := to.Checkpoints(t.Context(), "web"); err != nil || len(names) > 0 {
				t.Errorf("%s: the destination has %v, %v", prefix, names, err)
			}
		}

		// A pack that was left damaged in the destination is put right.
		from := keyedRepo(t, objstore.NewMem(), fromKeys)
		commit(t, from, "c1", content(1), nil)
		for info, err := range from.Store.List(t.Context(), archive.PackPrefix) {
			if err != nil {
				t.Fatal(err)
			}
			store := objstore.NewMem()
			to := keyedRepo(t, store, toKeys)
			if err := store.Put(t.Context(), info.Key, bytes.NewReader(make([]byte, info.Size)), objstore.PutOptions{Mode: objstore.Create}); err != nil {
				t.Fatal(err)
			}
			if _, err := transfer.Copy(t.Context(), from, to, transfer.Options{}); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(read(t, to, "c1"), content(1)) {
				t.Error("a damaged pack was taken for a good one")
			}
		}
	})
}

// TestHidden: a checkpoint that the source has and does not list is missed.
func TestHidden(t *testing.T) {
	t.Parallel()
	from := newRepo(t, objstore.NewMem())
	c1 := commit(t, from, "c1", content(1), nil)
	commit(t, from, "c2", content(2), c1)
	hidden := chain.ManifestKey("web", "c1")
	from.Store = &objstoretest.Hiding{Store: from.Store, Hidden: func(key string) bool { return key == hidden }}
	to := newRepo(t, objstore.NewMem())
	var listing *chain.ListingError
	if _, err := transfer.Copy(t.Context(), from, to, transfer.Options{}); !errors.As(err, &listing) || listing.Object != hidden {
		t.Errorf("got %v", err)
	}
	if names, err := to.Checkpoints(t.Context(), "web"); err != nil || len(names) > 0 {
		t.Errorf("the destination has %q, %v", names, err)
	}
}

// TestHeal: whatever object a checkpoint of the destination has lost, a copy brings
// back, and proves what still stands of it.
func TestHeal(t *testing.T) {
	t.Parallel()
	eachPair(t, func(t *testing.T, fromKeys, toKeys *chaintest.Keys) {
		from := keyedRepo(t, objstore.NewMem(), fromKeys)
		c1 := commit(t, from, "c1", content(1), nil)
		commit(t, from, "c2", content(2), c1)
		store := objstore.NewMem()
		to := keyedRepo(t, store, toKeys)
		if _, err := transfer.Copy(t.Context(), from, to, transfer.Options{}); err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			m, err := to.Manifest(t.Context(), "web", "c2")
			if err != nil {
				t.Fatal(err)
			}
			needs, err := to.Needs(t.Context(), m, nil) // other objects each time, with other keys
			if err != nil || len(needs) != 4 {
				t.Fatalf("%v, %v", needs, err)
			}
			key := needs[i].Key
			if err := store.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			result, err := transfer.Copy(t.Context(), from, to, transfer.Options{})
			if err != nil || len(result.Healed) == 0 || len(result.Checkpoints) != 0 || result.Objects < 1 {
				t.Errorf("%s: got %+v, %v", key, result, err)
			}
			if !bytes.Equal(read(t, to, "c1"), content(1)) || !bytes.Equal(read(t, to, "c2"), content(2)) {
				t.Errorf("%s: it was not brought back", key)
			}
		}
		result, err := transfer.Copy(t.Context(), from, to, transfer.Options{})
		if err != nil || len(result.Healed) != 0 || result.Objects != 0 || result.Present != 2 {
			t.Errorf("nothing is missing: got %+v, %v", result, err)
		}
	})
}

// TestDamageKeepsNothingBack: one damaged checkpoint is named, and the others arrive.
func TestDamageKeepsNothingBack(t *testing.T) {
	t.Parallel()
	eachPair(t, func(t *testing.T, fromKeys, toKeys *chaintest.Keys) {
		store := objstore.NewMem()
		from := keyedRepo(t, store, fromKeys)
		first := commit(t, from, "c1", content(1), nil)
		commit(t, from, "c2", content(2), nil)
		if err := store.Delete(t.Context(), chain.ManifestKey("web", "c2")); err != nil {
			t.Fatal(err)
		}
		commit(t, from, "c3", content(3), nil)
		needs, err := from.Needs(t.Context(), first, func(string) bool { return false })
		if err != nil || len(needs) == 0 {
			t.Fatal(err)
		}
		if err := store.Delete(t.Context(), needs[0].Key); err != nil {
			t.Fatal(err)
		}
		to := keyedRepo(t, objstore.NewMem(), toKeys)
		result, err := transfer.Copy(t.Context(), from, to, transfer.Options{})
		if !archive.IsDamage(err) || !strings.Contains(err.Error(), "checkpoint c1 of web") || result == nil || len(result.Checkpoints) != 1 {
			t.Fatalf("got %+v, %v", result, err)
		}
		if names, err := to.Checkpoints(t.Context(), "web"); err != nil || len(names) != 1 || !bytes.Equal(read(t, to, "c3"), content(3)) {
			t.Errorf("the destination has %q, %v", names, err)
		}
	})
}

// TestHealRotten: bytes that have changed where they stand are found when they are read,
// brought back once, and counted once.
func TestHealRotten(t *testing.T) {
	t.Parallel()
	from := newRepo(t, objstore.NewMem())
	c1 := commit(t, from, "c1", content(1), nil)
	commit(t, from, "c2", content(2), c1)
	store := objstore.NewMem()
	to := newRepo(t, store)
	if _, err := transfer.Copy(t.Context(), from, to, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, prefix := range []string{archive.PackPrefix, archive.MapPrefix} {
		for info, err := range store.List(t.Context(), prefix) {
			if err != nil {
				t.Fatal(err)
			}
			n++
			whole, err := objstore.ReadAll(t.Context(), store, info.Key, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			rotten := bytes.Clone(whole)
			rotten[len(rotten)/2] ^= 1
			if err := store.Put(t.Context(), info.Key, bytes.NewReader(rotten), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
				t.Fatal(err)
			}
			for _, o := range []transfer.Options{{ReadData: true, DryRun: true}, {ReadData: true}} {
				result, err := transfer.Copy(t.Context(), from, to, o)
				if err != nil || result.Objects != 1 || result.Bytes != info.Size || len(result.Healed) != 1 || result.Healed[0].Objects != 1 {
					t.Errorf("%s, %+v: got %+v, %v", info.Key, o, result, err)
				}
			}
			if got, err := objstore.ReadAll(t.Context(), store, info.Key, 1<<20); err != nil || !bytes.Equal(got, whole) {
				t.Errorf("%s was not brought back: %v", info.Key, err)
			}
		}
	}
	if result, err := transfer.Copy(t.Context(), from, to, transfer.Options{ReadData: true}); err != nil || n < 4 || result.Objects != 0 || len(result.Healed) != 0 {
		t.Errorf("after %d objects: %+v, %v", n, result, err)
	}
}

// TestBrokenThere: a manifest that is damaged in the destination is named, and keeps
// nothing else back.
func TestBrokenThere(t *testing.T) {
	t.Parallel()
	eachPair(t, func(t *testing.T, fromKeys, toKeys *chaintest.Keys) {
		from := keyedRepo(t, objstore.NewMem(), fromKeys)
		c1 := commit(t, from, "c1", content(1), nil)
		store := objstore.NewMem()
		to := keyedRepo(t, store, toKeys)
		if _, err := transfer.Copy(t.Context(), from, to, transfer.Options{}); err != nil {
			t.Fatal(err)
		}
		commit(t, from, "c2", content(2), c1)
		key := chain.ManifestKey("web", "c1")
		broken := []byte("{")
		if err := store.Put(t.Context(), key, bytes.NewReader(broken), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
			t.Fatal(err)
		}
		result, err := transfer.Copy(t.Context(), from, to, transfer.Options{})
		if !archive.IsDamage(err) || !strings.Contains(err.Error(), "the destination: "+key) || result == nil || len(result.Checkpoints) != 1 || result.Present != 0 {
			t.Fatalf("got %+v, %v", result, err)
		}
		if got, err := objstore.ReadAll(t.Context(), store, key, 1<<20); err != nil || !bytes.Equal(got, broken) {
			t.Errorf("what was damaged is %q now, %v", got, err)
		}
		if !bytes.Equal(read(t, to, "c2"), content(2)) {
			t.Error("the other checkpoint is not there")
		}
	})
}
