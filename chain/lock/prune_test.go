// SPDX-License-Identifier: Apache-2.0

package lock

import (
	"testing"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/chain/prune"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// TestPruneYoung: what only young checkpoints need that are forgotten stays, and prune comes to an
// end beside it.
func TestPruneYoung(t *testing.T) {
	t.Parallel()
	w := newWorld(t, s3test.StartVersioned(t, s3test.MinIO))
	content, r := make([]byte, 2<<20), rng()
	chaintest.Fill(r, content)
	w.Commit(content, true, nil)
	chaintest.Fill(r, content)
	m := w.Commit(content, true, nil)
	objects, err := w.Repo.Needs(t.Context(), m, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Repo.Under(t.Context(), "forget", func(h *chain.Hold) error { return h.Forget(t.Context(), m) }); err != nil {
		t.Fatal(err)
	}
	got, err := prune.Run(t.Context(), w.Repo, prune.Options{TempDir: t.TempDir()})
	if err != nil || got.Removed.Total().Objects != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, o := range objects {
		if _, err := w.server.Stat(t.Context(), o.Key); err != nil {
			t.Error(err)
		}
	}
}
