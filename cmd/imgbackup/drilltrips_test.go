// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"testing"
	"testing/synctest"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

// TestDrillBeginsSoon: a drill reads the first pack after seven answers in a row: that of the
// configuration, the listing, manifests, the checkpoint's again, the maps, and what a client
// would get first.
func TestDrillBeginsSoon(t *testing.T) {
	t.Parallel()
	store, _, _ := longChain(t, 3, plain)
	synctest.Test(t, func(t *testing.T) {
		far := objstoretest.NewFar(store)
		// Not run: it would catch signals.
		root := newRoot(program{out: io.Discard, err: io.Discard, wrap: func(objstore.Store) objstore.Store { return far }})
		root.SetArgs([]string{"drill", domain, "--repo", t.TempDir(), "--no-record", "--no-scratch", "--skip", "source,filesystems"})
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		first, all := far.RoundTrips("packs"), far.Elapsed()
		if first == 0 || first > 7 || all > 9 {
			t.Errorf("the first pack is read after %d round trips, and all is done after %d", first, all)
		}
	})
}
