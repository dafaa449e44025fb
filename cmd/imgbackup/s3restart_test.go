// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// The server is killed in the middle of a request of the program's. When it
// comes back, the work goes on; when it does not, the program says so and
// leaves nothing half-done.
func TestS3ServerKilled(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			server := s3test.Start(t, kind)
			s := scenesIn(t, 2, newBucket(server))[1]
			// One after the other: all of them kill the same server.
			for _, name := range []string{"/packs/", "/intents/", "/checkpoints/"} {
				t.Run("backup/"+name, func(t *testing.T) { s.serverKilled(t, name, true) })
				t.Run("backup given up/"+name, func(t *testing.T) { s.serverKilled(t, name, false) })
			}
			for _, name := range []string{"/packs/", "/maps/"} {
				t.Run("restore/"+name, func(t *testing.T) { s.serverKilledInRestore(t, name, true) })
				t.Run("restore given up/"+name, func(t *testing.T) { s.serverKilledInRestore(t, name, false) })
			}
		})
	}
}

// withServerKilled runs the program, whose server is killed in the middle of
// the first request of a kind. The server comes back during its work, or only
// after it.
func (w *world) withServerKilled(fault s3test.Fault, back bool, args ...string) outcome {
	w.Helper()
	server := w.bucket.server
	killed := make(chan struct{})
	fault.Times = 1
	fault.Do = func() {
		server.Kill()
		close(killed)
	}
	w.bucket.behind(w, fault)
	var env []string
	if !back {
		env = append(env, patience+"=400ms")
	}
	ended := make(chan outcome, 1)
	go func() { ended <- w.outcome(w.child(env, args...)) }()
	var o outcome
	select {
	case <-killed:
	case o = <-ended:
		w.Fatalf("ended before the server was killed: %+v", o)
	}
	if !back {
		o = <-ended
	}
	server.Restart()
	if back {
		o = <-ended
	}
	return o
}

func (s scene) serverKilled(t *testing.T, key string, back bool) {
	w := s.copy(t)
	o := w.withServerKilled(s3test.Fault{How: s3test.Meanwhile, Method: http.MethodPut, Key: key}, back, w.backup("killed", "--mode", s.mode)...)
	if back && o.code != exitDone || !back && o.code != exitFailed {
		t.Errorf("exit status %d: %s", o.code, o.err)
	}
	if !back {
		w.verifyLine(o, w.bucket.proxy, "given up after")
	}
	if unknown := strings.Contains(o.err, "may have been committed"); unknown != (!back && key == "/checkpoints/") {
		t.Errorf("the outcome is unknown: %v: %s", unknown, o.err)
	}
	s.verifyOutcome(w, o)
	w.must("check", "--read-data")
	s.backupAgain(w)
}

func (s scene) serverKilledInRestore(t *testing.T, key string, back bool) {
	w := s.copy(t)
	out := filepath.Join(w.dir, "out")
	o := w.withServerKilled(s3test.Fault{How: s3test.Cut, Method: http.MethodGet, Key: key, Bytes: 10}, back, "restore", domain, "--output", out)
	if !back {
		if o.code != exitFailed {
			t.Errorf("exit status %d: %s", o.code, o.err)
		}
		w.verifyLine(o, w.bucket.proxy, "given up after")
		if entries, err := os.ReadDir(out); len(entries) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("left %v, %v", entries, err)
		}
		w.must("restore", domain, "--output", out)
	} else if o.code != exitDone {
		t.Errorf("exit status %d: %s", o.code, o.err)
	}
	for _, target := range w.targets {
		if w.sum(filepath.Join(out, target+".raw")) != w.want["c2"][target] {
			t.Errorf("disk %s has other bytes than it had", target)
		}
	}
}

// Ctrl-C while the store is away: the program does not wait for it to come back.
func TestS3InterruptedInOutage(t *testing.T) {
	t.Parallel()
	s := scenesIn(t, 2, newBucket(s3test.Start(t, s3test.VersityGW)))[1]
	for _, key := range []string{"/leases/", "/packs/"} {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			w := s.copy(t)
			var cmd *exec.Cmd
			started := make(chan struct{})
			said := newNotice()
			faults := []s3test.Fault{
				{How: s3test.Reset, Method: http.MethodPut, Key: key, After: 1, Times: 1, Do: func() {
					<-started
					if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
						t.Error(err)
					}
					<-said.taken
				}},
				{How: s3test.Reset, Method: http.MethodPut, Key: key},
			}
			if key == "/packs/" { // else there is nothing to be tidied up
				faults = append(faults, s3test.Fault{How: s3test.Reset, Method: http.MethodDelete})
			}
			w.bucket.behind(t, faults...)
			cmd = w.child([]string{patience + "=1s"}, w.backup("killed", "--mode", s.mode)...)
			cmd.Stderr = said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			close(started)
			_ = cmd.Wait() // the exit status tells
			o := outcome{cmd.ProcessState.ExitCode(), "", said.text.String()}
			if o.code != exitInterrupted {
				t.Errorf("exit status %d: %s", o.code, o.err)
			}
			w.verifyBitmaps(s.checkpoints, false)
			s.backupAgain(w)
		})
	}
}

// verifyLine demands that the program's last word is one line that has these
// words in it.
func (w *world) verifyLine(o outcome, words ...string) {
	w.Helper()
	lines := strings.Split(strings.TrimSpace(o.err), "\n")
	last := lines[len(lines)-1]
	for _, l := range lines {
		if !strings.HasPrefix(l, "imgbackup: ") || strings.Contains(l, s3test.SecretKey) {
			w.Errorf("unfit to be told: %q", l)
		}
	}
	for _, word := range words {
		if !strings.Contains(last, word) {
			w.Errorf("%q is not in %q", word, last)
		}
	}
}
