// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
)

// TestForgottenLeft: what a forgotten checkpoint saw of another's bitmap stays for as
// long as that other does.
func TestForgottenLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, 3)
	writer, err := archive.NewWriter(t.Context(), w.Store, archive.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	seen := bitmapstore.Header{Name: "b", Granularity: 65536, Size: 1 << 20}
	ref, _, err := writer.PutBitmap(t.Context(), seen, bitmapstore.Between(0, 65536))
	if err == nil {
		_, _, err = writer.Finish(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	all, _, err := w.Repo.Manifests(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	first := &all[0].Disks[0]
	first.Bitmap, first.Granularity = chain.BitmapName(all[0].Checkpoint, all[0].UUID), 65536
	all[1].Disks[0].Witnesses = []chain.BitmapRecord{{
		Name: first.Bitmap, Granularity: 65536, Size: 1 << 20, DirtyBytes: 65536, Enabled: true, Object: ref,
	}}
	for _, m := range all[:2] {
		if err := w.Repo.Revise(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	forget := func(i int, want int) {
		t.Helper()
		m := all[i]
		if err := chain.Forget(t.Context(), w.Repo, all, []*chain.Manifest{m}, func(*chain.Manifest) {}); err != nil {
			t.Fatal(err)
		}
		all = slices.Delete(all, i, i+1)
		prune(t, w.Repo, Options{})
		if left := keys(objects(t, w.Store), archive.BitmapPrefix); len(left) != want {
			t.Errorf("%s was forgotten: there are %v", m.Checkpoint, left)
		}
	}
	forget(1, 1)
	forget(0, 0)
}
