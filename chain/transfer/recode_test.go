// SPDX-License-Identifier: Apache-2.0

package transfer_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/chain/transfer"
	"github.com/imgbackup/imgbackup/objstore"
)

// TestNothingTwice: a copy moves what is new and no more, whatever keys the two have, also when
// a prune of the source has given all its objects other names, or somebody forgot in the
// source what the copy was made of; and all of it proves itself.
func TestNothingTwice(t *testing.T) {
	t.Parallel()
	eachPair(t, func(t *testing.T, fromKeys, toKeys *chaintest.Keys) {
		from := keyedRepo(t, objstore.NewMem(), fromKeys)
		to := keyedRepo(t, objstore.NewMem(), toKeys)
		copied := func() *transfer.Result {
			t.Helper()
			r, err := transfer.Copy(t.Context(), from, to, transfer.Options{})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		last := commit(t, from, "c0", content(0), nil)
		copied()
		for i, change := range []func(){
			func() {},
			func() { rewriteMaps(t, from) },
			func() {
				if err := chaintest.Forget(t.Context(), from, manifest(t, from, "c1")); err != nil {
					t.Fatal(err)
				}
			},
			func() {},
		} {
			name := fmt.Sprintf("c%d", i+1)
			commit(t, from, name, content(byte(i+1)), last)
			change()
			last = manifest(t, from, name)
			// What is copied as it is stored is another object when a prune has named it anew.
			renamed := fromKeys == toKeys && i == 1
			if r := copied(); len(r.Checkpoints) != 1 || r.Bytes > 160<<10 && !renamed {
				t.Errorf("%d: %+v", i, r)
			}
			if r := copied(); r.Objects != 0 || len(r.Healed) != 0 {
				t.Errorf("%d, once more: %+v", i, r)
			}
			if !bytes.Equal(read(t, to, name), content(byte(i+1))) || !bytes.Equal(read(t, to, "c0"), content(0)) {
				t.Fatalf("%d: the copy differs", i)
			}
		}
		report, err := check.Run(t.Context(), to, check.Options{ReadData: true})
		if err != nil || len(report.Findings) > 0 {
			t.Errorf("%+v, %v", report, err)
		}
	})
}

func manifest(t *testing.T, repo *chain.Repository, name string) *chain.Manifest {
	t.Helper()
	m, err := repo.Manifest(t.Context(), "web", name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// rewriteMaps has the same content in other maps, of other packs, as after a prune.
func rewriteMaps(t *testing.T, repo *chain.Repository) {
	t.Helper()
	all, _, err := repo.Manifests(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	fresh := make(map[archive.Digest]archive.MapRef)
	for _, m := range all {
		for j, ref := range m.Disks[0].Maps {
			if _, ok := fresh[ref.Name]; !ok {
				fresh[ref.Name] = rewriteMap(t, repo, ref)
			}
			m.Disks[0].Maps[j] = fresh[ref.Name]
		}
		if err := repo.Revise(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	for name := range fresh {
		if err := repo.Store.Delete(t.Context(), archive.MapKey(name)); err != nil {
			t.Fatal(err)
		}
	}
}

func rewriteMap(t *testing.T, repo *chain.Repository, ref archive.MapRef) archive.MapRef {
	t.Helper()
	m, err := archive.OpenMap(t.Context(), repo.Store, ref, 0)
	if err != nil {
		t.Fatal(err)
	}
	w, err := archive.NewWriter(t.Context(), repo.Store, archive.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	f := archive.NewFetcher(repo.Store, archive.FetcherOptions{})
	to := w.NewMap("vda", m.Size(), m.Full())
	for e, err := range m.Entries(t.Context(), 0, m.Size()) {
		if err != nil {
			t.Fatal(err)
		}
		chunk, err := f.Chunk(t.Context(), e, nil)
		if err != nil {
			t.Fatal(err)
		}
		for off := e.Offset; off < e.End(); off += 64 << 10 { // other chunks than before
			data := chunk[off-e.Offset:][:64<<10]
			if err := to.Add(t.Context(), off, 64<<10, func(context.Context, []byte) ([]archive.Piece, error) {
				return []archive.Piece{{Offset: off, Length: 64 << 10, Data: data}}, nil
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	maps, _, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return maps[0]
}

// TestPartsOfChunks: chunks stay what they are, however small a part of them a map names.
func TestPartsOfChunks(t *testing.T) {
	t.Parallel()
	keys := chaintest.NewKeys(t)
	from := newRepo(t, objstore.NewMem())
	large := make([]byte, 768<<10) // by itself a group
	chaintest.Fill(rand.New(rand.NewPCG(1, 2)), large)
	commit(t, from, "c1", large, nil)
	m, err := from.Manifest(t.Context(), "web", "c1")
	if err != nil {
		t.Fatal(err)
	}
	full, err := archive.OpenMap(t.Context(), from.Store, m.Disks[0].Maps[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	w, err := archive.NewWriter(t.Context(), from.Store, archive.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	parts := w.NewMap("vda", m.Disks[0].Size, true)
	for e, err := range full.Entries(t.Context(), 0, full.Size()) {
		if err != nil {
			t.Fatal(err)
		}
		for off := e.Offset; off < e.End(); off += 32 << 10 {
			part := e
			part.Clip(off, off+4096)
			if err := parts.Add(t.Context(), off, 4096, func(_ context.Context, _ []byte) ([]archive.Piece, error) {
				return []archive.Piece{{Offset: off, Length: 4096, Reuse: &part}}, nil
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	maps, _, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.Disks[0].Maps = maps
	if err := from.Revise(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	to := keyedRepo(t, objstore.NewMem(), keys)
	if _, err := transfer.Copy(t.Context(), from, to, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, to, "c1"), read(t, from, "c1")) {
		t.Error("the copy differs")
	}
	var chunks int64
	for info, err := range to.Store.List(t.Context(), archive.PackPrefix) {
		if err != nil {
			t.Fatal(err)
		}
		chunks += info.Size
	}
	if chunks < 768<<10 || chunks > 800<<10 {
		t.Errorf("%d bytes in packs: the chunk of 768 KiB is there once, whole", chunks)
	}
}

// TestNoKey: who can't read the data can't copy it to other keys, and nothing is left that
// could be taken for a copy.
func TestNoKey(t *testing.T) {
	t.Parallel()
	keys := chaintest.NewKeys(t)
	store := objstore.NewMem()
	from := keyedRepo(t, store, keys)
	commit(t, from, "c1", content(1), nil)
	manager, err := chaintest.Open(t.Context(), store, keys.Host)
	if err != nil {
		t.Fatal(err)
	}
	to := newRepo(t, objstore.NewMem())
	_, err = transfer.Copy(t.Context(), manager, to, transfer.Options{})
	if err == nil || archive.IsDamage(err) || !strings.Contains(err.Error(), "data key is needed") {
		t.Errorf("got %v", err)
	}
	if names, err := to.Checkpoints(t.Context(), "web"); err != nil || len(names) > 0 {
		t.Errorf("the destination has %v, %v", names, err)
	}
	// With the same keys it can.
	same := keyedRepo(t, objstore.NewMem(), keys)
	if _, err := transfer.Copy(t.Context(), manager, same, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, same, "c1"), content(1)) {
		t.Error("the copy differs")
	}
}

// TestLossIsNotCopied: what one side has lost of a checkpoint is not taken for what the other has
// of it, which later checkpoints build on.
func TestLossIsNotCopied(t *testing.T) {
	t.Parallel()
	eachPair(t, func(t *testing.T, fromKeys, toKeys *chaintest.Keys) {
		for _, side := range []string{"source", "destination"} {
			t.Run(side, func(t *testing.T) {
				t.Parallel()
				from := keyedRepo(t, objstore.NewMem(), fromKeys)
				to := keyedRepo(t, objstore.NewMem(), toKeys)
				commit(t, from, "c0", content(0), nil)
				if _, err := transfer.Copy(t.Context(), from, to, transfer.Options{}); err != nil {
					t.Fatal(err)
				}
				want := bytes.Clone(content(0))
				if side == "source" {
					lose(t, from, "c0")
					clear(want[64<<10:]) // which is what the guest has there now
				} else {
					lose(t, to, "c0")
				}
				copy(want, content(1)[:64<<10])
				commitStart(t, from, "c1", content(1)[:64<<10], manifest(t, from, "c0"))
				if !bytes.Equal(read(t, from, "c1"), want) {
					t.Fatal("the source is not what this test is about")
				}
				if _, err := transfer.Copy(t.Context(), from, to, transfer.Options{}); err != nil {
					t.Fatal(err)
				}
				if m := manifest(t, to, "c1"); len(m.Disks[0].Lost) > 0 || !bytes.Equal(read(t, to, "c1"), want) {
					t.Errorf("the copy differs, and says nothing of it: %+v", m.Disks[0].Lost)
				}
			})
		}
	})
}

// TestNotHealedByLess: a checkpoint that lacks objects does not get, in the place of what it has
// left, what the source has.
func TestNotHealedByLess(t *testing.T) {
	t.Parallel()
	eachPair(t, func(t *testing.T, fromKeys, toKeys *chaintest.Keys) {
		from := keyedRepo(t, objstore.NewMem(), fromKeys)
		to := keyedRepo(t, objstore.NewMem(), toKeys)
		commit(t, from, "c0", content(0), nil)
		if _, err := transfer.Copy(t.Context(), from, to, transfer.Options{}); err != nil {
			t.Fatal(err)
		}
		before := manifest(t, to, "c0")
		lose(t, from, "c0")
		opened, err := archive.OpenMap(t.Context(), to.Store, before.Disks[0].Maps[0], 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, pack := range opened.Packs() {
			if err := to.Store.Delete(t.Context(), archive.PackKey(pack.Name)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := transfer.Copy(t.Context(), from, to, transfer.Options{}); err != nil {
			t.Fatal(err)
		}
		if m := manifest(t, to, "c0"); m.Revision != before.Revision {
			t.Errorf("the checkpoint is described anew, without %+v", m.Disks[0].Lost)
		}
	})
}

// lose has the second half of a checkpoint lost, as a repair does when nobody has it.
func lose(t *testing.T, repo *chain.Repository, name string) {
	t.Helper()
	m := manifest(t, repo, name)
	d := &m.Disks[0]
	w, err := archive.NewWriter(t.Context(), repo.Store, archive.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	half := d.Size / 2
	data := read(t, repo, name)[:half]
	err = w.NewMap(d.Name, d.Size, true).Add(t.Context(), 0, half, func(context.Context, []byte) ([]archive.Piece, error) {
		return []archive.Piece{{Offset: 0, Length: half, Data: data}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if d.Maps, _, err = w.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.Lost = []chain.Lost{{Offset: half, Length: d.Size - half, Reason: "lost"}}
	if err := repo.Revise(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

// commitStart archives a checkpoint of which the beginning differs from base, and nothing else.
func commitStart(t *testing.T, repo *chain.Repository, name string, data []byte, base *chain.Manifest) {
	t.Helper()
	w, err := archive.NewWriter(t.Context(), repo.Store, archive.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	d := base.Disks[0]
	err = w.NewMap(d.Name, d.Size, false).Add(t.Context(), 0, int64(len(data)), func(context.Context, []byte) ([]archive.Piece, error) {
		return []archive.Piece{{Offset: 0, Length: int64(len(data)), Data: data}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	maps, _, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d.Mode, d.Detection, d.IncrementalFrom, d.Lost = chain.ModeIncremental, chain.DetectionContent, base.Ref(), nil
	d.Maps = append(maps, base.Disks[0].Maps...)
	m := *base
	m.Checkpoint, m.UUID, m.Revision, m.CopiedFrom = name, chain.NewUUID(), 1, nil
	m.Parent, m.Sequence, m.Disks = base.Ref(), base.Sequence+1, []chain.Disk{d}
	if err := repo.Commit(t.Context(), &m); err != nil {
		t.Fatal(err)
	}
}
