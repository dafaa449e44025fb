// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"

	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// lockedBucket is a place in a bucket with object lock.
func lockedBucket(server *s3test.Server) *bucket {
	b := newBucket(server)
	b.name = server.LockedBucket()
	return b
}

// TestPruneRetained: in a bucket with versions that retains all objects, a prune puts markers
// in the place of what nobody needs, and does not say that it freed anything: all of it is
// there still, and no checkpoint is harmed.
func TestPruneRetained(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.MinIO)
	b := lockedBucket(server)
	server.Retain(b.name)
	w := pruned(t, b)
	before := b.keys(t)
	if out := w.must(pruneAll...); !strings.Contains(out, " deleted: ") || !strings.Contains(out, "keeps versions") || strings.Contains(out, "\nfreed ") {
		t.Errorf("prune:\n%s", out)
	}
	w.completed()
	gone := slices.DeleteFunc(before, func(key string) bool { return slices.Contains(b.keys(t), key) })
	if len(gone) == 0 {
		t.Fatal("nothing was pruned")
	}
	for _, key := range gone {
		left := 0
		for o := range server.Client().ListObjects(t.Context(), b.name, minio.ListObjectsOptions{Prefix: b.prefix + "/" + key, WithVersions: true}) {
			if o.Err != nil {
				t.Fatal(o.Err)
			}
			if o.IsDeleteMarker {
				continue
			}
			left++
			if err := server.Client().RemoveObject(t.Context(), b.name, o.Key, minio.RemoveObjectOptions{VersionID: o.VersionID}); err == nil {
				t.Errorf("%s was not retained", key)
			}
		}
		if left == 0 {
			t.Errorf("%s is not retained", key)
		}
	}
	w.commit("c5", "--mode", "full")
	w.verify("c3", "c4", "c5")
	w.must("forget", domain, "c3")
	delete(w.want, "c3")
	if out := w.must(append(slices.Clone(pruneAll), "--json")...); !strings.Contains(out, `"versions_kept": true`) {
		t.Error(out)
	}
	w.verify("c4", "c5")
	w.must("check", "--read-data")
}

// TestPruneLocked: a bucket that retains objects and has no versions can hold no repository,
// which init says. Where one is locked afterwards nothing can be pruned: that is told, and
// nothing is lost; who only reads is not affected.
func TestPruneLocked(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.VersityGW)
	const why = "object lock keeps what is there"
	retained := lockedBucket(server)
	server.Retain(retained.name)
	o := (&world{TB: t, bucket: retained}).runWith(program{}, "init")
	if o.code != exitFailed || !strings.Contains(o.err, why) {
		t.Errorf("init: %+v", o)
	}
	w := pruned(t, lockedBucket(server))
	before := w.bucket.keys(t)
	server.Retain(w.bucket.name)
	for range 2 { // the second one meets the mark of the first
		o := w.runWith(program{}, pruneAll...)
		if o.code != exitFailed || !strings.Contains(o.err, why) || !strings.Contains(o.out, "freed 0 B") {
			t.Errorf("prune: %+v", o)
		}
	}
	left := w.bucket.keys(t)
	for _, key := range before {
		if !slices.Contains(left, key) {
			t.Errorf("%s is gone", key)
		}
	}
	w.must("check", "--read-data")
	w.verify("c3", "c4")
}

// TestPruneReadOnly: where nothing may be written a prune fails at once and says why, and a
// dry run tells what there would be to do.
func TestPruneReadOnly(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.MinIO)
	w := pruned(t, newBucket(server))
	before := w.bucket.keys(t)
	w.bucket.more = asEnv(t, server.ReadOnly(w.bucket.name))
	if o := w.outcome(w.child(nil, pruneAll...)); o.code != exitFailed || !strings.Contains(o.err, "s3:PutObject") || strings.Contains(o.out, "deleted: ") {
		t.Errorf("prune: %+v", o)
	}
	if o := w.outcome(w.child(nil, "prune", "--dry-run")); o.code != exitDone || !strings.Contains(o.out, "would be deleted") {
		t.Errorf("a dry run: %+v", o)
	}
	if after := w.bucket.keys(t); !slices.Equal(before, after) {
		t.Errorf("there are %q, there were %q", after, before)
	}
	w.bucket.more = nil
	w.completed()
}
