// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// recovering is a VM of a real libvirtd that is recovered, and what its disk is to hold.
type recovering struct {
	*libvirt
	to   string // DIR
	want string // a raw image
}

// recoverRun is recover in a process of its own.
type recoverRun struct {
	*recovering
	cmd    *exec.Cmd
	lines  chan string // of stdout
	said   string
	stderr bytes.Buffer
}

// begin starts one that is killed when it comes to a step; empty: it is not.
func (v *recovering) begin(step string, args ...string) *recoverRun {
	v.Helper()
	r := &recoverRun{recovering: v, lines: make(chan string, 100)}
	r.cmd = exec.Command("/proc/self/exe", append([]string{"--repo", filepath.Join(v.dir, "repo"), "recover", v.name, "--dir", v.to}, args...)...)
	r.cmd.Args[0] = "imgbackup"
	r.cmd.Env = os.Environ()
	if step != "" {
		r.cmd.Env = append(r.cmd.Env, killAt+"="+step)
	}
	r.cmd.Stderr = &r.stderr
	out, err := r.cmd.StdoutPipe()
	if err == nil {
		err = r.cmd.Start()
	}
	if err != nil {
		v.Fatal(err)
	}
	go func() {
		defer close(r.lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			r.lines <- in.Text()
		}
	}()
	v.Cleanup(func() {
		_ = r.cmd.Process.Kill() // it has ended, unless the test failed
		_ = r.cmd.Wait()
	})
	return r
}

// says waits for a line that begins so.
func (r *recoverRun) says(text string) {
	r.Helper()
	for line := range r.lines {
		r.said += line + "\n"
		if strings.HasPrefix(line, text) {
			return
		}
	}
	r.Fatalf("it never says %q\n%s%s", text, r.said, r.stderr.String())
}

// ends waits for its end; status -1: it was killed.
func (r *recoverRun) ends(status int) {
	r.Helper()
	for line := range r.lines {
		r.said += line + "\n"
	}
	if err := ignoreExit(r.cmd.Wait()); err != nil {
		r.Fatal(err)
	}
	ws := r.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status < 0 && ws.Signal() != syscall.SIGKILL || status >= 0 && ws.ExitStatus() != status {
		r.Fatalf("%v, want %d\n%s%s", r.cmd.ProcessState, status, r.said, r.stderr.String())
	}
}

// both lets the guest write, which is not flushed, and notes what its disk is to hold then. QEMU's
// first request to a server that is there again only connects, and its monitor does not tell of that.
func (v *recovering) both(pattern byte, off, length int64) {
	v.Helper()
	what := fmt.Sprintf("write -P %d %d %d", pattern, off, length)
	want, got := bytes.Repeat([]byte{pattern}, int(length)), make([]byte, length)
	f, err := os.Open(filepath.Join(v.to, "vda.raw"))
	if err != nil {
		v.Fatal(err)
	}
	defer f.Close()
	v.until("the guest has written", func() bool {
		v.monitor(fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "%s"`, what))
		_, err := f.ReadAt(got, off)
		return err == nil && bytes.Equal(got, want)
	})
	testkit.Tool(v, "qemu-io", "-f", "raw", "-c", what, v.want)
}

func (v *recovering) monitor(command string) string {
	v.Helper()
	return v.virsh("qemu-monitor-command", v.name, "--hmp", command)
}

// listens reports whether the boot sector runs.
func (v *recovering) listens() bool {
	return v.virsh("domstate", v.name) == "running" && strings.TrimSpace(v.monitor("i /h 0x602")) == "portw[0x0602] = 0x0100"
}

// TestLibvirtRecover recovers a VM into a real libvirtd, where a guest runs from it, and kills recover at
// every step of the way. It needs to be root.
func TestLibvirtRecover(t *testing.T) {
	t.Parallel()
	if !testkit.OwnMachine(t, "/run", "/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt") {
		return
	}
	startLibvirtd(t)
	l := &libvirt{T: t, dir: t.TempDir(), name: "web", random: rand.New(rand.NewPCG(1, 1)), want: make(map[string]digest)}
	v := &recovering{libvirt: l, to: filepath.Join(l.dir, "to"), want: filepath.Join(l.dir, "want.raw")}
	l.define()
	l.put(filepath.Join(l.dir, "acpi.xml"), strings.Replace(l.virsh("dumpxml", l.name), "</os>", "</os><features><acpi/></features>", 1))
	l.virsh("define", filepath.Join(l.dir, "acpi.xml"))
	image := l.virshField("domblklist", 2)
	code, err := hex.DecodeString(powerButton)
	if err != nil {
		t.Fatal(err)
	}
	l.put(filepath.Join(l.dir, "boot"), string(append(append(code, make([]byte, 510-len(code))...), 0x55, 0xaa)))
	testkit.Guest(l, image, "write -s "+filepath.Join(l.dir, "boot")+" 0 512")
	testkit.Tool(l, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, v.want)
	l.must("init")
	l.must("backup", "--domain-xml", l.definition(), "--checkpoint", "c1")

	// What is there is never touched.
	r := v.begin("")
	r.ends(exitFailed)
	if _, err := os.Stat(v.to); !strings.Contains(r.stderr.String(), "not touched") || err == nil {
		t.Errorf("a domain that is there: %s; the folder: %v", r.stderr.String(), err)
	}
	uuid := l.uuid()
	l.virsh("undefine", l.name, "--checkpoints-metadata", "--snapshots-metadata")
	if err := os.Rename(image, image+".away"); err != nil {
		t.Fatal(err)
	}

	// Killed at every step until the guest runs.
	for _, step := range []string{"begun", "ready", "serving", "defined", "defining", "started"} {
		v.begin(step, "--limit-rate", "1M").ends(-1)
	}
	// The guest is stopped when it wants its boot sector, and goes on when it is served again.
	l.until("the guest misses its server", func() bool { return l.virsh("domstate", l.name) == "paused" || v.listens() })
	r = v.begin("", "--limit-rate", "1M")
	r.says("running")
	l.until("the guest has booted", v.listens)
	v.both(7, 3<<20, 100<<10)
	v.both(8, 20<<20, 1<<20)
	v.both(0, 1<<20, 1<<20)
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	r.ends(-1)

	// What it has written, and not flushed, is there for the guest, which knows of nothing.
	v.begin("complete").ends(-1)
	v.begin("redefined").ends(-1)
	r = v.begin("closed")
	r.says("running")
	v.both(9, 9<<20, 64<<10)
	l.virsh("shutdown", l.name)
	r.ends(-1)
	v.begin("tidied").ends(-1)
	for range 2 { // the second finds nothing to do
		v.begin("").ends(exitDone)
	}
	file := filepath.Join(v.to, "vda.raw")
	if got := l.virshField("domblklist", 2); got != file || l.uuid() != uuid {
		t.Errorf("the disk of %s is %s", l.uuid(), got)
	}
	if n := testkit.Differ(t, file, v.want); n >= 0 {
		t.Errorf("the disk differs at byte %d", n)
	}
	if names := strings.Join(testkit.Names(t, v.to), " "); names != ".imgbackup-recovery.json vda.raw web.xml" {
		t.Errorf("it leaves %s", names)
	}
	l.start()
	l.until("the guest boots from its file", v.listens)
	v.both(10, 5<<20, 64<<10)
	l.stop()
	if n := testkit.Differ(t, file, v.want); n >= 0 {
		t.Errorf("run from its file, the disk differs at byte %d", n)
	}
}
