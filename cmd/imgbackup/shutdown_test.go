// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// powerButton is a boot sector that does what an operating system does at the power
// button: it shuts down. That is: it lets the button tell (2 into the upper half of the PM1
// enable register), waits until it does, and asks for S5.
const powerButton = "ba0206" + "b80001" + "ef" + "ba0006" + "ed" + "f6c401" + "74fa" + "ba0406" + "b80020" + "ef" + "f4" + "ebfd"

// TestLibvirtShutdown shuts VMs of a real libvirtd down for their backup, and starts them
// again. It needs to be root.
func TestLibvirtShutdown(t *testing.T) {
	t.Parallel()
	if !testkit.OwnMachine(t, "/run", "/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt") {
		return
	}
	stop := startLibvirtd(t)
	l := &libvirt{T: t, dir: t.TempDir(), name: "42"} // as an id is, of which virsh would think first
	l.define()
	l.put(filepath.Join(l.dir, "acpi.xml"), strings.Replace(l.virsh("dumpxml", l.uuid()), "</os>", "</os><features><acpi/></features>", 1))
	l.virsh("define", filepath.Join(l.dir, "acpi.xml"))
	image := l.virshField("domblklist", 2)
	code, err := hex.DecodeString(powerButton)
	if err != nil {
		t.Fatal(err)
	}
	sector := append(code, make([]byte, 510-len(code))...)
	l.put(filepath.Join(l.dir, "boot"), string(append(sector, 0x55, 0xaa)))
	testkit.Guest(l, image, "write -s "+filepath.Join(l.dir, "boot")+" 0 512")
	l.put(filepath.Join(l.dir, "c.yaml"), fmt.Sprintf(`
state: %[1]s/state
repositories: {site: {place: %[1]s/repo}}
jobs:
  acpi: {repository: site, domains: ["42"], on_running: shutdown, shutdown: {timeout: 100s}}
  agent: {repository: site, domains: ["42"], on_running: shutdown, shutdown: {by: agent, timeout: 100s}}
  none: {repository: site, domains: ["no*"]}
`, l.dir))
	l.must("init")

	l.start()
	l.listening()
	before := l.virsh("domid", l.uuid())
	if o := l.job("acpi"); o.code != exitDone || l.state() != "running" || l.virsh("domid", l.uuid()) == before {
		t.Fatalf("status %d, the VM is %s: %s%s", o.code, l.state(), o.out, o.err)
	}
	if said := l.must("list", l.name); !strings.Contains(said, "vda:full") {
		t.Errorf("there is no backup: %s", said)
	}

	// It has no agent: nothing is told to it, and it runs on.
	before = l.virsh("domid", l.uuid())
	if o := l.job("agent"); o.code != exitFailed || !strings.Contains(o.out, "agent is not") || l.virsh("domid", l.uuid()) != before || l.noted() {
		t.Errorf("status %d, noted %v: %s%s", o.code, l.noted(), o.out, o.err)
	}

	// The run is killed while the VM is down; a run of another job starts it.
	l.listening()
	cmd := l.jobCommand("acpi")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l.until("the VM is shut off", func() bool { return l.state() == "shut off" })
	err = errors.Join(cmd.Process.Kill(), ignoreExit(cmd.Wait()))
	if err != nil || !l.noted() {
		t.Fatalf("killed: %v, noted: %v", err, l.noted())
	}
	if o := l.job("none"); o.code != exitDone || l.state() != "running" || l.noted() {
		t.Errorf("the next run: status %d, the VM is %s: %s%s", o.code, l.state(), o.out, o.err)
	}

	// libvirtd goes away while the VM is down; when it is back, the next run starts the VM.
	l.listening()
	cmd = l.jobCommand("acpi")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l.until("the run sees that the VM is shut off", func() bool {
		text, err := os.ReadFile(l.note())
		return err == nil && bytes.Contains(text, []byte(`"off":true`))
	})
	stop()
	if err := ignoreExit(cmd.Wait()); err != nil || cmd.ProcessState.ExitCode() != exitFailed || !l.noted() {
		t.Errorf("without libvirtd: %v, %v, noted %v", err, cmd.ProcessState, l.noted())
	}
	if o := l.job("acpi"); o.code != exitFailed || !strings.Contains(o.out, "ask libvirt") {
		t.Errorf("without libvirtd: status %d: %s%s", o.code, o.out, o.err)
	}
	startLibvirtd(t)
	if o := l.job("none"); o.code != exitDone || l.state() != "running" || l.noted() {
		t.Errorf("libvirtd is back: status %d, the VM is %s: %s%s", o.code, l.state(), o.out, o.err)
	}
	l.virsh("destroy", l.uuid())
}

func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

func (l *libvirt) uuid() string {
	l.Helper()
	return strings.TrimSpace(l.virsh("list", "--all", "--uuid"))
}

func (l *libvirt) state() string { l.Helper(); return l.virsh("domstate", l.uuid()) }

// listening waits until the guest has let the power button tell: one pressed before is lost.
func (l *libvirt) listening() {
	l.Helper()
	l.until("the guest listens to the power button", func() bool {
		enabled := l.virsh("qemu-monitor-command", l.uuid(), "--hmp", "i /h 0x602")
		return strings.TrimSpace(enabled) == "portw[0x0602] = 0x0100"
	})
}

// note is the file that says that the VM is to be started.
func (l *libvirt) note() string { return filepath.Join(l.dir, "state/stopped", l.name+".json") }

func (l *libvirt) noted() bool { _, err := os.Stat(l.note()); return err == nil }

// jobCommand is a run of a job in a process of its own.
func (l *libvirt) jobCommand(name string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", "run", name, "--config", filepath.Join(l.dir, "c.yaml"))
	cmd.Args[0] = "imgbackup"
	cmd.Env = append(os.Environ(), patience+"=2s")
	return cmd
}

func (l *libvirt) job(name string) outcome {
	l.Helper()
	var out, stderr bytes.Buffer
	cmd := l.jobCommand(name)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := ignoreExit(cmd.Run()); err != nil {
		l.Fatal(err)
	}
	return outcome{cmd.ProcessState.ExitCode(), out.String(), stderr.String()}
}
