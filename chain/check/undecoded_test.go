// SPDX-License-Identifier: Apache-2.0

package check_test

import (
	"context"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/objstore"
)

// What is read without the data key is whole, and nobody has decoded it.
func TestWithoutDataKey(t *testing.T) {
	t.Parallel()
	store, keys := objstore.NewMem(), chaintest.NewKeys(t)
	repo, err := chaintest.Init(t.Context(), store, keys)
	if err != nil {
		t.Fatal(err)
	}
	w, err := archive.NewWriter(t.Context(), repo.Store, archive.WriterOptions{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	err = w.NewMap("vda", archive.GridSize, true).Add(t.Context(), 0, archive.GridSize, func(context.Context, []byte) ([]archive.Piece, error) {
		return []archive.Piece{{Length: archive.GridSize, Data: random(1, archive.GridSize)}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, decodes := range []bool{false, true} {
		with := keys.Host
		if decodes {
			with = keys.All
		}
		repo, err := chaintest.Open(t.Context(), store, with)
		if err != nil {
			t.Fatal(err)
		}
		r, err := check.Run(t.Context(), repo, check.Options{ReadData: true})
		if err != nil || r.NoDecode == decodes || len(r.Findings) > 0 {
			t.Errorf("data key %v: %v, %+v", decodes, err, r)
		}
		p, damage, err := repo.Proofs(t.Context())
		if err != nil || damage != nil {
			t.Fatal(err, damage)
		}
		for info, err := range store.List(t.Context(), archive.PackPrefix) {
			if err != nil {
				t.Fatal(err)
			}
			_, name, _ := archive.ParseKey(info.Key)
			if _, ok := p.When(name); ok != decodes {
				t.Errorf("data key %v: that the pack was proven is on record: %v", decodes, ok)
			}
		}
	}
}
