// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// attacked is a world in a locked bucket.
func attacked(t *testing.T, kind s3test.Kind) *world {
	t.Helper()
	b := lockedBucket(s3test.StartVersioned(t, kind))
	b.init = []string{"--object-lock", "compliance", "--lock-for", "6d"}
	if kind == s3test.VersityGW {
		b.init = append(b.init, "--single-writer")
	}
	w := newWorldOf(t, 1, b, keyed)
	w.commit("c1", "--mode", "full")
	w.guest("vda", "write -P 33 700k 90k")
	w.look("vda")
	w.commit("c2")
	w.must("tag", domain, "c1", "--add", "seen") // a second revision
	return w
}

// versions are all that there are, of what checkpoints need.
func (w *world) versions(store objstore.Store) (all []objstore.ObjectVersion) {
	w.Helper()
	versions, _ := objstore.As[objstore.Versions](store)
	for v, err := range versions.ListVersions(w.Context(), "", "") {
		if err != nil {
			w.Fatal(err)
		}
		_, _, data := archive.ParseKey(v.Key)
		if kind := chain.ParseKey(v.Key).Kind; !v.Marker && (data || kind == chain.KeyManifest) {
			all = append(all, v)
		}
	}
	return all
}

// TestAttacker: who has all rights of a bucket can remove or change nothing that a checkpoint
// needs. He puts junk, markers and older revisions on top of all of it: each checkpoint is
// restored as it was, and it is told; check tells; repair puts all of it right.
func TestAttacker(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			w := attacked(t, kind)
			store := w.bucket.open(t)
			versions, _ := objstore.As[objstore.Versions](store)
			for i, v := range w.versions(store) {
				if err := versions.DeleteVersion(t.Context(), v.Key, v.ID); err == nil {
					t.Errorf("%s could be removed", v.Key)
				}
				if !v.Latest {
					continue
				}
				body := bytes.Repeat([]byte("junk"), int(v.Size)/4+1)[:v.Size]
				switch _, _, data := archive.ParseKey(v.Key); {
				case data && i%2 == 0: // a marker
					if err := store.Delete(t.Context(), v.Key); err != nil {
						t.Fatal(err)
					}
				default:
					if err := store.Put(t.Context(), v.Key, bytes.NewReader(body), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
						t.Fatal(err)
					}
				}
			}
			for name, want := range w.want {
				dir := filepath.Join(t.TempDir(), name)
				o := w.runWith(program{}, "restore", domain, name, "--output", dir)
				if o.code != exitDone || !strings.Contains(o.err, "on top") {
					t.Fatalf("restore: %+v", o)
				}
				if got := w.sum(filepath.Join(dir, "vda.raw")); got != want["vda"] {
					t.Errorf("%s was not restored as it was", name)
				}
			}
			if o := w.runWith(program{}, "check", "--read-data"); o.code != exitDamage || !strings.Contains(o.out, "on top") {
				t.Errorf("check: %+v", o)
			}
			o := w.runWith(program{}, "repair")
			if o.code != exitDone {
				t.Fatalf("repair: %+v", o)
			}
			w.must("check", "--read-data")
			w.verify("c1", "c2")
			if out := w.must("show", domain, "c1"); !strings.Contains(out, "seen") {
				t.Errorf("an older revision is on top:\n%s", out)
			}
		})
	}
}

// TestRevisions: a checkpoint that somebody took away is found, and given back, as long as the
// bucket keeps it.
func TestRevisions(t *testing.T) {
	t.Parallel()
	w := attacked(t, s3test.MinIO)
	w.must("forget", domain, "c1")
	var listed struct{ Revisions []revisionJSON }
	if err := json.Unmarshal([]byte(w.must("list", domain, "--revisions", "--json")), &listed); err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, r := range listed.Revisions {
		states = append(states, r.Checkpoint+" "+r.State)
	}
	if got := strings.Join(states, ", "); got != "c1 removed, c1 removed, c1 earlier, c1 earlier, c2 counts" {
		t.Fatal(got)
	}
	w.must("prune", "--max-unused", "0")
	dir := filepath.Join(t.TempDir(), "out")
	w.must("restore", domain, "c1", "--revision", listed.Revisions[3].Version, "--output", dir)
	if w.sum(filepath.Join(dir, "vda.raw")) != w.want["c1"]["vda"] {
		t.Error("c1 was not restored as it was")
	}
	if o := w.runWith(program{}, "restore", domain, "c1", "--revision", "none", "--output", dir); o.code != exitFailed || !strings.Contains(o.err, "has no version") {
		t.Errorf("%+v", o)
	}
}
