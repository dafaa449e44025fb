// SPDX-License-Identifier: Apache-2.0

package transfer_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/chain/prune"
	"github.com/imgbackup/imgbackup/chain/transfer"
	"github.com/imgbackup/imgbackup/objstore"
)

// TestCarry: tags that a checkpoint got after it was copied follow, and what forgotten ones
// left for those that stand, with the bitmaps that it names; twice is once.
func TestCarry(t *testing.T) {
	t.Parallel()
	eachPair(t, func(t *testing.T, fromKeys, toKeys *chaintest.Keys) {
		from, to := keyedRepo(t, objstore.NewMem(), fromKeys), keyedRepo(t, objstore.NewMem(), toKeys)
		one := commit(t, from, "c1", content(1), nil)
		two := commit(t, from, "c2", content(2), one)
		three := commit(t, from, "c3", content(3), two)
		w, err := archive.NewWriter(t.Context(), from.Store, archive.WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		seen := bitmapstore.Header{Name: chain.BitmapName("c1", one.UUID), Granularity: 65536, Size: 128 << 10}
		ref, _, err := w.PutBitmap(t.Context(), seen, bitmapstore.Between(0, 65536))
		if err == nil {
			_, _, err = w.Finish(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		one.Disks[0].Bitmap, one.Disks[0].Granularity = chain.BitmapName("c1", one.UUID), 65536
		two.Disks[0].Bitmap, two.Disks[0].Granularity = chain.BitmapName("c2", two.UUID), 65536
		two.Disks[0].Witnesses = []chain.BitmapRecord{{
			Name: one.Disks[0].Bitmap, Granularity: 65536, Size: 128 << 10, DirtyBytes: 65536, Enabled: true, Object: ref,
		}}
		for _, m := range []*chain.Manifest{one, two} {
			if err := from.Revise(t.Context(), m); err != nil {
				t.Fatal(err)
			}
		}
		copied := func(o transfer.Options) *transfer.Result {
			t.Helper()
			r, err := transfer.Copy(t.Context(), from, to, o)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		if r := copied(transfer.Options{Domains: []string{"web"}, Checkpoints: []string{"c1", "c3"}}); r.Forgotten != 0 || r.Tagged != 0 {
			t.Errorf("%+v", r)
		}
		tag := func(r *chain.Repository, add, remove []string) {
			t.Helper()
			if _, err := r.Retag(t.Context(), "web", "c1", add, remove); err != nil {
				t.Fatal(err)
			}
		}
		tag(from, []string{"keep", "old"}, nil)
		tag(to, []string{"here"}, nil)
		if err := chain.Forget(t.Context(), from, []*chain.Manifest{one, two, three}, []*chain.Manifest{two}, func(*chain.Manifest) {}); err != nil {
			t.Fatal(err)
		}
		want, err := from.Forgotten(t.Context(), "web")
		if err != nil || len(want.Checkpoints) != 1 || len(want.Checkpoints[0].Disks[0].Witnesses) != 1 {
			t.Fatalf("%+v, %v", want, err)
		}
		if r := copied(transfer.Options{DryRun: true}); r.Tagged != 1 || r.Forgotten != 1 || r.Objects != 1 {
			t.Errorf("a dry run: %+v", r)
		}
		if left, err := to.Forgotten(t.Context(), "web"); err != nil || len(left.Checkpoints) != 0 {
			t.Errorf("a dry run wrote %+v, %v", left, err)
		}
		for i, tagged := range []int{1, 0} {
			if r := copied(transfer.Options{}); r.Tagged != tagged || r.Forgotten != tagged || r.Objects != tagged {
				t.Errorf("copy %d: %+v", i, r)
			}
			left, err := to.Forgotten(t.Context(), "web")
			if fromKeys != toKeys && err == nil && len(left.Checkpoints) == 1 {
				seen := &left.Checkpoints[0].Disks[0].Witnesses[0].Object
				if *seen == want.Checkpoints[0].Disks[0].Witnesses[0].Object {
					t.Error("a bitmap has the source's name")
				}
				ref, *seen = *seen, want.Checkpoints[0].Disks[0].Witnesses[0].Object
			}
			if err != nil || !reflect.DeepEqual(left.Checkpoints, want.Checkpoints) {
				t.Errorf("copy %d: %+v, %v, want %+v", i, left, err, want)
			}
		}
		m, err := to.Manifest(t.Context(), "web", "c1")
		if err != nil || !slices.Equal(m.Tags, []string{"here", "keep", "old"}) {
			t.Errorf("%v, %v", m.Tags, err)
		}
		if _, err := prune.Run(t.Context(), to, prune.Options{}); err != nil {
			t.Fatal(err)
		}
		report, err := check.Run(t.Context(), to, check.Options{ReadData: true})
		if err != nil || len(report.Findings) > 0 {
			t.Errorf("%+v, %v", report, err)
		}
		if err := archive.VerifyObject(t.Context(), to.Store, archive.BitmapKey(ref.Name), ref.Length, true); err != nil {
			t.Errorf("the bitmap that the list names: %v", err)
		}
		// Of what is of no use to what stands there nothing is taken.
		other := keyedRepo(t, objstore.NewMem(), toKeys)
		if r, err := transfer.Copy(t.Context(), from, other, transfer.Options{Domains: []string{"web"}, Checkpoints: []string{"c3"}}); err != nil || r.Objects == 0 {
			t.Fatal(r, err)
		}
		left, err := other.Forgotten(t.Context(), "web")
		if err != nil || len(left.Checkpoints) != 1 || left.Checkpoints[0].Disks[0].Witnesses != nil {
			t.Errorf("%+v, %v", left, err)
		}
		// What is damaged keeps nothing else back.
		if err := from.Store.Put(t.Context(), want.Key(), strings.NewReader("age-encryption.org/v1\n"), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
			t.Fatal(err)
		}
		third := keyedRepo(t, objstore.NewMem(), toKeys)
		r, err := transfer.Copy(t.Context(), from, third, transfer.Options{})
		if !archive.IsDamage(err) || r == nil || len(r.Checkpoints) != 2 {
			t.Errorf("%+v, %v", r, err)
		}
	})
}
