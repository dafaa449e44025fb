// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
)

// scene is a backup that is killed, and how the domain stands before.
type scene struct {
	name string
	*world
	checkpoints []string // committed before
	mode        string   // of the backup that is killed
	again       string   // of the one after
}

// scenes are a first backup, an incremental and a full one.
func scenes(t *testing.T, disks int) []scene { return scenesIn(t, disks, nil) }

// scenesIn is scenes with repositories in a bucket, if it is not nil.
func scenesIn(t *testing.T, disks int, b *bucket) []scene { return scenesOf(t, disks, b, plain) }

// scenesOf is scenesIn with encrypted repositories, or not.
func scenesOf(t *testing.T, disks int, b *bucket, secret encrypted) []scene {
	first := newWorldOf(t, disks, b, secret)
	chained := first.copy(t)
	chained.commit("c1")
	chained.guest("vda", "write -P 4 64k 100k", "write -z 0 64k")
	chained.look("vda")
	chained.commit("c2", "--mode", "incremental")
	chained.guest("vda", "write -P 5 1M 20k", "discard 512k 64k")
	chained.guest(first.targets[disks-1], "write -P 6 100k 10k")
	for _, target := range chained.targets {
		chained.look(target)
	}
	return []scene{
		{"first", first, nil, "auto", "auto"},
		// Whatever is killed, it must not cost the next one its incremental.
		{"incremental", chained, []string{"c1", "c2"}, "incremental", "incremental"},
		{"full", chained, []string{"c1", "c2"}, "full", "incremental"},
	}
}

// backupAgain is the run after the one that was killed: all must be well.
func (s scene) backupAgain(w *world) {
	w.Helper()
	mode := s.again
	want := append([]string{"again"}, s.checkpoints...)
	for _, m := range w.checkpoints() {
		if m.Checkpoint == "killed" {
			want = append(want, "killed")
			w.want["killed"] = maps.Clone(w.now)
		}
	}
	w.commit("again", "--mode", mode)
	w.verify(want...)
}

// steps lists the steps of the scene's backup in order.
func (s scene) steps(t *testing.T) []string {
	var steps []string
	w := s.copy(t)
	o := w.runWith(program{step: func(name string) { steps = append(steps, name) }}, w.backup("whole", "--mode", s.mode)...)
	if o.code != exitDone {
		t.Fatalf("exit status %d: %s", o.code, o.err)
	}
	w.want["whole"] = maps.Clone(w.now)
	w.verify(append([]string{"whole"}, s.checkpoints...)...)
	return steps
}

// Killed at any step of the writing order, the program loses nothing, and the
// next run puts everything right.
func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	reached := make(map[string]bool)
	all := scenes(t, 2)
	all[2] = scenesOf(t, 2, nil, keyed)[2]
	for _, s := range all {
		seen := make(map[string]int)
		for _, step := range s.steps(t) {
			marks := strings.Repeat(".", seen[step])
			seen[step]++
			reached[step] = true
			t.Run(fmt.Sprintf("%s/%s%d", s.name, step, seen[step]), func(t *testing.T) {
				t.Parallel()
				w := s.copy(t)
				w.killed(killAt+"="+step+":"+marks, w.backup("killed", "--mode", s.mode)...)
				s.backupAgain(w)
			})
		}
		if seen[backup.StepAdd] != 2 || len(s.checkpoints) > 1 && seen[backup.StepRetire] != 2 {
			t.Errorf("%s: steps %v: want one %s and %s for each disk", s.name, seen, backup.StepAdd, backup.StepRetire)
		}
	}
	for _, step := range []string{
		backup.StepPlan, backup.StepIntent, backup.StepAdd, backup.StepAdded, backup.StepRead, backup.StepStored,
		backup.StepCommit, backup.StepCommitted, backup.StepRetire, backup.StepRetired, backup.StepDone,
	} {
		if !reached[step] {
			t.Errorf("step %s was never reached", step)
		}
	}
}

// Killed at any of its operations on the repository, likewise.
func TestKilledAtEachStoreOperation(t *testing.T) {
	t.Parallel()
	for _, s := range []scene{scenesOf(t, 1, nil, keyed)[0], scenes(t, 1)[1]} {
		for i, op := range s.operations(t) {
			t.Run(fmt.Sprintf("%s/%d-%s", s.name, i+1, op), func(t *testing.T) {
				t.Parallel()
				w := s.copy(t)
				w.killed(fmt.Sprintf("%s=%d", killAtOp, i+1), w.backup("killed", "--mode", s.mode)...)
				s.backupAgain(w)
			})
		}
	}
}

// operations lists the operations of the scene's backup on the repository.
func (s scene) operations(t *testing.T) []string {
	w := s.copy(t)
	var store failingStore
	o := w.runWith(program{wrap: store.around}, w.backup("whole", "--mode", s.mode)...)
	if o.code != exitDone {
		t.Fatalf("exit status %d: %s", o.code, o.err)
	}
	return store.ops
}

// Killed again and again, at random, the program gets there in the end.
func TestKilledInARow(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	s := scenes(t, 2)[1]
	ops := len(s.operations(t))
	w := s.copy(t)
	want := slices.Clone(s.checkpoints)
	for i := range 12 {
		name := fmt.Sprintf("k%d", i)
		cmd := w.child([]string{fmt.Sprintf("%s=%d", killAtOp, 1+random.IntN(2*ops))}, w.backup(name)...)
		out, err := cmd.CombinedOutput()
		if err != nil && !diedBy(err, syscall.SIGKILL) {
			t.Fatalf("%v: %s", err, out)
		}
		for _, m := range w.checkpoints() {
			if m.Checkpoint == name {
				want = append(want, name)
				w.want[name] = maps.Clone(w.now)
			}
		}
		if random.IntN(3) == 0 {
			w.guest("vda", fmt.Sprintf("write -P %d %dk 70k", 10+i, random.IntN(2900)))
			w.look("vda")
		}
	}
	w.commit("again", "--mode", "incremental")
	w.verify(append(want, "again")...)
}

// A store that fails, once or from some operation on, with or without having
// done what it was asked for: the program says so and leaves nothing in the
// images, or it commits; never anything between.
func TestStoreFailsAtEachOperation(t *testing.T) {
	t.Parallel()
	open, secret := scenes(t, 1)[1], scenesOf(t, 1, nil, keyed)[1]
	for how, s := range map[failure]scene{failsOnce: open, failsLost: secret, failsOutage: open} {
		for i, op := range s.operations(t) {
			if how != failsOnce && op != "put" && op != "delete" {
				continue // nothing but what failsOnce does
			}
			t.Run(fmt.Sprintf("%s/%d-%s", how, i+1, op), func(t *testing.T) {
				t.Parallel()
				w := s.copy(t)
				o := w.outcome(w.child([]string{fmt.Sprintf("%s=%d:%s", failAtOp, i+1, how)}, w.backup("killed", "--mode", s.mode)...))
				s.verifyOutcome(w, o)
				s.backupAgain(w)
			})
		}
	}
}

// verifyOutcome demands that the exit status is true and, when it says that
// nothing was committed, that the images have no new bitmap.
func (s scene) verifyOutcome(w *world, o outcome) {
	w.Helper()
	committed := len(w.checkpoints()) > len(s.checkpoints)
	unknown := strings.Contains(o.err, "may have been committed")
	switch {
	case o.code == exitDone && committed:
	case o.code == exitFailed && unknown: // the next run settles it
	case o.code == exitFailed && !committed:
		for _, b := range w.bitmaps("vda") {
			if strings.HasPrefix(b.Name, "killed.") {
				w.Errorf("bitmap %s was left in the image: %s", b.Name, o.err)
			}
		}
	default:
		w.Errorf("exit status %d, committed: %v: %s", o.code, committed, o.err)
	}
}
