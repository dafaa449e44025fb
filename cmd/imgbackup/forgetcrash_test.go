// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// crashed is a command on the checkpoints of a domain that is killed.
type crashed struct {
	name string
	args []string
	goes []string // checkpoints that it forgets
}

func crashedCommands() []crashed {
	return []crashed{
		{"forget", []string{"forget", domain, "c4", "c2"}, []string{"c4", "c2"}},
		{"tag", []string{"tag", domain, "c3", "--add", "new", "--remove", "old"}, nil},
	}
}

// remembered is a world with four checkpoints.
func remembered(t *testing.T, b *bucket, secret encrypted) *world {
	w := newWorldOf(t, 1, b, secret)
	for i, name := range []string{"c1", "c2", "c3", "c4"} {
		w.guest("vda", fmt.Sprintf("write -P %d %dk 150k", 20+i, 100*i))
		w.look("vda")
		w.commit(name, "--tag", "old")
	}
	return w
}

// afterCrash demands that every checkpoint that stands restores, that only those that
// were to be forgotten are gone, that the same command completes what was begun, and that
// the next backup is incremental and leaves no forgotten bitmap behind.
func (c crashed) afterCrash(w *world) {
	w.Helper()
	var stand []string
	for _, m := range w.checkpoints() {
		stand = append(stand, m.Checkpoint)
		if m.Checkpoint == "c3" && !slices.Equal(m.Tags, []string{"old"}) && !slices.Equal(m.Tags, []string{"new"}) {
			w.Errorf("c3 has the tags %q", m.Tags)
		}
	}
	for _, name := range []string{"c1", "c2", "c3", "c4"} {
		if !slices.Contains(stand, name) && !slices.Contains(c.goes, name) {
			w.Errorf("%s is gone", name)
		}
	}
	w.verifyChain(slices.Clone(stand)...)
	again := slices.DeleteFunc(slices.Clone(c.args), func(arg string) bool {
		return slices.Contains(c.goes, arg) && !slices.Contains(stand, arg)
	})
	if len(c.goes) == 0 || len(again) > 2 {
		w.must(again...)
	}
	maps.DeleteFunc(w.want, func(name string, _ map[string]digest) bool { return slices.Contains(c.goes, name) })
	if w.bucket != nil {
		c.breakLeft(w)
	}
	w.commit("again", "--mode", "incremental")
	w.verify(slices.Sorted(maps.Keys(w.want))...)
}

// breakLeft breaks the lease of a forget whose delete may still be on its way to the server,
// which others leave alone for 15 minutes.
func (c crashed) breakLeft(w *world) {
	w.Helper()
	left := 0
	for _, key := range w.bucket.keys(w) {
		dir, uuid := path.Split(strings.TrimSuffix(key, ".json"))
		if !strings.Contains("/"+dir, "/leases/") {
			continue
		}
		if left++; left > 1 || len(c.goes) == 0 {
			w.Errorf("left behind: %s", key)
		}
		w.must("leases", "--break", uuid)
	}
}

// Killed at any of its operations on a folder, forget loses no checkpoint that it was not
// told of, and tag none of its tags. This repository is encrypted, those in buckets are not.
func TestForgetKilled(t *testing.T) {
	t.Parallel()
	w := remembered(t, nil, keyed)
	for _, c := range crashedCommands() {
		var store failingStore
		if o := w.copy(t).runWith(program{wrap: store.around}, c.args...); o.code != exitDone {
			t.Fatalf("exit status %d: %s", o.code, o.err)
		}
		for i, op := range store.ops {
			if op != "put" && op != "delete" && soak(t) == 1 && i+1 < len(store.ops) {
				continue // before anything was written, or between, which the next one shows
			}
			t.Run(fmt.Sprintf("%s/%d-%s", c.name, i+1, op), func(t *testing.T) {
				t.Parallel()
				w := w.copy(t)
				w.killed(fmt.Sprintf("%s=%d", killAtOp, i+1), c.args...)
				c.afterCrash(w)
			})
		}
	}
}

// The same at requests to servers: before one is sent, and when it is done and not
// answered.
func TestForgetKilledAtRequestsToS3(t *testing.T) {
	t.Parallel()
	var worlds []*world
	for _, kind := range s3test.Kinds() {
		worlds = append(worlds, remembered(t, newBucket(s3test.Start(t, kind)), plain))
	}
	n := 0
	for _, c := range crashedCommands() {
		whole := worlds[0].copy(t)
		proxy := whole.bucket.behind(t)
		if o := whole.outcome(whole.child(nil, c.args...)); o.code != exitDone {
			t.Fatalf("exit status %d: %s", o.code, o.err)
		}
		for at, method := range proxy.Methods() {
			if method != http.MethodPut && method != http.MethodDelete {
				continue
			}
			for _, how := range []s3test.How{s3test.Reset, s3test.Lost} {
				n++
				for j, w := range worlds {
					if soak(t) == 1 && n%len(worlds) != j {
						continue // each on one of them
					}
					t.Run(fmt.Sprintf("%d/%s/%d-%s-%s", j, c.name, at, method, moments[how]), func(t *testing.T) {
						t.Parallel()
						w := w.copy(t)
						w.killedAtRequest(at, how, c.args...)
						c.afterCrash(w)
					})
				}
			}
		}
	}
	if n < 8 {
		t.Errorf("killed only at %d moments", n)
	}
}
