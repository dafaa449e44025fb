// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// spoilt is a world whose packs are all damaged, and a repository that has all.
func spoilt(t *testing.T, b *bucket) (w *world, twin string) {
	w = newWorldIn(t, 1, b)
	w.commit("c1", "--mode", "full")
	w.guest("vda", "write -P 20 100k 150k")
	w.look("vda")
	w.commit("c2")
	twin = filepath.Join(t.TempDir(), "twin")
	w.mustAsChild("-r", twin, "init")
	w.mustAsChild("copy", "--to", twin)
	store := w.store()
	for info, err := range store.List(t.Context(), archive.PackPrefix) {
		if err != nil {
			t.Fatal(err)
		}
		data, err := objstore.ReadAll(t.Context(), store, info.Key, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		data = slices.Clone(data)
		data[20] ^= 4 // in the first frame
		if err := store.Put(t.Context(), info.Key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
			t.Fatal(err)
		}
	}
	return w, twin
}

// mustAsChild is must for what has to do with more than one repository.
func (w *world) mustAsChild(args ...string) {
	w.Helper()
	if o := w.outcome(w.child(nil, args...)); o.code != exitDone {
		w.Fatalf("imgbackup %v: exit status %d\n%s%s", args, o.code, o.out, o.err)
	}
}

// mended repairs to the end: all must be well.
func (w *world) mended(twin string) {
	w.Helper()
	w.mustAsChild("repair", "--from", twin)
	w.must("prune")
	w.must("check", "--read-data")
	w.verify("c1", "c2")
}

// repairAlone is a repair that has only the image, which has other bytes here and there than the
// checkpoints.
func (w *world) repairAlone() []string {
	return []string{"repair", "--image", "vda=" + w.image("vda") + ",format=qcow2"}
}

// A repair of the real program is killed at its operations on a folder; package repair tries
// all, within one process.
func TestRepairKilled(t *testing.T) {
	t.Parallel()
	w, twin := spoilt(t, nil)
	var store failingStore
	whole := w.copy(t)
	if o := whole.runWith(program{wrap: store.around}, whole.repairAlone()...); o.code != exitDamage && o.code != exitDone {
		t.Fatalf("exit status %d: %s", o.code, o.err)
	}
	whole.mended(twin)
	n := 0
	for i, op := range store.ops {
		if op != "put" && op != "delete" {
			continue
		}
		if n++; n%2 != 0 && soak(t) == 1 {
			continue
		}
		t.Run(fmt.Sprintf("%d-%s", i+1, op), func(t *testing.T) {
			t.Parallel()
			w := w.copy(t)
			w.killed(fmt.Sprintf("%s=%d", killAtOp, i+1), w.repairAlone()...)
			w.mended(twin)
		})
	}
	if n < 5 {
		t.Errorf("only %d operations that write", n)
	}
}

// The same at requests to a server, when it has done what it was asked for and has not
// answered.
func TestRepairKilledAtRequestsToS3(t *testing.T) {
	t.Parallel()
	var worlds []*world
	var twins []string
	for _, kind := range s3test.Kinds() {
		w, twin := spoilt(t, newBucket(s3test.Start(t, kind)))
		worlds, twins = append(worlds, w), append(twins, twin)
	}
	whole := worlds[0].copy(t)
	proxy := whole.bucket.behind(t)
	if o := whole.outcome(whole.child(nil, whole.repairAlone()...)); o.code != exitDamage && o.code != exitDone {
		t.Fatalf("exit status %d: %s", o.code, o.err)
	}
	n := 0
	for at, method := range proxy.Methods() {
		if method != http.MethodPut && method != http.MethodDelete {
			continue
		}
		n++
		for j, w := range worlds {
			if soak(t) == 1 && (n%2 > 0 || n/2%len(worlds) != j) {
				continue
			}
			t.Run(fmt.Sprintf("%d/%d-%s", j, at, method), func(t *testing.T) {
				t.Parallel()
				w := w.copy(t)
				w.killedAtRequest(at, s3test.Lost, w.repairAlone()...)
				w.mended(twins[j])
			})
		}
	}
	if n < 5 {
		t.Errorf("only %d requests that write", n)
	}
}
