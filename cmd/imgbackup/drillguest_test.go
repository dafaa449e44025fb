// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// under are the processes that a process has started, and these have, by their numbers.
func under(pid int) map[int]string {
	parents, names := make(map[int]int), make(map[int]string)
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		id, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if name, parent, ok := process(id); ok {
			parents[id], names[id] = parent, name
		}
	}
	all := make(map[int]string)
	for id := range parents {
		for at, steps := id, 0; steps < 64 && at > 1; at, steps = parents[at], steps+1 {
			if parents[at] == pid {
				all[id] = names[id]
			}
		}
	}
	return all
}

// TestDrillSignalsGuest: a signal while a real guest boots, or while the appliance does that looks
// into the disks, ends both, and nothing of them is left: no process, file, socket or mount.
func TestDrillSignalsGuest(t *testing.T) {
	t.Parallel()
	w, scratch := drillWorld(t)
	for _, c := range []struct {
		signal syscall.Signal
		step   string
		args   []string
	}{
		{syscall.SIGINT, "boot", []string{"--skip", "filesystems", "--boot-pattern", "never", "--boot-memory", "64M"}},
		{syscall.SIGTERM, "boot", []string{"--skip", "filesystems", "--boot-screen", "--boot-memory", "64M"}},
		{syscall.SIGINT, "filesystems", nil},
		{syscall.SIGTERM, "filesystems", nil},
	} {
		args := append([]string{"drill", domain, "--skip", "source,image", "--scratch", scratch, "--no-record", "--emulate", "--json"}, c.args...)
		cmd := w.child(nil, args...)
		var out, said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		seen := awaitQemu(t, cmd)
		if err := cmd.Process.Signal(c.signal); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // its status is looked at
		if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
			t.Errorf("%s during %s: exit status %d: %s%s", c.signal, c.step, code, out.String(), said.String())
			continue
		}
		run := parseDrill(t, drillSchema(t), out.String())
		steps := run.Drills[0].Steps
		if last := steps[len(steps)-1]; last.Step != c.step || last.Reason != "it was interrupted" {
			t.Errorf("%s during %s: %+v", c.signal, c.step, last)
		}
		for id, was := range seen {
			if now, _, ok := process(id); ok && now == was {
				t.Errorf("%s during %s: %s (%d) is left", c.signal, c.step, was, id)
			}
		}
		if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(w.dir)) {
			t.Errorf("%s during %s: something is mounted: %v", c.signal, c.step, err)
		}
		w.checkNothingLeft(scratch)
	}
}

// process is what runs under a number: its name and when it began, since its number may be
// another's afterwards, and which has started it. What has ended and is not waited for is none.
func process(pid int) (name string, parent int, ok bool) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if err != nil || end < open {
		return "", 0, false
	}
	fields := strings.Fields(string(data[end+1:]))
	parent, _ = strconv.Atoi(fields[1])
	return string(data[open+1:end]) + " " + fields[19], parent, fields[0] != "Z"
}

// awaitQemu waits until a program has a QEMU running, and returns all that it has started. Of a
// program that ends before, there is nothing.
func awaitQemu(t *testing.T, cmd *exec.Cmd) map[int]string {
	t.Helper()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for range look.C {
		all := under(cmd.Process.Pid)
		for _, name := range all {
			if strings.HasPrefix(name, "qemu-system") {
				return all
			}
		}
		if _, _, ok := process(cmd.Process.Pid); !ok {
			t.Fatal("it has ended before a QEMU was seen")
		}
	}
	return nil
}
