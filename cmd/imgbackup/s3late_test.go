// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// The request that commits a checkpoint is cut off, and reaches the server only
// later. The program never says that a checkpoint is not there which then
// comes. The next backup decides: what has come till then stands, and what comes
// later is refused.
func TestS3LateCommit(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			s := scenesIn(t, 2, newBucket(s3test.Start(t, kind)))[1]
			for name, test := range map[string]func(scene, *testing.T){
				"interrupted":            scene.lateInterrupted,
				"before the next backup": scene.lateBeforeNext,
				"after the next backup":  scene.lateAfterNext,
			} {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					test(s, t)
				})
			}
		})
	}
}

// lateCommit is the fault.
func lateCommit(do func()) s3test.Fault {
	return s3test.Fault{How: s3test.Late, Method: http.MethodPut, Key: "/checkpoints/", Times: 1, Do: do}
}

// Ctrl-C comes while the request is under way.
func (s scene) lateInterrupted(t *testing.T) {
	w := s.copy(t)
	var cmd *exec.Cmd
	said := newNotice()
	started := make(chan struct{})
	proxy := w.bucket.behind(t, lateCommit(func() {
		<-started
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
			t.Error(err)
		}
		<-said.taken
	}))
	cmd = w.child(nil, w.backup("killed", "--mode", s.mode)...)
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	close(started)
	// It can't be taken back, so it is carried out.
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, &said.text)
	}
	demandStatuses(t, proxy.Deliver(), http.StatusPreconditionFailed)
	w.want["killed"] = maps.Clone(w.now)
	w.verify(append(slices.Clone(s.checkpoints), "killed")...)
	s.backupAgain(w)
}

// unknown makes a backup whose outcome is not known.
func (s scene) unknown(t *testing.T) (*world, *s3test.Proxy) {
	w := s.copy(t)
	refused := s3test.Fault{How: s3test.Skewed, Method: http.MethodPut, Key: "/checkpoints/"}
	proxy := w.bucket.behind(t, lateCommit(nil), refused)
	o := w.outcome(w.child(nil, w.backup("killed", "--mode", s.mode)...))
	if o.code != exitFailed || strings.Count(o.err, "\n") != 1 {
		t.Errorf("exit status %d: %s", o.code, o.err)
	}
	w.verifyLine(o, "checkpoint killed of domain "+domain+" may have been committed", "the next backup finds out")
	w.verifyChain(s.checkpoints...)
	return w, proxy
}

func (s scene) lateBeforeNext(t *testing.T) {
	w, proxy := s.unknown(t)
	demandStatuses(t, proxy.Deliver(), http.StatusOK)
	s.backupAgain(w)
	ms := w.checkpoints()
	last := ms[len(ms)-1]
	for _, d := range last.Disks {
		if d.IncrementalFrom == nil || d.IncrementalFrom.Name != "killed" {
			t.Errorf("disk %s of %s is incremental from %v, want killed", d.Name, last.Checkpoint, d.IncrementalFrom)
		}
	}
}

func (s scene) lateAfterNext(t *testing.T) {
	w, proxy := s.unknown(t)
	w.guest("vda", "write -P 8 300k 200k")
	w.look("vda")
	s.backupAgain(w) // which takes the bitmaps of the other one away
	demandStatuses(t, proxy.Deliver(), http.StatusPreconditionFailed)
	all := append(slices.Clone(s.checkpoints), "again")
	w.verifyChain(all...)
	for _, name := range []string{"later", "last"} {
		w.guest("vda", "write -P 9 700k 100k", "write -z 310k 50k")
		w.look("vda")
		w.commit(name, "--mode", "incremental")
		all = append(all, name)
	}
	w.commit("killed") // its name is free
	w.verify(append(all, "killed")...)
}

func demandStatuses(t *testing.T, got []int, want ...int) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("the server answers %v to what is late, want %v", got, want)
	}
}
