// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
	"github.com/imgbackup/imgbackup/qcow2"
)

const domain = "web"

// world is a domain with its images, a repository, and what every checkpoint
// has to restore to.
type world struct {
	testing.TB
	dir     string
	bucket  *bucket    // where the repository is, if not in dir
	host    *host      // where the program runs as a process of its own, if not here
	keys    *worldKeys // of an encrypted repository
	targets []string
	want    map[string]map[string]digest // checkpoint → target → content
	now     map[string]digest            // target → content of the image
	foreign map[string][]qcow2.BitmapState
}

type digest [sha256.Size]byte

// foreignBitmaps are not ours, whatever they are called.
var foreignBitmaps = [...]string{"foreign", "stopped", "c1.0123456789abcdef"}

// newWorld makes images with others' bitmaps in them, and an empty repository.
func newWorld(t testing.TB, disks int) *world { return newWorldIn(t, disks, nil) }

// newWorldIn is newWorld with a repository in a bucket, if it is not nil.
func newWorldIn(t testing.TB, disks int, b *bucket) *world { return newWorldOf(t, disks, b, plain) }

// newWorldOf is newWorldIn with an encrypted repository, or not.
func newWorldOf(t testing.TB, disks int, b *bucket, secret encrypted) *world {
	return newWorldAt(t, t.TempDir(), disks, b, secret)
}

// newWorldAt is newWorldOf in a folder of the caller's.
func newWorldAt(t testing.TB, dir string, disks int, b *bucket, secret encrypted) *world {
	w := &world{TB: t, dir: dir, bucket: b, want: make(map[string]map[string]digest),
		now: make(map[string]digest), foreign: make(map[string][]qcow2.BitmapState)}
	w.watch()
	for i := range disks {
		target := "vd" + string(rune('a'+i))
		w.targets = append(w.targets, target)
		size, cluster := "3M", "65536"
		if i == 1 {
			size, cluster = "1025K", "4096" // ends within a granule
		}
		w.tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size="+cluster, w.image(target), size)
		w.guest(target, "write -P 1 0 300k")
		for _, name := range foreignBitmaps {
			w.tool("qemu-img", "bitmap", "--add", w.image(target), name)
		}
		w.guest(target, "write -P 2 128k 200k")
		w.tool("qemu-img", "bitmap", "--disable", w.image(target), "stopped")
		w.guest(target, "write -P 3 512k 4k")
		w.look(target)
	}
	if secret {
		w.encrypt(t)
	} else {
		w.must(b.inits()...)
	}
	return w
}

// copy returns a world like this one in another folder.
func (w *world) copy(t testing.TB) *world { return w.copyInto(t, t.TempDir()) }

// copyInto is copy into an empty folder of the caller's.
func (w *world) copyInto(t testing.TB, dir string) *world {
	c := &world{TB: t, dir: dir, bucket: w.bucket.copy(t), keys: w.keys, targets: w.targets, want: maps.Clone(w.want),
		now: maps.Clone(w.now), foreign: maps.Clone(w.foreign)}
	c.watch()
	if err := os.CopyFS(c.dir, os.DirFS(w.dir)); err != nil {
		t.Fatal(err)
	}
	return c
}

// watch fails the test if a process that works in the world outlives it.
func (w *world) watch() {
	w.Cleanup(func() {
		for _, line := range processes(w.dir) {
			w.Errorf("left behind: %s", line)
		}
	})
}

// processes lists the processes, other than our own, with text in their
// arguments.
func processes(text string) []string {
	var found []string
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range dirs {
		args, err := os.ReadFile(path)
		if err == nil && filepath.Dir(path) != fmt.Sprintf("/proc/%d", os.Getpid()) && bytes.Contains(args, []byte(text)) {
			found = append(found, path+": "+strings.ReplaceAll(string(args), "\x00", " "))
		}
	}
	return found
}

func (w *world) repo() string {
	if w.bucket != nil {
		return w.bucket.String()
	}
	return filepath.Join(w.dir, "repo")
}

func (w *world) image(target string) string { return filepath.Join(w.dir, target+".qcow2") }

// tool runs a program that has to succeed, and returns its stdout.
func (w *world) tool(name string, args ...string) []byte {
	w.Helper()
	return []byte(testkit.Tool(w, name, args...))
}

// guest lets the guest write to a disk.
func (w *world) guest(target string, commands ...string) {
	w.Helper()
	testkit.Guest(w, w.image(target), commands...)
}

// look notes what an image holds now, in QEMU's eyes, and the bitmaps in it
// that are not ours.
func (w *world) look(target string) {
	w.Helper()
	w.now[target] = w.content(target)
	w.foreign[target] = nil
	for _, b := range w.bitmaps(target) {
		if slices.Contains(foreignBitmaps[:], b.Name) {
			w.foreign[target] = append(w.foreign[target], b)
		}
	}
	if len(w.foreign[target]) != len(foreignBitmaps) {
		w.Fatalf("%s: bitmaps %v", target, w.foreign[target])
	}
}

func (w *world) content(target string) digest {
	w.Helper()
	raw := filepath.Join(w.dir, target+".look")
	w.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", w.image(target), raw)
	defer os.Remove(raw)
	return w.sum(raw)
}

func (w *world) sum(path string) digest {
	w.Helper()
	return testkit.Sum(w, path)
}

// bitmaps describes the bitmaps of an image.
func (w *world) bitmaps(target string) []qcow2.BitmapState {
	w.Helper()
	var states []qcow2.BitmapState
	err := qcow2.WithTopLayer(w.image(target), func(l *qcow2.Layer) (err error) {
		states, err = l.BitmapStates()
		return err
	})
	if err != nil {
		w.Fatal(err)
	}
	return states
}

// backup is the command line of a backup of all disks. The name may be empty.
func (w *world) backup(checkpoint string, more ...string) []string {
	args := []string{"backup", domain}
	for _, t := range w.targets {
		args = append(args, "--disk", t+"="+w.image(t)+",format=qcow2")
	}
	if checkpoint != "" {
		args = append(args, "--checkpoint", checkpoint)
	}
	return append(args, more...)
}

// outcome is how a command line ended.
type outcome struct {
	code     int
	out, err string
}

// runWith executes a command line within this process.
func (w *world) runWith(p program, args ...string) outcome {
	var out, stderr bytes.Buffer
	p.in, p.out, p.err = strings.NewReader(""), &out, &stderr
	if w.bucket != nil {
		p.wrap = w.bucket.wrap(w, p.wrap)
	}
	code := run(slices.Concat([]string{"--repo", w.repo()}, w.identity(args), args), p)
	return outcome{code, out.String(), stderr.String()}
}

// must executes a command line that has to succeed.
func (w *world) must(args ...string) string {
	w.Helper()
	o := w.runWith(program{}, args...)
	if o.code != exitDone {
		w.Fatalf("imgbackup %v: exit status %d\n%s%s", args, o.code, o.out, o.err)
	}
	return o.out
}

// commit makes a checkpoint of the disks as they are.
func (w *world) commit(checkpoint string, more ...string) {
	w.Helper()
	w.must(w.backup(checkpoint, more...)...)
	w.want[checkpoint] = maps.Clone(w.now)
}

// child prepares the program as a process of its own, the leader of a process
// group.
func (w *world) child(env []string, args ...string) *exec.Cmd {
	cmd := exec.Command("imgbackup", slices.Concat([]string{"--repo", w.repo()}, w.identity(args), args)...)
	cmd.Env = os.Environ()
	if w.bucket != nil {
		cmd.Env = append(cmd.Env, cacheVar+"="+filepath.Join(w.dir, "cache"))
	}
	cmd.Env = slices.Concat(cmd.Env, w.bucket.env(), env)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if w.host != nil {
		w.host.move(cmd)
	}
	return cmd
}

// outcome runs a child to its end.
func (w *world) outcome(cmd *exec.Cmd) outcome {
	w.Helper()
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		w.Fatal(err)
	}
	return outcome{cmd.ProcessState.ExitCode(), out.String(), stderr.String()}
}

// killed runs the program, which has to die by SIGKILL, and reports what it
// said.
func (w *world) killed(env string, args ...string) {
	w.Helper()
	cmd := w.child([]string{env}, args...)
	out, err := cmd.CombinedOutput()
	if !diedBy(err, syscall.SIGKILL) {
		w.Fatalf("%s: was to be killed: %v\n%s", env, err, out)
	}
}

func diedBy(err error, sig syscall.Signal) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status := exit.Sys().(syscall.WaitStatus)
	return status.Signaled() && status.Signal() == sig
}

// store opens the place of the repository.
func (w *world) store() objstore.Store {
	w.Helper()
	if w.bucket != nil {
		return w.bucket.open(w)
	}
	store, err := local.Open(w.repo(), local.Options{})
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = store.Close() })
	return store
}

// checkpoints lists the checkpoints in the repository, oldest first.
func (w *world) checkpoints() []*chain.Manifest {
	w.Helper()
	ms, damaged, err := w.open().Manifests(context.Background(), domain)
	if err := errors.Join(append(damaged, err)...); err != nil {
		w.Fatal(err)
	}
	return ms
}

// verify demands that all is as it should be after a complete backup: these
// checkpoints and no others, each restoring to the right bytes; images with
// their guest's data, the bitmaps of the two newest checkpoints and others'
// bitmaps; nothing else left anywhere.
func (w *world) verify(checkpoints ...string) {
	w.Helper()
	w.verifyChain(checkpoints...)
	w.verifyTidy()
	ms := w.checkpoints()
	ms = ms[max(0, len(ms)-2):]
	for _, t := range w.targets {
		var ours []string
		for _, m := range ms {
			if d, ok := m.Disk(t); ok {
				ours = append(ours, d.Bitmap)
			}
		}
		w.verifyImage(t, ours)
	}
}

// verifyChain demands exactly these checkpoints, and their bytes.
func (w *world) verifyChain(checkpoints ...string) {
	w.Helper()
	var names []string
	for _, m := range w.checkpoints() {
		names = append(names, m.Checkpoint)
	}
	slices.Sort(names)
	slices.Sort(checkpoints)
	if !slices.Equal(names, checkpoints) {
		w.Fatalf("checkpoints %v, want %v", names, checkpoints)
	}
	for _, name := range names {
		w.verifyRestore(name)
	}
	report, err := check.Run(context.Background(), w.open(), check.Options{ReadData: true, Workers: 1})
	if err != nil {
		w.Fatal(err)
	}
	for _, f := range report.Findings {
		w.Errorf("check: %s: %s", f.Object, f.What)
	}
}

func (w *world) verifyRestore(checkpoint string) {
	w.Helper()
	want, ok := w.want[checkpoint]
	if !ok {
		w.Fatalf("it is not known what %s should hold", checkpoint)
	}
	out := filepath.Join(w.dir, "restored-"+checkpoint)
	w.must("restore", domain, "--checkpoint", checkpoint, "--output", out)
	for target, sum := range want {
		if w.sum(filepath.Join(out, target+".raw")) != sum {
			w.Errorf("disk %s of checkpoint %s has other bytes than it had", target, checkpoint)
		}
	}
	if entries, err := os.ReadDir(out); err != nil || len(entries) != len(want) {
		w.Errorf("restore of %s left %v, %v", checkpoint, entries, err)
	}
	if err := os.RemoveAll(out); err != nil {
		w.Fatal(err)
	}
}

// verifyTidy demands that no intent, lease or temporary file is left.
func (w *world) verifyTidy() {
	w.Helper()
	if _, err := os.Stat(filepath.Join(w.dir, "cache")); err == nil {
		w.mustAsChild("list") // whoever begins with the cache, which is the children's, sweeps what a killed one has left there
	}
	err := filepath.WalkDir(w.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		switch filepath.Base(filepath.Dir(path)) {
		case "intents", "leases", "tmp", "trash":
			w.Errorf("left behind: %s", path)
		}
		if strings.HasPrefix(e.Name(), ".") {
			w.Errorf("left behind: %s", path)
		}
		return nil
	})
	if err != nil {
		w.Fatal(err)
	}
	if w.bucket != nil {
		w.bucket.verifyTidy(w)
	}
}

// verifyImage demands that an image holds its guest's data, others' bitmaps as
// they were, and just these of ours, all of them sound: in our eyes and QEMU's.
func (w *world) verifyImage(target string, ours []string) {
	w.Helper()
	if w.content(target) != w.now[target] {
		w.Errorf("the guest's data of %s has changed", target)
	}
	var foreign []qcow2.BitmapState
	var names, mine []string
	for _, b := range w.bitmaps(target) {
		names = append(names, b.Name)
		if b.InUse || !b.Readable {
			w.Errorf("%s: bitmap %s is in use or broken", target, b.Name)
		}
		if slices.Contains(foreignBitmaps[:], b.Name) {
			foreign = append(foreign, b)
			continue
		}
		mine = append(mine, b.Name)
		if !b.Enabled {
			w.Errorf("%s: bitmap %s does not record", target, b.Name)
		}
	}
	if !slices.Equal(foreign, w.foreign[target]) {
		w.Errorf("%s: others' bitmaps are %v, and were %v", target, foreign, w.foreign[target])
	}
	slices.Sort(mine)
	ours = slices.Sorted(slices.Values(ours))
	if !slices.Equal(mine, ours) {
		w.Errorf("%s: bitmaps of ours %v, want %v", target, mine, ours)
	}
	w.verifyByQEMU(target, names)
}

func (w *world) verifyByQEMU(target string, names []string) {
	w.Helper()
	var info struct {
		Format struct {
			Data struct {
				Bitmaps []struct {
					Name  string
					Flags []string
				}
			}
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(w.tool("qemu-img", "info", "-f", "qcow2", "--output", "json", w.image(target)), &info); err != nil {
		w.Fatal(err)
	}
	var seen []string
	for _, b := range info.Format.Data.Bitmaps {
		seen = append(seen, b.Name)
		if slices.Contains(b.Flags, "in-use") {
			w.Errorf("%s: QEMU says that bitmap %s is in use", target, b.Name)
		}
	}
	slices.Sort(seen)
	slices.Sort(names)
	if !slices.Equal(seen, names) {
		w.Errorf("%s: QEMU sees the bitmaps %v, want %v", target, seen, names)
	}
	w.tool("qemu-img", "check", "-q", "-f", "qcow2", w.image(target))
}
