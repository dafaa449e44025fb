// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"path/filepath"
	"testing"

	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// A server that fails at every turn, and comes back each time, is nobody's
// concern: neither in the exit status nor on stderr, let alone in the bytes.
func TestS3FlakyServer(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			w := scenesIn(t, 2, newBucket(s3test.Start(t, kind)))[1]
			var faults []s3test.Fault
			for _, key := range []string{"/leases/", "/intents/", "/packs/", "/maps/", "/bitmaps/", "/index/", "/checkpoints/"} {
				faults = append(faults,
					s3test.Fault{How: s3test.Lost, Method: http.MethodPut, Key: key, Times: 1},
					s3test.Fault{How: s3test.Reset, Method: http.MethodPut, Key: key, Times: 1},
				)
			}
			w.bucket.more = append(w.bucket.more, cacheVar+"=off") // or some would never be asked for
			w.bucket.behind(t, append(faults,
				s3test.Fault{How: s3test.Internal, Method: "LIST", Times: 2},
				s3test.Fault{How: s3test.Cut, Method: "LIST", Bytes: 50, Times: 2},
				s3test.Fault{How: s3test.Lost, Method: http.MethodDelete, Times: 2},
				s3test.Fault{How: s3test.Unavailable, Method: http.MethodDelete, Times: 1},
			)...)
			w.quietly("backup", w.backup("killed", "--mode", "incremental")...)
			w.want["killed"] = w.now
			w.bucket.behind(t,
				s3test.Fault{How: s3test.NotS3, Key: "imgbackup.json", Times: 1},
				s3test.Fault{How: s3test.Cut, Method: http.MethodGet, Key: "/checkpoints/", Bytes: 500, Times: 2},
				s3test.Fault{How: s3test.Reset, Method: http.MethodGet, Key: "/maps/", Times: 1},
				s3test.Fault{How: s3test.Cut, Method: http.MethodGet, Key: "/maps/", Bytes: 20, Times: 2},
				s3test.Fault{How: s3test.Unavailable, Method: http.MethodGet, Key: "/packs/", Times: 1},
				s3test.Fault{How: s3test.Cut, Method: http.MethodGet, Key: "/packs/", Bytes: 7, Times: 3},
			)
			out := filepath.Join(w.dir, "out")
			w.quietly("restore", "restore", domain, "--checkpoint", "c1", "--output", out)
			for _, target := range w.targets {
				if w.sum(filepath.Join(out, target+".raw")) != w.want["c1"][target] {
					t.Errorf("disk %s has other bytes than it had", target)
				}
			}
			w.bucket.behind(t,
				s3test.Fault{How: s3test.Cut, Method: http.MethodGet, Key: "/checkpoints/", Bytes: 30, Times: 1},
				s3test.Fault{How: s3test.Cut, Method: http.MethodGet, Key: "/bitmaps/", Bytes: 30, Times: 2},
				s3test.Fault{How: s3test.Internal, Method: http.MethodGet, Key: "/packs/", Times: 2},
			)
			w.quietly("check", "check", "--read-data")
			w.verify(append(w.checkpoints, "killed")...)
		})
	}
}

// quietly runs a process of the program that has to succeed without a word on
// stderr.
func (w *world) quietly(what string, args ...string) {
	w.Helper()
	if o := w.outcome(w.child([]string{delay + "=2ms"}, args...)); o.code != exitDone || o.err != "" {
		w.Errorf("%s: exit status %d: %s", what, o.code, o.err)
	}
}
