// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A push that is interrupted at any moment leaves neither files nor a
// checkpoint; one that is killed leaves nothing that the next does not put right,
// and never a checkpoint without its files.
func TestPushSignalledAtRandomMoments(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			w := newWorld(t, 2)
			out := filepath.Join(t.TempDir(), "out")
			last, committed, hit := w.push(out, "start", ""), []string{"start"}, 0
			for i := range 8 * soak(t) {
				if err := os.RemoveAll(out); err != nil {
					t.Fatal(err)
				}
				if err := os.Mkdir(out, 0o700); err != nil {
					t.Fatal(err)
				}
				name := fmt.Sprintf("r%d", i)
				s := signalAt(t, w.child(nil, w.pushArgs(out, name, last)...), sig, random.IntN(11), random)
				if sig == syscall.SIGKILL {
					w.awaitOrphans()
				}
				var files []string
				for _, target := range w.targets {
					if _, err := os.Stat(filepath.Join(out, target)); err == nil {
						files = append(files, target)
					}
				}
				stands := slices.ContainsFunc(w.names(), func(s string) bool { return s == name })
				switch {
				case s.code == exitDone && stands && len(files) == 2:
				case s.code == exitInterrupted && !stands && len(files) == 0:
					hit++
					w.verifyTidy()
					if entries, err := os.ReadDir(out); err != nil || len(entries) != 0 {
						t.Errorf("run %d: left %v, %v", i, entries, err)
					}
				case diedBy(s.err, sig) && (!stands || len(files) == 2):
					hit++
				default:
					t.Fatalf("run %d: exit status %d, committed: %v, files %v: %s", i, s.code, stands, files, s.stderr)
				}
				if stands {
					committed = append(committed, name)
				}
				w.verifyBitmaps(committed, sig == syscall.SIGKILL)
				w.guest("vda", fmt.Sprintf("write -P %d %dk 30k", 1+i%250, random.IntN(990)))
				w.look("vda")
			}
			if hit == 0 {
				t.Error("no push was ended by the signal")
			}
			// What was left is swept, and the last files hold all since the first.
			w.push(out, "last", "start", "--force")
			entries, err := os.ReadDir(out)
			if err != nil || len(entries) != 2 {
				t.Errorf("the folder holds %v, %v", entries, err)
			}
			w.verifyTidy()
			w.verifyBitmaps(append(committed, "last"), false)
		})
	}
}

// pushArgs are those of a push of all disks into a folder, incremental if since
// names a checkpoint.
func (w *world) pushArgs(dir, checkpoint, since string, more ...string) []string {
	args := w.backup(checkpoint, more...)
	for _, target := range w.targets {
		args = append(args, "--target", target+"="+filepath.Join(dir, target))
	}
	if since != "" {
		args = append(args, "--incremental", since)
	}
	return args
}

// push pushes all disks, looks at the files, and returns the checkpoint. Full ones
// are kept as the base of later ones.
func (w *world) push(dir, checkpoint, since string, more ...string) string {
	w.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		w.Fatal(err)
	}
	w.must(w.pushArgs(dir, checkpoint, since, more...)...)
	for _, target := range w.targets {
		file, base := filepath.Join(dir, target), filepath.Join(w.dir, target+".full")
		if since == "" {
			w.tool("cp", file, base)
		} else {
			w.tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", base, "-F", "qcow2", file)
		}
		if out := string(w.tool("qemu-img", "check", "-f", "qcow2", file)); !strings.Contains(out, "No errors") {
			w.Errorf("%s: %s", file, out)
		}
		w.tool("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", file, w.image(target))
	}
	return checkpoint
}

// names are those of the domain's checkpoints.
func (w *world) names() []string {
	var names []string
	for _, m := range w.checkpoints() {
		names = append(names, m.Checkpoint)
	}
	return names
}
