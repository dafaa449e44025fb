// SPDX-License-Identifier: Apache-2.0

package chaintest

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

// Harm damages one of the objects whose keys want reports: it flips a bit, cuts off the end,
// or removes it, where mayRemove says that this is damage. It returns the key; empty: there is no such object.
func Harm(t TB, store objstore.Store, r *rand.Rand, want, mayRemove func(key string) bool) string {
	t.Helper()
	ctx := context.Background()
	if below, ok := store.(interface{ Unwrap() objstore.Store }); ok && archive.KeysOf(store) != nil {
		store = below.Unwrap() // which takes what is no age file any more
	}
	var keys []string
	for info, err := range store.List(ctx, "") {
		if err != nil {
			t.Fatal(err)
		}
		if want(info.Key) {
			keys = append(keys, info.Key)
		}
	}
	if len(keys) == 0 {
		return ""
	}
	key := keys[r.IntN(len(keys))]
	data, err := objstore.ReadAll(ctx, store, key, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	switch how := r.IntN(4); {
	case how == 0 && mayRemove(key):
		if err := store.Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
		return key
	case how == 1 && len(data) > 0:
		data = data[:r.IntN(len(data))]
	case len(data) > 0:
		data = slices.Clone(data)
		data[r.IntN(len(data))] ^= 1 << r.IntN(8)
	}
	if err := store.Put(ctx, key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
		t.Fatal(err)
	}
	return key
}
