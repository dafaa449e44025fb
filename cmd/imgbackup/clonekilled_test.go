// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/internal/testkit"
)

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
	first := newWorldAt(t, folder(0, "first"), 1, nil, plain)
	for _, checkpoint := range []string{"c1", "c2"} {
		first.commit(checkpoint, "--clone", "always")
		first.guest("vda", "write -P 4 64k 100k", "write -z 0 64k")
		first.look("vda")
	}
	for i, step := range []string{
		backup.StepClone, backup.StepReleased, backup.StepRead, backup.StepStored, backup.StepCommit,
		backup.StepCommitted, backup.StepRetired, backup.StepDone,
	} {
		t.Run(step, func(t *testing.T) {
			w := first.copyInto(t, folder(i, fmt.Sprintf("killed-%d", i)))
			w.killed(killAt+"="+step+":", w.backup("killed", "--mode", "incremental", "--clone", "always")...)
			want := []string{"c1", "c2", "again"}
			if slices.Contains([]string{backup.StepCommitted, backup.StepRetired, backup.StepDone}, step) {
				want = append(want, "killed")
				w.want["killed"] = maps.Clone(w.now)
			}
			if names := testkit.Names(t, w.dir); len(names) != 2 {
				t.Errorf("it left %q beside the image and the repository", names)
			}
			w.guest("vda", "write -P 5 1M 20k", "discard 512k 64k")
			w.look("vda")
			w.commit("again", "--mode", "incremental")
			w.verify(want...)
		})
	}
}
