// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// host is another machine, as far as programs can tell: it has its own name,
// machine id and boot id.
type host struct{ name, machine, boot string }

// newHost makes a host out of namespaces, for which the tests need to be root.
func newHost(t testing.TB, name string, number int) *host {
	t.Helper()
	h := &host{name: name}
	dir := t.TempDir()
	for _, f := range []struct {
		path   *string
		format string
	}{
		{&h.machine, "%032x\n"},
		{&h.boot, "00000000-0000-4000-8000-%012x\n"},
	} {
		*f.path = filepath.Join(dir, fmt.Sprint(len(f.format)))
		if err := os.WriteFile(*f.path, fmt.Appendf(nil, f.format, number), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// move lets a command run on the host.
func (h *host) move(cmd *exec.Cmd) {
	const script = `set -e
hostname "$1"
if [ -e /etc/machine-id ]; then mount --bind "$2" /etc/machine-id; fi
mount --bind "$3" /proc/sys/kernel/random/boot_id
shift 3
exec "$@"`
	cmd.Args = slices.Concat([]string{"sh", "-c", script, "sh", h.name, h.machine, h.boot, cmd.Path}, cmd.Args[1:])
	cmd.Path = "/bin/sh"
	cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS
}

// site is a repository that two hosts back up to.
type site struct {
	*testing.T
	hosts  [2]*world
	random *rand.Rand
	want   map[string]digest // DOMAIN/CHECKPOINT → content of vda
}

// Two hosts back up to one repository at the same time, round after round:
// different domains, one domain, and one domain with one name for both, which
// they take at the same time or one when the other is about to commit. Of these
// exactly one commits; nothing is lost.
func TestTwoHosts(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			s := &site{T: t, random: rand.New(rand.NewPCG(seed, 0)), want: make(map[string]digest)}
			first := newWorldIn(t, 1, newBucket(s3test.Start(t, kind)))
			second := first.copy(t)
			second.bucket = first.bucket
			s.hosts = [2]*world{first, second} // whose images hold the same
			for i, w := range s.hosts {
				w.host = newHost(t, fmt.Sprintf("host-%d", i+1), i+1)
			}
			for i := range 2 * soak(t) {
				s.round(fmt.Sprintf("own%d", i), [2]string{"alpha", "beta"}, true)
				s.round(fmt.Sprintf("named%d", i), [2]string{domain, domain}, true)
				if i%2 == 0 {
					s.round(fmt.Sprintf("raced%d", i), [2]string{domain, domain}, false)
				} else {
					s.late(fmt.Sprintf("late%d", i))
				}
			}
			s.verify()
		})
	}
}

// round lets both hosts make a checkpoint of their domains at the same time, in
// one domain with names of their own or with one name.
func (s *site) round(name string, domains [2]string, ownNames bool) {
	s.Helper()
	shared := domains[0] == domains[1]
	raced := shared && !ownNames
	var runs [2]*heldRun
	var names [2]string
	for i, w := range s.hosts {
		s.work(w)
		if names[i] = name; shared && ownNames {
			names[i] = fmt.Sprintf("%s-%d", name, i)
		}
		args := w.backup(names[i])
		args[1] = domains[i]
		if shared {
			args = append(args, "--adopt")
		}
		runs[i] = startHeld(s, w, backup.StepPlan, args...)
	}
	for _, r := range runs {
		r.await()
	}
	for _, r := range runs {
		r.release()
	}
	committed := 0
	for i, r := range runs {
		o := r.wait()
		switch {
		case o.code == exitDone:
			committed++
			s.want[domains[i]+"/"+names[i]] = s.hosts[i].now["vda"]
		case o.code == exitTaken && raced && (strings.Contains(o.err, "the name "+name+" is taken") ||
			strings.Contains(o.err, atWork(name, s.hosts[1-i]))):
			s.verifyNone(s.hosts[i], names[i])
		default:
			s.Fatalf("%s: exit status %d: %s", name, o.code, o.err)
		}
	}
	if raced && committed != 1 {
		s.Fatalf("%s: %d have committed", name, committed)
	}
}

// late lets one host come to a checkpoint's commit before the other begins to make
// one of the same name: the other is told so at once, and the first commits.
func (s *site) late(name string) {
	s.Helper()
	i := s.random.IntN(2)
	first, second := s.hosts[i], s.hosts[1-i]
	s.work(first)
	s.work(second)
	r := startHeld(s, first, backup.StepCommit, append(first.backup(name), "--adopt")...)
	r.await()
	o := second.outcome(second.child(nil, append(second.backup(name), "--adopt")...))
	r.release()
	if o.code != exitTaken || !strings.Contains(o.err, atWork(name, first)) {
		s.Errorf("%s: the one who came late: exit status %d: %s", name, o.code, o.err)
	}
	s.verifyNone(second, name)
	if o := r.wait(); o.code != exitDone {
		s.Fatalf("%s: the one who came first: exit status %d: %s", name, o.code, o.err)
	}
	s.want[domain+"/"+name] = first.now["vda"]
}

// atWork is what a run is told whose checkpoint another host is making.
func atWork(checkpoint string, other *world) string {
	return "another run is at work on checkpoint " + checkpoint + " of domain " + domain + ", on host " + other.host.name
}

// work lets a host's guest write something, or not.
func (s *site) work(w *world) {
	s.Helper()
	if s.random.IntN(3) > 0 {
		w.guest("vda", fmt.Sprintf("write -P %d %dk %dk", 10+s.random.IntN(200), s.random.IntN(2900), 1+s.random.IntN(90)))
		w.look("vda")
	}
}

// verifyNone demands that a host's image has no bitmap of a checkpoint.
func (s *site) verifyNone(w *world, checkpoint string) {
	s.Helper()
	for _, b := range w.bitmaps("vda") {
		if strings.HasPrefix(b.Name, checkpoint+".") {
			s.Errorf("bitmap %s was left behind", b.Name)
		}
	}
}

// verify demands that there is what was committed and nothing else, that all of
// it restores, and that what the hosts made is linked as it should be.
func (s *site) verify() {
	s.Helper()
	w := s.hosts[0]
	w.must("check", "--read-data")
	w.verifyTidy()
	stands := make(map[string]bool)
	incremental := make(map[string]bool)
	for _, name := range []string{"alpha", "beta", domain} {
		ms, damaged, err := w.open().Manifests(context.Background(), name)
		if err := errors.Join(append(damaged, err)...); err != nil {
			s.Fatal(err)
		}
		for _, m := range ms {
			key := name + "/" + m.Checkpoint
			stands[key] = true
			want, ok := s.want[key]
			if !ok {
				s.Errorf("%s was not committed, and stands there", key)
				continue
			}
			out := filepath.Join(w.dir, "restored", name, m.Checkpoint)
			if err := os.MkdirAll(filepath.Dir(out), 0o700); err != nil {
				s.Fatal(err)
			}
			w.must("restore", name, "--checkpoint", m.Checkpoint, "--output", out)
			if w.sum(filepath.Join(out, "vda.raw")) != want {
				s.Errorf("%s has other bytes than it had", key)
			}
			if m.Disks[0].Mode == chain.ModeIncremental {
				incremental[m.Host.Name] = true
			}
		}
	}
	for key := range s.want {
		if !stands[key] {
			s.Errorf("%s was committed, and is not there", key)
		}
	}
	for _, w := range s.hosts {
		if !incremental[w.host.name] {
			s.Errorf("%s has made no incremental backup", w.host.name)
		}
		w.verifyBitmaps(slices.Collect(maps.Keys(s.committed())), false)
	}
	o := s.hosts[1].outcome(s.hosts[1].child(nil, append([]string{"backup", "alpha"}, s.hosts[1].backup("")[2:]...)...))
	if o.code != exitTaken || !strings.Contains(o.err, "host-1") || !strings.Contains(o.err, "--adopt") {
		s.Errorf("a domain of another host: exit status %d: %s", o.code, o.err)
	}
}

// committed are the names of all checkpoints.
func (s *site) committed() map[string]bool {
	names := make(map[string]bool)
	for key := range s.want {
		_, name, _ := strings.Cut(key, "/")
		names[name] = true
	}
	return names
}

// heldRun is a process of the program that waits at a step.
type heldRun struct {
	testing.TB
	cmd         *exec.Cmd
	step        string
	out, err    bytes.Buffer
	steps, hold *os.File
}

func startHeld(t testing.TB, w *world, step string, args ...string) *heldRun {
	t.Helper()
	r := &heldRun{TB: t, step: step}
	var tell, held *os.File
	for _, pipe := range []struct{ r, w **os.File }{{&r.steps, &tell}, {&held, &r.hold}} {
		var err error
		if *pipe.r, *pipe.w, err = os.Pipe(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = (*pipe.r).Close(), (*pipe.w).Close() })
	}
	r.cmd = w.child([]string{tellSteps + "=3", holdAt + "=4:" + step}, args...)
	r.cmd.ExtraFiles = []*os.File{tell, held}
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.err
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = tell.Close(), held.Close()
	return r
}

// await waits until the program is at the step.
func (r *heldRun) await() {
	r.Helper()
	lines := bufio.NewScanner(r.steps)
	for lines.Scan() {
		if lines.Text() == r.step {
			return
		}
	}
	r.Fatalf("the program did not come to step %s: %+v", r.step, r.wait())
}

func (r *heldRun) release() { _ = r.hold.Close() }

func (r *heldRun) wait() outcome {
	_ = r.cmd.Wait() // the exit status tells
	return outcome{r.cmd.ProcessState.ExitCode(), r.out.String(), r.err.String()}
}
