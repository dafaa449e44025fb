// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// The program is killed at each of its requests to a server: when the request
// was to be sent, when half of what it stores was, and when the server has done
// it and has not answered. Whatever is committed restores, what is left is only
// what no checkpoint uses, and the next run puts everything right. MinIO has an encrypted
// repository, the other a plain one.
func TestKilledAtEachRequestToS3(t *testing.T) {
	t.Parallel()
	servers := make([]*s3test.Server, len(s3test.Kinds()))
	for i, kind := range s3test.Kinds() {
		servers[i] = s3test.Start(t, kind)
	}
	var all [][]scene // of each server
	for _, server := range servers {
		all = append(all, scenesOf(t, 1, newBucket(server), server.Kind() == s3test.MinIO)[:2])
	}
	for i := range 2 { // a first backup, and an incremental one
		for j, server := range servers {
			s := all[j][i]
			n, last := 0, ""
			for at, method := range s.requests(t) {
				hows := killedHow(method)
				if len(hows) == 1 && len(killedHow(last)) == 1 && soak(t) == 1 {
					continue // nothing has changed in the server since the one before
				}
				last = method
				for _, how := range hows {
					if n++; soak(t) == 1 && (i+n)%len(servers) != j {
						continue // each on one of them
					}
					t.Run(fmt.Sprintf("%s/%s/%d-%s-%s", server.Kind(), s.name, at, method, moments[how]), func(t *testing.T) {
						t.Parallel()
						s.killedAt(t, at, how)
					})
				}
			}
			if n < 15 {
				t.Errorf("%s: killed only at %d moments", s.name, n)
			}
		}
	}
}

var moments = map[s3test.How]string{s3test.Reset: "before", s3test.ResetUpload: "half", s3test.Lost: "done"}

// killedHow are the moments of a request at which it makes a difference to be
// killed.
func killedHow(method string) []s3test.How {
	switch method {
	case http.MethodPut:
		return []s3test.How{s3test.ResetUpload, s3test.Lost}
	case http.MethodDelete:
		return []s3test.How{s3test.Reset, s3test.Lost}
	}
	return []s3test.How{s3test.Reset}
}

// requests lists the methods of the requests of the scene's backup.
func (s scene) requests(t *testing.T) []string {
	w := s.copy(t)
	proxy := w.bucket.behind(t)
	if o := w.outcome(w.child(nil, w.backup("whole", "--mode", s.mode)...)); o.code != exitDone {
		t.Fatalf("exit status %d: %s", o.code, o.err)
	}
	return proxy.Methods()
}

// killedAt kills the scene's backup at one of its requests.
func (s scene) killedAt(t *testing.T, at int, how s3test.How) {
	w := s.copy(t)
	w.killedAtRequest(at, how, w.backup("killed", "--mode", s.mode)...)
	w.must("check", "--read-data")
	for _, m := range w.checkpoints() {
		if m.Checkpoint == "killed" {
			w.want["killed"] = w.now
			w.verifyRestore("killed")
		}
	}
	s.backupAgain(w)
}
