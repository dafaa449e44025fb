// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// TestIgnoredSignals: a signal that was ignored when the program was started, by nohup
// or in the background of a script, stays ignored.
func TestIgnoredSignals(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	noise(t, filepath.Join(dir, "a.raw"), 1<<20)
	env := append(os.Environ(), "IMGBACKUP_REPO="+filepath.Join(dir, "repo"))
	for _, args := range [][]string{{"init"}, {"backup", domain, "--disk", "vda=a.raw,format=raw"}} {
		cmd := exec.CommandContext(t.Context(), "imgbackup", args...)
		cmd.Dir, cmd.Env = dir, env
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT} {
		var s server
		cmd := exec.CommandContext(t.Context(), "sh", "-c", `trap '' HUP INT; exec imgbackup serve "$0" --socket s.sock`, domain)
		cmd.Dir, cmd.Env = dir, env
		if err := s.start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if _, err := s.end(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		// Two that are heard stop it at once, in whatever order.
		if said := s.stderr.String(); said != "" {
			t.Errorf("%v, ignored at the start: %s", sig, said)
		}
	}
}
