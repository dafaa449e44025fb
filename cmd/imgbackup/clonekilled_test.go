// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/internal/testkit"
)

// cloneSteps are the steps of a backup from its clones on.
var cloneSteps = []string{
	backup.StepClone, backup.StepReleased, backup.StepRead, backup.StepStored, backup.StepCommit,
	backup.StepCommitted, backup.StepRetired, backup.StepDone,
}

// Killed at any step from the clones on, the program has not written to an image that a VM may
// have, and the next run puts everything right, whatever the VM wrote.
func TestKilledWithClones(t *testing.T) {
	t.Parallel()
	folders, here := testkit.OnCloning(t)
	if !here || len(folders) == 0 {
		return
	}
	folder := func(i int, name string) string {
		dir := filepath.Join(folders[i%len(folders)].Dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	first := newCloned(t, folder(0, "first"), "--clone", "always")
	for i, step := range cloneSteps {
		t.Run(step, func(t *testing.T) {
			w := first.copyInto(t, folder(i, fmt.Sprintf("killed-%d", i)))
			w.killedCloning(killAt+"="+step+":", step, "--clone", "always")
			w.goesOn("--mode", "incremental")
		})
	}
}

// newCloned is a world in a folder whose checkpoints c1 and c2 were made with some flags.
func newCloned(t *testing.T, dir string, flags ...string) *world {
	t.Helper()
	w := newWorldAt(t, dir, 1, nil, plain)
	for _, checkpoint := range []string{"c1", "c2"} {
		w.commit(checkpoint, flags...)
		w.guest("vda", "write -P 4 64k 100k", "write -z 0 64k")
		w.look("vda")
	}
	return w
}

// killedCloning kills a backup, as its environment says, when it has come to a step.
func (w *world) killedCloning(env, step string, flags ...string) {
	w.Helper()
	w.killed(env, w.backup("killed", append([]string{"--mode", "incremental"}, flags...)...)...)
	if slices.Contains([]string{backup.StepCommitted, backup.StepRetired, backup.StepDone}, step) {
		w.want["killed"] = maps.Clone(w.now)
	}
	if names := testkit.Names(w, w.dir); len(names) != 2 {
		w.Errorf("it left %q beside the image and the repository", names)
	}
}

// goesOn: a VM has written, and the next run puts everything right.
func (w *world) goesOn(flags ...string) {
	w.Helper()
	w.guest("vda", "write -P 5 1M 20k", "discard 512k 64k")
	w.look("vda")
	w.commit("again", flags...)
	want := []string{"c1", "c2", "again"}
	if w.want["killed"] != nil {
		want = append(want, "killed")
	}
	w.verify(want...)
}

// cloner is commands that make copies, and release them.
type cloner struct {
	*testing.T
	dir string // with the copies, and what was done
}

func newCloner(t *testing.T) *cloner {
	c := &cloner{t, t.TempDir()}
	c.put("clone", `kill_at before
cp "$IMGBACKUP_SOURCE" "$dir/copies/$IMGBACKUP_CLONE"
kill_at after
echo "$dir/copies/$IMGBACKUP_CLONE"`)
	c.put("release", `kill_at before
case $IMGBACKUP_CLONE in imgbackup-*) rm -f "$dir/copies/$IMGBACKUP_CLONE" ;; *) exit 1 ;; esac
kill_at after`)
	for name, text := range map[string]string{
		"c.yaml": fmt.Sprintf("clone: {clone_command: [%[1]s/clone], release_command: [%[1]s/release], timeout: 10m}\n", c.dir),
		"log":    "",
	} {
		if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(c.dir, "copies"), 0o700); err != nil {
		t.Fatal(err)
	}
	return c
}

// put makes a command, which kills the program that runs it where CLONER_KILL says.
func (c *cloner) put(name, text string) {
	script := fmt.Sprintf(`#!/bin/sh -e
dir='%s'
kill_at() { if [ "$CLONER_KILL" = "%[2]s $1" ]; then kill -9 $PPID; exit 9; fi; }
echo "%[2]s $IMGBACKUP_CLONE" >>"$dir/log"
%[3]s
`, c.dir, name, text)
	testkit.Program(c, filepath.Join(c.dir, name), script)
}

func (c *cloner) flags() []string {
	return []string{"--clone", "always", "--config", filepath.Join(c.dir, "c.yaml")}
}

// tidy: each copy that was made, or may have been, was released.
func (c *cloner) tidy() {
	c.Helper()
	if names := testkit.Names(c, filepath.Join(c.dir, "copies")); len(names) > 0 {
		c.Errorf("copies that are left: %q", names)
	}
	text, err := os.ReadFile(filepath.Join(c.dir, "log"))
	if err != nil {
		c.Fatal(err)
	}
	released := make(map[string]bool)
	for line := range strings.Lines(string(text)) {
		switch what, name, _ := strings.Cut(strings.TrimSpace(line), " "); what {
		case "clone":
			released[name] = false
		case "release":
			released[name] = true
		}
	}
	for name, is := range released {
		if !is {
			c.Errorf("%s was never released:\n%s", name, text)
		}
	}
}

// Killed at any step, or while a command is at work on a copy, the program leaves the copy to the next run, which has it
// released, though it makes none itself.
func TestKilledWithClonesByCommand(t *testing.T) {
	t.Parallel()
	// What clones by itself has no use for commands.
	shm, err := os.MkdirTemp("/dev/shm", "imgbackup-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(shm); err != nil {
			t.Error(err)
		}
	})
	folder := func(name string) string {
		dir := filepath.Join(shm, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	first := newCloned(t, folder("first"), newCloner(t).flags()...)
	kills := map[string]string{ // environment → step
		"CLONER_KILL=clone before": backup.StepClone, "CLONER_KILL=clone after": backup.StepClone,
		"CLONER_KILL=release before": backup.StepCommitted, "CLONER_KILL=release after": backup.StepCommitted,
	}
	for _, step := range cloneSteps {
		kills[killAt+"="+step+":"] = step
	}
	number := 0
	for env, step := range kills {
		number++
		dir := folder(fmt.Sprintf("killed-%d", number))
		t.Run(env, func(t *testing.T) {
			t.Cleanup(func() { // there may be little room
				if err := os.RemoveAll(dir); err != nil {
					t.Error(err)
				}
			})
			c := newCloner(t)
			w := first.copyInto(t, dir)
			w.killedCloning(env, step, c.flags()...)
			if step == backup.StepReleased && len(testkit.Names(t, filepath.Join(c.dir, "copies"))) != 1 {
				t.Error("there is no copy of which it could be killed")
			}
			w.goesOn(append([]string{"--mode", "incremental"}, c.flags()[2:]...)...)
			c.tidy()
		})
	}
}
