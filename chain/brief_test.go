// SPDX-License-Identifier: Apache-2.0

package chain_test

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
)

// TestBriefs: they say what the manifests say, and only manifests are read that are not known as
// they stand, be it in a folder or in a store that has a word for what stands there.
func TestBriefs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	folder, err := local.Create(filepath.Join(dir, "repo"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	for name, store := range map[string]objstore.Store{"mem": objstore.NewMem(), "folder": folder} {
		ctx := context.Background()
		h := chaintest.NewHistoryIn(t, store, chain.InitOptions{})
		h.Random(rand.New(rand.NewPCG(1, 2)), 9, 256<<10)
		known := make(map[string][]chain.Brief)
		// look demands that so many manifests were read, and what the briefs say.
		look := func(what string, fresh, damaged int) {
			t.Helper()
			before := h.Store.Of("domains/")
			found, err := h.Repo.Briefs(ctx, []string{"web", "other"}, known)
			if err != nil || len(found) != 1 {
				t.Fatalf("%s, %s: %v, %v", name, what, found, err)
			}
			d := found["web"]
			if n := h.Store.Of("domains/") - before; d.Fresh != fresh || n != fresh+damaged || len(d.Damaged) != damaged {
				t.Errorf("%s, %s: %d fresh, %d read, damaged: %v; want %d, %d", name, what, d.Fresh, n, d.Damaged, fresh, damaged)
			}
			ms, _, err := h.Repo.Manifests(ctx, "web")
			if err != nil {
				t.Fatal(err)
			}
			var want []chain.Brief
			for i, m := range ms {
				b := chain.Brief{Checkpoint: m.Checkpoint, UUID: m.UUID, Sequence: m.Sequence, Kind: m.Kind, Created: m.Created, Tag: d.Briefs[i].Tag}
				for j := range m.Disks {
					b.Stored += m.Disks[j].StoredBytes
				}
				want = append(want, b)
			}
			if !reflect.DeepEqual(d.Briefs, want) {
				t.Errorf("%s, %s: %+v, want %+v", name, what, d.Briefs, want)
			}
			known["web"] = d.Briefs
		}
		look("at first", 9, 0)
		look("again", 0, 0)
		if _, err := h.Repo.Retag(ctx, "web", "cc", []string{"keep"}, nil); err != nil {
			t.Fatal(err)
		}
		look("one has another tag", 1, 0)
		h.Forget(4)
		look("one was forgotten", 0, 0)
		if name != "folder" {
			continue
		}
		path := filepath.Join(dir, "repo", filepath.FromSlash(chain.ManifestKey("web", "ca")))
		if err := os.WriteFile(path, []byte("broken"), 0o600); err != nil {
			t.Fatal(err)
		}
		look("one is damaged", 0, 1)
		look("and stays so", 0, 1)
	}
}
