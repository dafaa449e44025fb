// SPDX-License-Identifier: Apache-2.0

package objstoretest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

// testDeleteBatch removes objects of several folders at once, absent ones among them.
func testDeleteBatch(t *testing.T, s objstore.Store) {
	var gone, keys []string
	for i := range 30 {
		key := fmt.Sprintf("packs/%02d/%d.zst", i%3, i)
		put(t, s, key, "x", objstore.Create)
		if i%5 == 0 {
			keys = append(keys, key)
		} else {
			gone = append(gone, key)
		}
	}
	batch := append([]string{"absent/a", "packs/00/absent", "packs/00"}, gone...)
	if err := objstore.DeleteBatch(t.Context(), s, batch); err != nil {
		t.Fatal(err)
	}
	for _, key := range gone {
		wantAbsent(t, s, key)
	}
	got, err := list(t.Context(), s, "")
	slices.Sort(keys)
	if err != nil || !slices.Equal(got, keys) {
		t.Fatalf("left are %q, %v; want %q", got, err, keys)
	}
	if err := objstore.DeleteBatch(t.Context(), s, nil); err != nil {
		t.Fatalf("none: %v", err)
	}
	if err := objstore.DeleteBatch(t.Context(), s, make([]string, objstore.MaxBatch+1)); err == nil {
		t.Fatal("too many were accepted")
	}
	if err := objstore.DeleteBatch(t.Context(), s, []string{keys[0], "../x"}); err == nil {
		t.Fatal("an invalid key was accepted")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := objstore.DeleteBatch(ctx, s, keys); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	wantContent(t, s, keys[1], "x")
}
