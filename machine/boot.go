// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/domain"
)

// errKVM says that KVM is there and can't run this guest.
var errKVM = errors.New("KVM cannot run it here")

// Boot starts the machine, waits until its guest is up, or is known not to come up, and
// ends it. A guest that does not come up is a Result; an error says that it could not be
// tried.
func Boot(ctx context.Context, o Options) (*Result, error) {
	if o.Pattern == nil && !o.Agent && !o.Screen {
		return nil, errors.New("nothing is said to show that the guest is up")
	}
	if o.Definition == nil {
		o.Definition = minimal()
	}
	if err := checkFit(o.Definition); err != nil {
		return nil, err
	}
	path, err := exec.LookPath(cmp.Or(o.Program, "qemu-system-x86_64"))
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrNotInstalled, err)
	}
	o.Program = path
	accel := o.Accel
	if accel == "" {
		accel = TCG
		if confine.KVMOpens(o.kvmDevice()) {
			accel = KVM
		}
	}
	res, err := attempt(ctx, &o, accel)
	if errors.Is(err, errKVM) && o.Accel == "" && ctx.Err() == nil {
		o.note("%v: it runs emulated", err)
		res, err = attempt(ctx, &o, TCG)
	}
	return res, err
}

// attempt is one start of the machine, on disks as they were archived.
func attempt(ctx context.Context, o *Options, accel string) (res *Result, err error) {
	var firmwareScreen = noScreen
	if o.Screen {
		if firmwareScreen, err = firmwareShows(ctx, o, accel); err != nil {
			return nil, err
		}
	}
	disks, discard, err := o.Disks()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, discard()) }()
	if len(disks) == 0 || len(disks) > maxDisks {
		return nil, fmt.Errorf("the machine has %d disks: 1 to %d are possible", len(disks), maxDisks)
	}
	r, err := begin(ctx, o, accel, disks)
	if err != nil {
		return nil, err
	}
	defer r.end()
	return r.wait(ctx, firmwareScreen)
}

// running is a machine that runs.
type running struct {
	o     *Options
	accel string
	c     *command

	qemu    *confine.Process
	tpm     *confine.Process // nil: there is none
	said    confine.Said     // by QEMU
	served  *exports
	monitor *monitor
	console *console
	agent   *agent // nil: it is not asked
	begun   time.Time

	consoleEnded chan struct{} // nothing more comes

	ends []func() // closes what is ours, last first

	version string
}

// begin starts QEMU, and its guest as soon as its limits are set.
func begin(ctx context.Context, o *Options, accel string, disks []Disk) (_ *running, err error) {
	r := &running{o: o, accel: accel, begun: time.Now(), console: newConsole(o.Pattern)}
	defer func() {
		if err != nil {
			r.end()
		}
	}()
	r.c = &command{o: o, m: o.Definition, accel: accel, ports: make(map[string]int)}
	defer r.c.close()
	var groups []uint32
	if accel == KVM {
		groups = confine.KVMGroup(o.kvmDevice())
	}
	how := confine.WaysApart(groups)
	if err := r.build(ctx, disks, how); err != nil {
		return nil, err
	}
	var used confine.Apart
	l := confine.Limits{Memory: r.c.memory + overhead, File: maxFile, CPU: (o.timeout(accel) + time.Minute) * time.Duration(2*maxCPUs)}
	program := func(confine.Apart) *exec.Cmd {
		return confine.Program("/bin/sh", append(append(l.Shell(), o.Program), r.c.args...), r.c.files, &r.said)
	}
	if r.qemu, used, err = confine.StartApart(program, how); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Program, err)
	}
	r.c.close() // QEMU has its own: when it ends, that is the end of what it says
	if used.Namespaces == 0 {
		o.note("QEMU runs without namespaces of its own, which this host does not allow; it has no network all the same")
	}
	if _, err = r.monitor.do(ctx, "qmp_capabilities", nil, nil); err == nil {
		r.version, err = r.monitor.version(ctx)
	}
	if err != nil {
		return nil, r.explain(ctx, err)
	}
	if o.started != nil {
		o.started(r.qemu.Cmd.Process.Pid)
	}
	if _, err := r.monitor.do(ctx, "cont", nil, nil); err != nil {
		return nil, r.explain(ctx, err)
	}
	return r, nil
}

const (
	overhead = 8 << 30  // of QEMU's address space, beside the guest's memory, bytes
	maxFile  = 64 << 20 // of a file that QEMU writes, which is the screen, bytes
)

// explain adds what QEMU has said, if it has ended.
func (r *running) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case <-r.qemu.Ended:
	case <-time.After(time.Second):
	}
	text := r.said.String()
	if r.accel == KVM {
		return fmt.Errorf("%w: %w: %.500q", errKVM, err, text)
	}
	return fmt.Errorf("QEMU: %w: %.500q", err, text)
}

// build makes the command line, and our ends of all the sockets.
func (r *running) build(ctx context.Context, disks []Disk, how []confine.Apart) error {
	all := disks
	var flash *firmware
	var err error
	if r.c.firmware() {
		if flash, err = newFirmware(r.o.Definition, r.o.Loader, r.o.NVRAM); err != nil {
			return err
		}
		all = append(all[:len(all):len(all)], flash.disk("code", flash.code), flash.disk("vars", flash.vars))
	}
	known, err := knownMachines(ctx, r.o.Program)
	if err != nil {
		return err
	}
	r.c.base(known)
	if r.served, err = serveDisks(all, r.o); err != nil {
		return err
	}
	var theirs []*os.File
	for range all {
		f, err := r.served.connect()
		if err != nil {
			return err
		}
		theirs = append(theirs, f)
	}
	if flash != nil {
		r.c.node("code", flashPrefix+"code", theirs[len(disks)], true)
		r.c.node("vars", flashPrefix+"vars", theirs[len(disks)+1], false)
	}
	r.c.disks(disks, theirs[:len(disks)])
	r.c.network()
	r.c.add("-device", "qemu-xhci,id=input", "-device", "usb-tablet,bus=input.0", "-device", "virtio-serial-pci,id=serial")
	if err := r.channels(); err != nil {
		return err
	}
	return r.addTPM(how)
}

// channels are the sockets on which QEMU and the guest talk to us.
func (r *running) channels() error {
	theirs, ours, err := socketPair()
	if err != nil {
		return err
	}
	r.ends = append(r.ends, func() { _ = ours.Close() })
	r.monitor = newMonitor(ours)
	r.c.socket("monitor", theirs)
	r.c.add("-mon", "chardev=monitor,mode=control")

	theirs, con, err := socketPair()
	if err != nil {
		return err
	}
	r.consoleEnded = make(chan struct{})
	go func() {
		r.console.read(con)
		close(r.consoleEnded)
	}()
	r.ends = append(r.ends, func() { _ = con.Close(); <-r.consoleEnded })
	r.c.socket("console", theirs)
	r.c.add("-serial", "chardev:console")

	theirs, qga, err := socketPair()
	if err != nil {
		return err
	}
	r.ends = append(r.ends, func() { _ = qga.Close() })
	r.c.socket("agent", theirs)
	r.c.add("-device", "virtserialport,bus=serial.0,chardev=agent,name=org.qemu.guest_agent.0")
	if r.o.Agent {
		r.agent = newAgent(qga)
		r.ends = append(r.ends, func() { _ = qga.Close(); <-r.agent.done })
	}
	return nil
}

// addTPM gives the machine an emulated TPM, if it has one.
func (r *running) addTPM(how []confine.Apart) error {
	m := r.o.Definition
	if m.TPM == "" {
		return nil
	}
	path, err := exec.LookPath("swtpm")
	if err != nil {
		r.c.leave("its TPM: swtpm is not installed (package swtpm)")
		return nil
	}
	// A copy of the state for each start: one that failed is to have changed nothing.
	dir, err := os.MkdirTemp(r.o.Dir, "tpm-")
	if err != nil {
		return err
	}
	if r.o.TPM != "" {
		if err := os.CopyFS(dir, os.DirFS(r.o.TPM)); err != nil {
			return err
		}
	}
	theirs, its, err := filePair()
	if err != nil {
		return err
	}
	defer func() { _ = its.Close() }()
	// By its descriptor: what lies above the folder is closed to others.
	args := []string{"socket", "--tpmstate", "dir=/proc/self/fd/4", "--ctrl", "type=unixio,clientfd=3", "--terminate"}
	if !m.TPMOld {
		args = append(args, "--tpm2")
	}
	if r.tpm, err = startTPM(path, args, dir, its, how); err != nil {
		_ = theirs.Close()
		return fmt.Errorf("swtpm: %w", err)
	}
	r.c.socket("tpm", theirs)
	model := "tpm-tis"
	if m.TPM == "tpm-crb" {
		model = "tpm-crb"
	}
	r.c.add("-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", model+",tpmdev=tpm0")
	return nil
}

// end ends all that runs, and waits for it.
func (r *running) end() {
	if r.qemu != nil {
		r.qemu.Kill()
	}
	if r.tpm != nil {
		r.tpm.Kill()
	}
	for i := len(r.ends) - 1; i >= 0; i-- {
		r.ends[i]()
	}
	if r.served != nil {
		r.served.end()
	}
}

// knownMachines tells which types of machines this QEMU has.
func knownMachines(ctx context.Context, program string) (func(string) bool, error) {
	cmd := exec.CommandContext(ctx, program, "-machine", "help")
	cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s -machine help: %w", program, err)
	}
	known := make(map[string]bool)
	for line := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(line, " ")
		known[name] = true
	}
	return func(machine string) bool { return known[machine] && machine != "none" && machine != "x-remote" }, nil
}

// withoutDisks is a machine's definition without its disks.
func withoutDisks(m *domain.Machine) *domain.Machine {
	bare := *m
	bare.Disks, bare.TPM = nil, ""
	return &bare
}
