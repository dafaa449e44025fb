// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// What is in hand at once follows the memory that there is, and that it is slower is said.
// (How much that is depends on how this test was built: so two runs are compared.)
func TestMemoryFollowsItsLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	raw := filepath.Join(w.dir, "random.raw")
	data := make([]byte, 112<<20) // more than three packs
	rand.NewChaCha8([32]byte{7}).Read(data)
	if err := os.WriteFile(raw, data, 0o600); err != nil {
		t.Fatal(err)
	}
	peak := func(limit string) (int64, string) {
		repo := filepath.Join(w.dir, "limit-"+limit)
		w.must("init", "--repo", repo)
		cmd := w.child([]string{"GOMEMLIMIT=" + limit, tellPeak + "=" + repo + ".peak"}, "--repo", repo, "backup", "vm", "--disk", "vda="+raw+",format=raw")
		out := w.outcome(cmd)
		if out.code != 0 {
			t.Fatalf("%s: %d\n%s", limit, out.code, out.err)
		}
		return readPeak(t, repo+".peak"), out.err
	}
	few, said := peak("100MiB")
	if !strings.Contains(said, "memory is limited to 128 MiB (GOMEMLIMIT): slower") {
		t.Errorf("it is not said: %s", said)
	}
	usual, said := peak("off")
	if strings.Contains(said, "GOMEMLIMIT") {
		t.Errorf("without a limit: %s", said)
	}
	if few > usual/4*3 {
		t.Errorf("%d MiB with a limit of 128 MiB, %d MiB without", few>>20, usual>>20)
	}
}

// The limit of a control group is found, if this machine lets us make one.
func TestMemoryOfControlGroup(t *testing.T) {
	t.Parallel()
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\d+:memory:(.*)$`).FindSubmatch(groups)
	if m == nil {
		return // version 2, which lets nobody divide a group that has processes
	}
	group := filepath.Join("/sys/fs/cgroup/memory", string(m[1]), "imgbackup-test-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(group, 0o700); err != nil {
		return // not as root, or in a container
	}
	defer func() {
		if err := os.Remove(group); err != nil {
			t.Error(err)
		}
	}()
	if err := os.WriteFile(filepath.Join(group, "memory.limit_in_bytes"), []byte("209715200"), 0); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, 1)
	cmd := w.child(nil, "backup", "vm", "--disk", "vda="+w.image("vda")+",format=qcow2")
	cmd.Args = append([]string{"sh", "-c", `echo $$ >"$0"/cgroup.procs && exec "$@"`, group}, cmd.Args...)
	if cmd.Path, err = exec.LookPath("sh"); err != nil {
		t.Fatal(err)
	}
	out := w.outcome(cmd)
	if out.code != 0 || !strings.Contains(out.err, "memory is limited to 200 MiB ("+group+"/memory.limit_in_bytes): slower") {
		t.Errorf("%d: %s", out.code, out.err)
	}
}

// readPeak reads what [writePeak] has written, bytes.
func readPeak(t *testing.T, path string) int64 {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// writePeak writes how much memory this process had at most, if the environment asks for
// it. (What the kernel tells who waits for a process is not it: that counts what the
// process was started from, too.)
func writePeak() {
	path := os.Getenv(tellPeak)
	if path == "" {
		return
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		panic(err)
	}
	kib, err := strconv.ParseInt(string(regexp.MustCompile(`VmHWM:\s*(\d+) kB`).FindSubmatch(status)[1]), 10, 64)
	if err != nil {
		panic(err)
	}
	if err := os.WriteFile(path, strconv.AppendInt(nil, kib<<10, 10), 0o600); err != nil {
		panic(err)
	}
}
