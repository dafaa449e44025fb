// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

// Many packs are looked for with a listing, and each one that it does not show
// with its length is asked for by itself.
func TestStatManyPacks(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	store := objstore.NewMem()
	var packs []Ref
	for i := range 3 * listPacks {
		body := binary.BigEndian.AppendUint64(nil, uint64(i))
		p := Ref{Name: Sum(body), Length: int64(len(body))}
		if err := store.Put(ctx, PackKey(p.Name), bytes.NewReader(body), objstore.PutOptions{Mode: objstore.Create}); err != nil {
			t.Fatal(err)
		}
		packs = append(packs, p)
	}
	counted := objstoretest.NewFaulty(t, store)
	if err := statPacks(ctx, counted, packs); err != nil {
		t.Fatal(err)
	}
	if lists, stats := counted.Count(objstoretest.List), counted.Count(objstoretest.Stat); lists != 1 || stats != 0 {
		t.Errorf("%d listings and %d questions, want 1 and 0", lists, stats)
	}
	longer := packs[70]
	longer.Length++
	if err := statPacks(ctx, store, append(packs[:70:70], longer)); !IsDamage(err) {
		t.Errorf("a pack of another length: %v", err)
	}
	if err := store.Delete(ctx, PackKey(packs[5].Name)); err != nil {
		t.Fatal(err)
	}
	if err := statPacks(ctx, store, packs); !IsDamage(err) {
		t.Errorf("a missing pack: %v", err)
	}
	outage := errors.New("the store does not answer")
	down := objstoretest.NewFaulty(t, store, objstoretest.Fault{Op: objstoretest.List, Err: outage})
	if err := statPacks(ctx, down, packs); !errors.Is(err, outage) || IsDamage(err) {
		t.Errorf("an outage: %v", err)
	}
}
