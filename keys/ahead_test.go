// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"testing"
	"testing/synctest"

	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

// TestOpenIsNear: what opens a repository comes in two answers, of which the first is asked for
// beside the configuration: of who is pinned, and who is not, and after rotations.
func TestOpenIsNear(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	host := parse(t, w.add(t, "h", Host))
	for generation := 1; generation <= 3; generation++ {
		for _, ids := range []*Identities{w.admin.ids, host} {
			synctest.Test(t, func(t *testing.T) {
				far := objstoretest.NewFar(w.store)
				place := w.place
				place.Store, place.Listing = far, List(t.Context(), far)
				k, err := Open(t.Context(), place, ids)
				if err != nil || k.Keys.Generation() != generation {
					t.Fatal(err)
				}
				if n := far.Elapsed(); n != 2 {
					t.Errorf("of %s, generation %d: %d round trips", k.Member.Name, generation, n)
				}
			})
		}
		if err := w.ring.Rotate(t.Context(), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
}
