// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// pruned is a world in which a prune has something to delete, to merge and to repack.
func pruned(t *testing.T, b *bucket) *world { return prunedOf(t, b, plain) }

func prunedOf(t *testing.T, b *bucket, secret encrypted) *world {
	w := newWorldOf(t, 1, b, secret)
	w.commit("c1", "--mode", "full")
	for i, name := range []string{"c2", "c3", "c4"} {
		w.guest("vda", fmt.Sprintf("write -P %d %dk 150k", 20+i, 100*i))
		w.look("vda")
		w.commit(name)
	}
	w.must("forget", domain, "c1", "c2")
	delete(w.want, "c1")
	delete(w.want, "c2")
	return w
}

var pruneAll = []string{"prune", "--max-unused", "0"}

// completed prunes once more: all must be well, and nothing is left that could be pruned.
func (w *world) completed() {
	w.Helper()
	w.must(pruneAll...)
	w.verify("c3", "c4")
	if out := w.must(append(pruneAll, "--dry-run")...); out[:len("0 B of 0 objects")] != "0 B of 0 objects" {
		w.Errorf("there is more to be pruned: %s", out)
	}
	w.must("check", "--read-data")
}

// A prune of the real program is killed at some of its operations on a folder; package
// prune tries all, within one process. This repository is encrypted.
func TestPruneKilled(t *testing.T) {
	t.Parallel()
	w := prunedOf(t, nil, keyed)
	var store failingStore
	whole := w.copy(t)
	if o := whole.runWith(program{wrap: store.around}, pruneAll...); o.code != exitDone {
		t.Fatalf("exit status %d: %s", o.code, o.err)
	}
	whole.verify("c3", "c4")
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
			w.killed(fmt.Sprintf("%s=%d", killAtOp, i+1), pruneAll...)
			w.must("check", "--read-data")
			w.completed()
		})
	}
	if n < 6 {
		t.Errorf("only %d operations that write", n)
	}
}

// The same at requests to a server, when it has done what it was asked for and has not
// answered.
func TestPruneKilledAtRequestsToS3(t *testing.T) {
	t.Parallel()
	var worlds []*world
	for _, kind := range s3test.Kinds() {
		worlds = append(worlds, pruned(t, newBucket(s3test.Start(t, kind))))
	}
	whole := worlds[0].copy(t)
	proxy := whole.bucket.behind(t)
	if o := whole.outcome(whole.child(nil, pruneAll...)); o.code != exitDone {
		t.Fatalf("exit status %d: %s", o.code, o.err)
	}
	methods := proxy.Methods()
	if !slices.Contains(methods, http.MethodPost) {
		t.Errorf("nothing was deleted in a batch: %q", methods)
	}
	n := 0
	for at, method := range methods {
		if method != http.MethodPut && method != http.MethodPost && method != http.MethodDelete {
			continue
		}
		n++
		for j, w := range worlds {
			if soak(t) == 1 && (n%2 > 0 && method == http.MethodPut || n/2%len(worlds) != j) {
				continue
			}
			t.Run(fmt.Sprintf("%d/%d-%s", j, at, method), func(t *testing.T) {
				t.Parallel()
				w := w.copy(t)
				w.killedAtRequest(at, s3test.Lost, pruneAll...)
				w.must("check", "--read-data")
				w.pruneLater()
				w.completed()
			})
		}
	}
}

// pruneLater goes on with a prune that was killed. While its last request may still be on
// its way nobody does, unless a person says so.
func (w *world) pruneLater() {
	w.Helper()
	o := w.outcome(w.child(nil, pruneAll...))
	if o.code == exitDone {
		return
	}
	if o.code != exitFailed || !strings.Contains(o.err, "may still arrive") {
		w.Fatalf("exit status %d: %s", o.code, o.err)
	}
	w.must(append(slices.Clone(pruneAll), "--take-over")...)
}
