// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// A VM lives under a real libvirtd, whose guests run in QEMU without hardware
// acceleration and without an operating system: what a guest would write, QEMU's
// monitor writes. After each event the VM is off, and is backed up from the definition
// that libvirt has of it then. In the end every checkpoint restores to what qemu-img
// read of the disk at its time, and the last one runs again.
//
// IMGBACKUP_SOAK and IMGBACKUP_SEED draw more and other lives.

// libvirtEvents are what happens to the VM. Each begins and ends with the VM off.
var libvirtEvents = map[string]func(*libvirt){
	"the guest runs and writes":               func(l *libvirt) { l.start(); l.write(3); l.stop() },
	"a live external snapshot":                func(l *libvirt) { l.start(); l.write(1); l.snapshot(); l.write(2); l.stop() },
	"an external snapshot of a VM that's off": func(l *libvirt) { l.snapshot() },
	"a live snapshot and its commit": func(l *libvirt) {
		l.start()
		l.snapshot()
		l.write(2)
		l.virsh("blockcommit", l.name, "vda", "--active", "--pivot", "--wait")
		l.write(1)
		l.stop()
	},
	"a copy that is switched to": func(l *libvirt) {
		l.start()
		l.write(1)
		l.virsh("blockcopy", l.name, "vda", "--dest", l.newImage(), "--format", "qcow2", "--transient-job", "--wait", "--pivot")
		l.write(1)
		l.stop()
	},
	"QEMU is killed": func(l *libvirt) {
		l.start()
		l.write(2)
		l.kill()
	},
	"the definition goes and comes back": func(l *libvirt) {
		path := l.definition()
		l.virsh("undefine", l.name, "--checkpoints-metadata", "--snapshots-metadata")
		l.virsh("define", path)
	},
	"a live internal snapshot": func(l *libvirt) {
		l.start()
		l.write(1)
		name := fmt.Sprintf("inner%d", l.serial())
		l.virsh("snapshot-create-as", l.name, name)
		l.write(1)
		if l.random.IntN(2) == 0 {
			l.virsh("snapshot-delete", l.name, name)
		}
		l.stop()
	},
	"libvirt's own checkpoint and backup": func(l *libvirt) {
		l.start()
		name := fmt.Sprintf("theirs%d", l.serial())
		l.virsh("checkpoint-create-as", l.name, name)
		l.write(2)
		path := filepath.Join(l.dir, name+".xml")
		l.put(path, fmt.Sprintf(`<domainbackup><incremental>%s</incremental><disks><disk name='vda' type='file'><target file='%s'/><driver type='qcow2'/></disk></disks></domainbackup>`,
			name, filepath.Join(l.dir, name+".push")))
		l.virsh("backup-begin", l.name, path)
		l.until("libvirt's backup ends", func() bool {
			return strings.Contains(l.virsh("domjobinfo", l.name), "None")
		})
		l.write(1)
		l.virsh("checkpoint-delete", l.name, name)
		l.stop()
	},
	"the memory is saved": func(l *libvirt) {
		l.start()
		l.write(1)
		l.virsh("managedsave", l.name)
		if o := l.imgbackup("backup", "--domain-xml", l.definition()); o.code != exitInUse || !strings.Contains(o.err, "has saved the memory") {
			l.Errorf("a domain with a saved memory: exit status %d: %s", o.code, o.err)
		}
		l.start()
		l.write(1)
		l.stop()
	},
}

// libvirt is one VM of a libvirtd of the test's own.
type libvirt struct {
	*testing.T
	dir, name string
	random    *rand.Rand
	count     int
	log       []string
	want      map[string]digest // checkpoint → content of vda
}

// TestLibvirtLife is described at the top of this file. It needs to be root.
func TestLibvirtLife(t *testing.T) {
	t.Parallel()
	if !testkit.OwnMachine(t, "/run", "/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt") {
		return
	}
	startLibvirtd(t)
	seed := uint64(1)
	lives := 1
	if n, err := strconv.Atoi(os.Getenv("IMGBACKUP_SOAK")); err == nil {
		seed, lives = uint64(time.Now().UnixNano()), n
	}
	if n, err := strconv.ParseUint(os.Getenv("IMGBACKUP_SEED"), 10, 64); err == nil {
		seed = n
	}
	for i := range lives {
		l := &libvirt{T: t, dir: t.TempDir(), name: fmt.Sprintf("vm%d", i), random: rand.New(rand.NewPCG(seed+uint64(i), 0)), want: make(map[string]digest)}
		t.Logf("seed %d", seed+uint64(i))
		l.lead()
		if t.Failed() {
			t.Fatalf("what happened:\n%s", strings.Join(l.log, "\n"))
		}
	}
}

// startLibvirtd starts a libvirtd for a process that has the folders of libvirtd for
// itself; it ends with that process, or by stop.
func startLibvirtd(t *testing.T) (stop func()) {
	var all []func()
	l := &libvirt{T: t}
	l.put("/etc/libvirt/qemu.conf", "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\n")
	for _, program := range []string{"virtlogd", "libvirtd"} {
		cmd := exec.Command(program)
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		end := sync.OnceFunc(func() {
			_ = cmd.Process.Kill() // it may have ended
			_ = cmd.Wait()
		})
		all = append(all, end)
		t.Cleanup(func() {
			end()
			if t.Failed() {
				t.Logf("%s said:\n%s", program, said.String())
			}
		})
	}
	l.until("libvirtd answers", func() bool { return exec.Command("virsh", "-c", "qemu:///system", "list").Run() == nil })
	return func() {
		for _, end := range slices.Backward(all) {
			end()
		}
	}
}

// until asks again and again until something has come about.
func (l *libvirt) until(what string, done func() bool) {
	l.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !done(); {
		if time.Now().After(deadline) {
			l.Fatalf("waited too long: %s", what)
		}
	}
}

func (l *libvirt) lead() {
	l.define()
	l.must("init")
	l.backup()
	var names []string
	for name := range libvirtEvents {
		names = append(names, name)
	}
	slices.Sort(names)
	l.random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names {
		l.log = append(l.log, name)
		libvirtEvents[name](l)
		if state := l.virsh("domstate", l.name); state != "shut off" {
			l.Fatalf("after %q the VM is %s", name, state)
		}
		l.backup()
	}
	l.judge()
	l.twin()
	l.recover()
}

// backup makes a checkpoint of the VM as it is, and keeps what qemu-img reads.
func (l *libvirt) backup() {
	l.Helper()
	checkpoint := fmt.Sprintf("c%d", l.serial())
	image := l.virshField("domblklist", 2)
	raw := filepath.Join(l.dir, "look.raw")
	testkit.Tool(l, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw)
	l.want[checkpoint] = l.sum(raw)
	l.log = append(l.log, l.must("backup", "--domain-xml", l.definition(), "--checkpoint", checkpoint))
}

// judge restores every checkpoint.
func (l *libvirt) judge() {
	l.Helper()
	for checkpoint, want := range l.want {
		out := filepath.Join(l.dir, "out."+checkpoint)
		l.must("restore", l.name, "--checkpoint", checkpoint, "--output", out)
		if l.sum(filepath.Join(out, "vda.raw")) != want {
			l.Errorf("checkpoint %s restores to other bytes", checkpoint)
		}
	}
	l.must("check", "--read-data")
}

// twin puts the newest checkpoint beside the VM under another identity: both run at once.
func (l *libvirt) twin() {
	out, name := filepath.Join(l.dir, "twin"), l.name+"-twin"
	l.must("restore", l.name, "--output", out, "--format", "qcow2", "--name", name, "--new-identity")
	l.virsh("define", filepath.Join(out, name+".xml"))
	uuids := []string{l.virsh("domuuid", l.name), l.virsh("domuuid", name)}
	macs := []string{l.virsh("domiflist", l.name, "--inactive"), l.virsh("domiflist", name, "--inactive")}
	if uuids[0] == uuids[1] || macs[0] == macs[1] || len(macs[0]) != len(macs[1]) {
		l.Errorf("the twin is not another: %q, %q", uuids, macs)
	}
	l.start()
	l.virsh("start", name)
	l.virsh("destroy", name)
	l.virsh("undefine", name)
	l.stop()
}

// recover puts the newest checkpoint back into libvirt, where it runs, and goes on.
func (l *libvirt) recover() {
	l.virsh("undefine", l.name, "--checkpoints-metadata", "--snapshots-metadata")
	out := filepath.Join(l.dir, "again")
	l.must("restore", l.name, "--output", out, "--format", "qcow2", "--continue", "--adjust-xml")
	l.virsh("define", filepath.Join(out, l.name+".xml"))
	l.start()
	l.write(1)
	l.stop()
	if said := l.must("backup", "--domain-xml", l.definition(), "--checkpoint", "last", "--mode", "incremental"); !strings.Contains(said, "incremental since") {
		l.Errorf("after the recovery: %s", said)
	}
	testkit.Tool(l, "qemu-img", "check", "-q", l.virshField("domblklist", 2))
}

func (l *libvirt) start() { l.Helper(); l.virsh("start", l.name) }

// stop ends QEMU as a shutdown of the guest would: its images are closed.
func (l *libvirt) stop() { l.Helper(); l.virsh("destroy", l.name, "--graceful") }

func (l *libvirt) kill() {
	l.Helper()
	text, err := os.ReadFile("/run/libvirt/qemu/" + l.name + ".pid")
	if err != nil {
		l.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		l.Fatal(err)
	}
	l.until("libvirt sees that QEMU is dead", func() bool { return l.virsh("domstate", l.name) == "shut off" })
}

// write lets the guest write so many times.
func (l *libvirt) write(times int) {
	l.Helper()
	for range times {
		what := "-P " + strconv.Itoa(1+l.random.IntN(250))
		if l.random.IntN(4) == 0 {
			what = "-z"
		}
		what = fmt.Sprintf("write %s %dk %dk", what, 4*l.random.IntN(5000), 4*(1+l.random.IntN(200)))
		l.log = append(l.log, what)
		if said := l.virsh("qemu-monitor-command", l.name, "--hmp", fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "%s"`, what)); said != "" {
			l.Fatalf("%s: %s", what, said)
		}
	}
}

func (l *libvirt) snapshot() {
	l.Helper()
	l.virsh("snapshot-create-as", l.name, "--disk-only", "--no-metadata", "--diskspec", "vda,file="+l.newImage())
}

// definition writes what libvirt has of the VM when it is off.
func (l *libvirt) definition() string {
	l.Helper()
	path := filepath.Join(l.dir, "now.xml")
	l.put(path, l.virsh("dumpxml", l.name, "--inactive"))
	return path
}

func (l *libvirt) virsh(args ...string) string {
	l.Helper()
	return strings.TrimSpace(testkit.Tool(l, "virsh", append([]string{"-q", "-c", "qemu:///system"}, args...)...))
}

// virshField is a field of the only line that a command about the VM prints.
func (l *libvirt) virshField(command string, field int) string {
	l.Helper()
	fields := strings.Fields(l.virsh(command, l.name))
	if len(fields) != 2 {
		l.Fatalf("%s: %q", command, fields)
	}
	return fields[field-1]
}

func (l *libvirt) serial() int { l.count++; return l.count }

func (l *libvirt) newImage() string {
	return filepath.Join(l.dir, fmt.Sprintf("image%d.qcow2", l.serial()))
}

func (l *libvirt) put(path, text string) {
	l.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		l.Fatal(err)
	}
}

func (l *libvirt) sum(path string) digest { l.Helper(); return (&world{TB: l}).sum(path) }

// imgbackup runs the program within this process.
func (l *libvirt) imgbackup(args ...string) outcome {
	var out, stderr bytes.Buffer
	code := run(append([]string{"--repo", filepath.Join(l.dir, "repo")}, args...), program{in: strings.NewReader(""), out: &out, err: &stderr})
	return outcome{code, out.String(), stderr.String()}
}

func (l *libvirt) must(args ...string) string {
	l.Helper()
	o := l.imgbackup(args...)
	if o.code != exitDone {
		l.Fatalf("imgbackup %v: exit status %d\n%s%s\nwhat happened:\n%s", args, o.code, o.out, o.err, strings.Join(l.log, "\n"))
	}
	return o.out
}
