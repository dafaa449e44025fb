// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/internal/testkit"
)

// A job that shuts a VM down starts it while its clones are read: it has its image then, and writes to it. A backup that
// fails after that is told, and the VM runs on; the next run puts everything right.
func TestJobStartsWhileClonesAreRead(t *testing.T) {
	t.Parallel()
	shm, err := os.MkdirTemp("/dev/shm", "imgbackup-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(shm); err != nil {
			t.Error(err)
		}
	})
	w := newWorldAt(t, shm, 1, nil, plain)
	c := newCloner(t)
	c.put("running", `[ "$(cat "$dir/vm")" = on ]`)
	c.put("stop", `echo off >"$dir/vm"; rm -f "$dir/new"`)
	// As a guest it takes the image's locks.
	c.put("start", fmt.Sprintf(`qemu-io -f qcow2 -c 'write -P 7 1M 64k' '%s' >"$dir/wrote"; echo on >"$dir/vm"`, w.image("vda")))
	c.put("clone", `cp "$IMGBACKUP_SOURCE" "$dir/copies/$IMGBACKUP_CLONE"; echo >"$dir/new"; echo "$dir/copies/$IMGBACKUP_CLONE"`)
	// A copy of this run was read when it is released, and not before the VM runs.
	c.put("release", `i=0; while [ -e "$dir/new" ] && [ "$(cat "$dir/vm")" != on ] && [ $i -lt 3000 ]; do i=$((i+1)); sleep 0.1; done
if [ -e "$dir/new" ]; then cat "$dir/vm" >>"$dir/while"; fi
rm -f "$dir/copies/$IMGBACKUP_CLONE"`)
	put := func(name, text string) {
		if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("c.yaml", fmt.Sprintf(`
state: %[1]s/state
repositories: {site: {place: %[2]s}}
domains: {%[4]s: {disks: ["vda=%[3]s,format=qcow2"]}}
clone: {clone_command: [%[1]s/clone], release_command: [%[1]s/release], timeout: 10m}
jobs:
  nightly:
    repository: site
    domains: [%[4]s]
    on_running: shutdown
    backup: {clone: always}
    shutdown: {by: command, stop: [%[1]s/stop], start: [%[1]s/start], running: [%[1]s/running], timeout: 60s}
`, c.dir, w.repo(), w.image("vda"), domain))
	run := func(status int, env ...string) string {
		t.Helper()
		put("vm", "on\n")
		cmd := exec.Command("imgbackup", "run", "nightly", "--config", filepath.Join(c.dir, "c.yaml"))
		cmd.Env = append(os.Environ(), env...)
		o := w.outcome(cmd)
		if o.code != status {
			t.Fatalf("status %d, want %d: %s%s", o.code, status, o.out, o.err)
		}
		if is, err := os.ReadFile(filepath.Join(c.dir, "vm")); err != nil || string(is) != "on\n" {
			t.Errorf("the VM is %s, %v", is, err)
		}
		return o.out + o.err
	}
	began := w.content("vda")
	run(exitDone)
	all := w.checkpoints()
	if len(all) != 1 || w.content("vda") == began {
		t.Fatalf("%d checkpoints, and the VM has not written", len(all))
	}
	w.want[all[0].Checkpoint] = map[string]digest{"vda": began}
	if said := run(exitFailed, killAt+"="+backup.StepStored+":"); !strings.Contains(said, "backup") {
		t.Errorf("told: %s", said)
	}
	if n := len(testkit.Names(t, filepath.Join(c.dir, "copies"))); n != 1 {
		t.Errorf("%d copies are left to the next run", n)
	}
	w.look("vda")
	run(exitDone)
	if is, err := os.ReadFile(filepath.Join(c.dir, "while")); err != nil || string(is) != "on\non\n" {
		t.Errorf("the VM was %q, %v while its clones were read", is, err)
	}
	if all = w.checkpoints(); len(all) != 2 {
		t.Fatalf("%d checkpoints", len(all))
	}
	for _, m := range all {
		if w.want[m.Checkpoint] == nil {
			w.want[m.Checkpoint] = map[string]digest{"vda": w.now["vda"]}
		}
	}
	w.look("vda")
	w.commit("last")
	w.verify(all[0].Checkpoint, all[1].Checkpoint, "last")
	c.tidy()
}
