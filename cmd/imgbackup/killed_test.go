// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os/exec"
	"syscall"

	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// killedWhen runs a program that is killed when a fault happens at its requests to the
// server, at the latest. start makes it, once the proxy stands.
func (w *world) killedWhen(fault s3test.Fault, start func() *exec.Cmd) {
	w.Helper()
	var cmd *exec.Cmd
	started := make(chan struct{})
	fault.Times, fault.Do = 1, func() {
		<-started
		if err := killGroup(cmd); err != nil {
			w.Error(err)
		}
	}
	w.bucket.behind(w, fault)
	cmd = start()
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	close(started)
	if err := cmd.Wait(); !diedBy(err, syscall.SIGKILL) {
		w.Fatalf("was to be killed: %v", err)
	}
}

// killedAtRequest runs the program with these arguments, which is killed at one of its
// requests to the server.
func (w *world) killedAtRequest(at int, how s3test.How, args ...string) {
	w.Helper()
	w.killedWhen(s3test.Fault{How: how, After: at}, func() *exec.Cmd { return w.child(nil, args...) })
	w.awaitOrphans()
}
