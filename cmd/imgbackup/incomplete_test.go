// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

// A check that can't be completed tells the damage that it has found, and a listing that
// leaves something out is never taken for an empty repository.
func TestCheckIncomplete(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.commit("c1")
	hiding := program{wrap: func(s objstore.Store) objstore.Store {
		return &objstoretest.Hiding{Store: s, Hidden: func(key string) bool { return key == chain.ConfigKey }}
	}}
	o := w.runWith(hiding, "check")
	if o.code != exitFailed || o.out != "" || !strings.Contains(o.err, "listings cannot be believed") {
		t.Errorf("%d\n%s%s", o.code, o.out, o.err)
	}
	maps, err := filepath.Glob(filepath.Join(w.repo(), "maps", "*", "*"))
	if err != nil || len(maps) == 0 {
		t.Fatalf("%q, %v", maps, err)
	}
	if err := os.Truncate(maps[0], 1); err != nil {
		t.Fatal(err)
	}
	o = w.runWith(hiding, "check")
	if o.code != exitDamage || !strings.Contains(o.out, "DAMAGED maps/") || !strings.Contains(o.out, "not complete") || !strings.Contains(o.err, "listings cannot be believed") {
		t.Errorf("%d\n%s%s", o.code, o.out, o.err)
	}
	everything := program{wrap: func(s objstore.Store) objstore.Store {
		return &objstoretest.Hiding{Store: s, Hidden: func(string) bool { return true }}
	}}
	for _, args := range [][]string{{"check"}, {"list"}, {"list", domain}, w.backup("c2"), {"restore", domain, "--output", filepath.Join(w.dir, "out")}} {
		if o := w.runWith(everything, args...); o.code != exitFailed || !strings.Contains(o.err, "listings cannot be believed") {
			t.Errorf("%s: %d\n%s%s", args[0], o.code, o.out, o.err)
		}
	}
}
