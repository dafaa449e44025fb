// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// A copy to S3 is killed at each request that stores something: what has come
// is whole, and the next copy brings the rest, and no more than that.
func TestS3CopyKilled(t *testing.T) {
	t.Parallel()
	s := scenes(t, 1)[1] // with a local repository
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			b := newBucket(s3test.Start(t, kind))
			empty := *s.world
			empty.TB, empty.bucket = t, b
			empty.must("init")
			dest := empty.copyTo(t)
			proxy := dest.bucket.behind(t)
			if o := dest.outcome(dest.copyFrom(s.world)); o.code != exitDone {
				t.Fatalf("exit status %d: %s", o.code, o.err)
			}
			dest.verifyChain(s.checkpoints...)
			stored := 0 // requests
			for at, method := range proxy.Methods() {
				if method != http.MethodPut {
					continue
				}
				stored++
				for _, how := range killedHow(method) {
					t.Run(fmt.Sprintf("%d-%s", at, moments[how]), func(t *testing.T) {
						t.Parallel()
						dest := empty.copyTo(t)
						dest.killCopy(s.world, at, how)
						dest.must("check", "--read-data")
						there := dest.bucket.keys(t)
						again := dest.bucket.behind(t)
						if o := dest.outcome(dest.copyFrom(s.world)); o.code != exitDone {
							t.Fatalf("exit status %d: %s", o.code, o.err)
						}
						dest.verifyChain(s.checkpoints...)
						want := len(slices.DeleteFunc(dest.bucket.keys(t), isLease)) - len(slices.DeleteFunc(there, isLease))
						if want > 0 {
							dest.bucket.verifyTidy(t)
						}
						// A lease, which announces each checkpoint, and that of the killed one
						// is broken: it is replaced, and the slot that it announces is spent.
						most := want + 1 + len(s.checkpoints) + 2
						if n := again.Count(http.MethodPut); n < want || n > most {
							t.Errorf("%d requests to store something, want %d to %d", n, want, most)
						}
					})
				}
			}
			if stored < 6 {
				t.Errorf("only %d requests stored something", stored)
			}
		})
	}
}

func isLease(key string) bool { return strings.HasPrefix(key, "leases/") }

// copyTo returns the same images with a copy of the bucket.
func (w *world) copyTo(t testing.TB) *world {
	c := *w
	c.TB, c.dir, c.bucket = t, t.TempDir(), w.bucket.copy(t)
	return &c
}

// copyFrom prepares the copying of all of another world's repository to this
// one's bucket.
func (w *world) copyFrom(from *world) *exec.Cmd {
	cmd := w.child(nil, "copy", "--to", w.repo())
	cmd.Args[2] = from.repo()
	return cmd
}

func (w *world) killCopy(from *world, at int, how s3test.How) {
	w.Helper()
	w.killedWhen(s3test.Fault{How: how, After: at}, func() *exec.Cmd { return w.copyFrom(from) })
}
