// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// purge prunes and purges, and returns what was said of that.
func (w *world) purge() prunedJSON {
	w.Helper()
	var p prunedJSON
	if err := json.Unmarshal([]byte(w.must(append(slices.Clone(pruneAll), "--purge-versions", "--json")...)), &p); err != nil {
		w.Fatal(err)
	}
	if p.Purged == nil || p.Result == nil {
		w.Fatalf("%+v", p)
	}
	return p
}

// TestPurge: in a bucket with versions, what was pruned is gone for good after it was purged, and
// so is what was replaced; all that is needed is there.
func TestPurge(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			b := lockedBucket(s3test.StartVersioned(t, kind))
			if kind == s3test.VersityGW {
				b.init = []string{"--single-writer"}
			}
			w := pruned(t, b)
			if p := w.purge(); p.Purged.Versions == 0 || p.Purged.Bytes == 0 || p.Purged.Kept != 0 {
				t.Errorf("%+v", p.Purged)
			}
			versions, _ := objstore.As[objstore.Versions](b.open(t))
			for v, err := range versions.ListVersions(t.Context(), "", "") {
				if err != nil {
					t.Fatal(err)
				}
				// The mark of this prune, and its lease, were replaced while it ran.
				if kind := chain.ParseKey(v.Key).Kind; (!v.Latest || v.Marker) && kind != chain.KeyMark && kind != chain.KeyLease {
					t.Errorf("%s is left: %+v", v.Key, v)
				}
			}
			w.completed()
		})
	}
}

// TestPurgeLocked: what object lock keeps stays, and is counted; so does what young checkpoints
// needed that were forgotten.
func TestPurgeLocked(t *testing.T) {
	t.Parallel()
	w := attacked(t, s3test.MinIO)
	before := len(w.versions(w.bucket.open(t)))
	w.must("forget", domain, "c1")
	delete(w.want, "c1")
	p := w.purge()
	if p.Purged.Kept == 0 || p.Purged.Next == nil || p.Purged.KeptBytes == 0 {
		t.Errorf("%+v", p.Purged)
	}
	if after := len(w.versions(w.bucket.open(t))); after < before {
		t.Errorf("of %d versions %d are left", before, after)
	}
	w.must("restore", domain, "c2", "--output", t.TempDir(), "--verify")
	w.must("check", "--read-data")
	if out := w.must("lock", "--status"); !strings.Contains(out, "ran last on") { // as part of prune
		t.Error(out)
	}
	if out := w.must("show", domain, "c2"); !strings.Contains(out, "locked       until "+time.Now().UTC().AddDate(0, 0, 6).Format(time.DateOnly)) {
		t.Error(out)
	}
}
