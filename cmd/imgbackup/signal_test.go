// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// soak is how many times as long the random tests run as they do by default.
func soak(t *testing.T) int {
	text := os.Getenv("IMGBACKUP_SOAK")
	if text == "" {
		return 1
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("IMGBACKUP_SOAK=%q: want a number from 1 on", text)
	}
	return n
}

// pause waits for a random time, most often short, at most 60 ms, and no
// longer than until the channel is closed.
func pause(random *rand.Rand, ended <-chan struct{}) {
	d := time.Duration(min(random.ExpFloat64()*5, 60) * float64(time.Millisecond))
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	select {
	case <-ctx.Done():
	case <-ended:
	}
}

// signalled is a program that was sent a signal.
type signalled struct {
	code   int // exit status; -1: it died by the signal
	err    error
	stderr string
}

// signalAt starts the program and sends a signal to its whole process group, at
// a random time after so many steps of the writing order have begun.
func signalAt(t *testing.T, cmd *exec.Cmd, sig syscall.Signal, steps int, random *rand.Rand) signalled {
	t.Helper()
	r, wr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.ExtraFiles = []*os.File{wr}
	cmd.Env = append(cmd.Env, tellSteps+"=3")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wr.Close()
	lines := bufio.NewScanner(r)
	for range steps {
		if !lines.Scan() {
			break
		}
	}
	ended := make(chan struct{})
	go func() {
		for lines.Scan() {
		}
		close(ended)
	}()
	pause(random, ended)
	// Its leader has not been waited for, so the group is still its own.
	if err := syscall.Kill(-cmd.Process.Pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Error(err)
	}
	<-ended
	err = cmd.Wait()
	return signalled{cmd.ProcessState.ExitCode(), err, stderr.String()}
}

// stuckPipe is a pipe that is full and that nobody reads: to write to it blocks.
func stuckPipe(t *testing.T) *os.File {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]) })
	var err error
	for page := make([]byte, 4096); err == nil; {
		_, err = unix.Write(fds[1], page)
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fds[1], false); err != nil {
		t.Fatal(err)
	}
	w := os.NewFile(uintptr(fds[1]), "stuck pipe")
	t.Cleanup(func() { w.Close() })
	return w
}

// Somebody who does not read what is told cannot keep the program, and the images
// that it has locked, from being let go.
func TestSignalsWhenNobodyReads(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	whole := w.child(nil, "export", "web", "--disk", "vda="+w.image("vda")+",format=qcow2", "--socket", filepath.Join(w.dir, "s"))
	cmd := exec.CommandContext(ctx, whole.Path, whole.Args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stderr = whole.Dir, whole.Env, stuckPipe(t)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); !strings.HasPrefix(line, "serving ") {
		t.Errorf("%q, %v", line, err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after a signal: %v", err)
	}
}

// A signal to the whole process group at any moment, as Ctrl-C sends it, never
// leaves a bitmap in use, nor anything else that the next run could not put
// right.
func TestSignalsAtRandomMoments(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		sig  syscall.Signal
		runs int
	}{
		{"interrupt-1", syscall.SIGINT, 55},
		{"interrupt-2", syscall.SIGINT, 55},
		{"terminate", syscall.SIGTERM, 25},
		{"kill", syscall.SIGKILL, 45},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			signalRuns(t, c.sig, c.runs*soak(t), rand.New(rand.NewPCG(seed, 0)))
		})
	}
}

func signalRuns(t *testing.T, sig syscall.Signal, runs int, random *rand.Rand) {
	w := newWorld(t, 2)
	w.commit("start")
	committed := []string{"start"}
	hit := 0
	for i := range runs {
		name := fmt.Sprintf("r%d", i)
		s := signalAt(t, w.child(nil, w.backup(name)...), sig, random.IntN(13), random)
		if sig == syscall.SIGKILL {
			w.awaitOrphans()
		}
		stands := false
		for _, m := range w.checkpoints() {
			stands = stands || m.Checkpoint == name
		}
		if stands {
			committed = append(committed, name)
			w.want[name] = maps.Clone(w.now)
		}
		switch {
		case s.code == exitDone && stands:
		case s.code == exitInterrupted && !stands:
			hit++
			w.verifyTidy()
		case diedBy(s.err, sig): // before it could catch the signal, or after it was done
			hit++
		default:
			t.Fatalf("run %d: exit status %d, committed: %v: %s", i, s.code, stands, s.stderr)
		}
		w.verifyBitmaps(committed, sig == syscall.SIGKILL)
		if t.Failed() {
			t.Fatalf("run %d: exit status %d, committed: %v: %s", i, s.code, stands, s.stderr)
		}
		if random.IntN(4) == 0 {
			target := w.targets[random.IntN(2)]
			w.guest(target, fmt.Sprintf("write -P %d %dk 30k", 1+i%250, random.IntN(990)))
			w.look(target)
		}
	}
	if hit == 0 || len(committed) < 2 {
		t.Errorf("%d of %d runs were ended by the signal, %d committed", hit, runs, len(committed)-1)
	}
	w.commit("last", "--mode", "incremental")
	w.commit("last-but-not-least", "--mode", "incremental")
	w.verify(append(committed, "last", "last-but-not-least")...)
}

// awaitOrphans waits until no qemu-img of a killed run works on the images.
func (w *world) awaitOrphans() {
	w.Helper()
	for _, target := range w.targets {
		g, err := qemu.FlockImage(context.Background(), w.image(target), time.Minute)
		if err != nil {
			w.Fatal(err)
		}
		if err := g.Close(); err != nil {
			w.Fatal(err)
		}
	}
}

// verifyBitmaps demands that no bitmap is in use, that others' bitmaps are as
// they were, and that all others belong to checkpoints that were committed, or,
// with strays, to the run that was just killed.
func (w *world) verifyBitmaps(committed []string, strays bool) {
	w.Helper()
	for _, target := range w.targets {
		var foreign []qcow2.BitmapState
		for _, b := range w.bitmaps(target) {
			if b.InUse || !b.Readable {
				w.Errorf("%s: bitmap %s is in use or broken", target, b.Name)
			}
			checkpoint, _, _ := strings.Cut(b.Name, ".")
			switch {
			case slices.Contains(foreignBitmaps[:], b.Name):
				foreign = append(foreign, b)
			case !slices.Contains(committed, checkpoint) && !strays:
				w.Errorf("%s: bitmap %s was left behind", target, b.Name)
			}
		}
		if !slices.Equal(foreign, w.foreign[target]) {
			w.Errorf("%s: others' bitmaps are %v, and were %v", target, foreign, w.foreign[target])
		}
	}
}

// An interrupted restore leaves no output, a killed one none that the next does
// not clean up.
func TestRestoreSignalledAtRandomMoments(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.commit("c1")
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			out := filepath.Join(t.TempDir(), "out")
			hit := 0
			for range 12 * soak(t) {
				if err := os.RemoveAll(out); err != nil {
					t.Fatal(err)
				}
				s := signalAt(t, w.child(nil, "restore", domain, "--output", out), sig, 0, random)
				entries, err := os.ReadDir(out)
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				switch {
				case s.code == exitDone && len(entries) == 2:
				case s.code == exitInterrupted && len(entries) == 0, diedBy(s.err, sig):
					hit++
				default:
					t.Fatalf("exit status %d, left %v: %s", s.code, entries, s.stderr)
				}
				w.must("restore", domain, "--output", out, "--force")
				if entries, err = os.ReadDir(out); err != nil || len(entries) != 2 {
					t.Fatalf("left %v, %v", entries, err)
				}
				for _, target := range w.targets {
					if w.sum(filepath.Join(out, target+".raw")) != w.now[target] {
						t.Fatalf("disk %s has other bytes than it had", target)
					}
				}
			}
			if hit == 0 {
				t.Error("no restore was ended by the signal")
			}
		})
	}
}
