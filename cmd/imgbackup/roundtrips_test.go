// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

// longChain is a repository with a chain of a full and depth incrementals, each
// with one new chunk, and with much else in it.
func longChain(t *testing.T, depth int) (store objstore.Store, content []byte) {
	t.Helper()
	ctx := t.Context()
	store = objstore.NewMem()
	repo, err := chain.Init(ctx, store, chain.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2500 {
		key := fmt.Sprintf("packs/00/%064x.zst", i)
		if err := store.Put(ctx, key, strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); err != nil {
			t.Fatal(err)
		}
	}
	content = make([]byte, (depth+1)*64<<10)
	var maps []archive.MapRef
	for i := range depth + 1 {
		w, err := archive.NewWriter(ctx, store, archive.WriterOptions{Workers: 1})
		if err != nil {
			t.Fatal(err)
		}
		off := i * 64 << 10
		part := content[off:][:64<<10]
		for j := range part {
			part[j] = byte(i + j)
		}
		m := w.NewMap("vda", int64(len(content)), i == 0)
		err = m.Add(ctx, int64(off), int64(len(part)), func(context.Context, []byte) ([]archive.Piece, error) {
			return []archive.Piece{{Offset: int64(off), Length: int64(len(part)), Data: part}}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		refs, _, err := w.Finish(ctx)
		if err != nil {
			t.Fatal(err)
		}
		maps = append(refs, maps...)
		manifest := &chain.Manifest{
			Kind: chain.KindArchive, Domain: domain, Host: chain.Host{Name: "host"}, Checkpoint: fmt.Sprintf("c%d", i),
			UUID: chain.NewUUID(), Sequence: int64(i + 1), Created: time.Now(), Locking: chain.LockingQEMU, Requested: chain.ModeAuto,
			Disks: []chain.Disk{{
				Name: "vda", Source: chain.Source{Path: "/vda.raw", Format: "raw"}, Size: int64(len(content)),
				Mode: chain.ModeFull, Detection: chain.DetectionNone, NoBitmapReason: "raw", Maps: maps,
			}},
		}
		if i > 0 {
			d := &manifest.Disks[0]
			d.Mode, d.Detection, d.IncrementalFrom = chain.ModeIncremental, chain.DetectionContent, &chain.CheckpointRef{Name: "before", UUID: chain.NewUUID()}
		}
		if err := repo.Commit(ctx, manifest); err != nil {
			t.Fatal(err)
		}
		for n := 0; i == 0 && n < 190; n++ { // other checkpoints, on other branches
			other := *manifest
			other.Checkpoint, other.UUID = fmt.Sprintf("other%d", n), chain.NewUUID()
			if err := repo.Commit(ctx, &other); err != nil {
				t.Fatal(err)
			}
		}
	}
	return store, content
}

// TestFirstByteIsNear: the first byte of any checkpoint is there after at most six
// requests that wait for one another, however deep the chain and large the
// repository is.
func TestFirstByteIsNear(t *testing.T) {
	t.Parallel()
	const depth = 60
	store, content := longChain(t, depth)
	for _, checkpoint := range []string{"", "c0", "c30", "c60"} {
		t.Run("checkpoint "+checkpoint, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			args := []string{"restore", "--repo", dir, domain, "--output", filepath.Join(dir, "out")}
			want := content
			if checkpoint != "" {
				args = append(args, "--checkpoint", checkpoint)
				var n int
				if _, err := fmt.Sscanf(checkpoint, "c%d", &n); err != nil {
					t.Fatal(err)
				}
				want = append(bytes.Clone(content[:(n+1)*64<<10]), make([]byte, (depth-n)*64<<10)...)
			}
			synctest.Test(t, func(t *testing.T) {
				far := objstoretest.NewFar(store)
				// Not run: it would catch signals.
				root := newRoot(program{out: io.Discard, err: io.Discard, wrap: func(s objstore.Store) objstore.Store { return far }})
				root.SetArgs(args)
				if err := root.ExecuteContext(t.Context()); err != nil {
					t.Fatal(err)
				}
				if n := far.RoundTrips("packs"); n < 2 || n > 6 {
					t.Errorf("the first byte is there after %d round trips", n)
				}
			})
			got, err := os.ReadFile(filepath.Join(dir, "out", "vda.raw"))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("it is restored to other bytes: %v", err)
			}
		})
	}
}
