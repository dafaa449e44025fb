// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/png"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/internal/testkit"
)

// memory is a disk that is all memory.
type memory struct {
	flash
	fails error
	asked func() // is told when the guest reads more than its first sector; may be nil
}

func (m *memory) ReadAt(ctx context.Context, p []byte, off int64) error {
	if m.asked != nil && off > 0 {
		m.asked()
	}
	if m.fails != nil && off > 0 {
		return m.fails
	}
	return m.flash.ReadAt(ctx, p, off)
}

// sector is a disk that boots the given machine code, which runs in real mode at 0x7c00.
func sector(code ...byte) *memory {
	b := make([]byte, 1<<20)
	copy(b, code)
	b[510], b[511] = 0x55, 0xaa
	return &memory{flash: flash{b: b}}
}

// say is code that writes a text to the first serial port, and goes on behind it.
func say(text string) []byte {
	// cld; xor ax,ax; mov ds,ax; mov si,TEXT; mov cx,LEN; mov dx,0x3f8; lodsb; out dx,al; loop; jmp over
	n := byte(len(text))
	code := []byte{0xfc, 0x31, 0xc0, 0x8e, 0xd8, 0xbe, 20, 0x7c, 0xb9, n, 0, 0xba, 0xf8, 0x03, 0xac, 0xee, 0xe2, 0xfc, 0xeb, n}
	return append(code, text...)
}

var (
	halt    = []byte{0xf4, 0xeb, 0xfd}                                                                                                                                                                   // hlt, for ever
	reset   = []byte{0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd}                                                                                                                                           // by the keyboard's controller
	flood   = []byte{0xba, 0xf8, 0x03, 0xb0, 'x', 0xee, 0xeb, 0xfd}                                                                                                                                      // x, for ever
	restart = []byte{0xeb, 0xfe}                                                                                                                                                                         // jmp to itself
	off     = []byte{0xb8, 0x01, 0x53, 0x31, 0xdb, 0xcd, 0x15, 0xb8, 0x0e, 0x53, 0x31, 0xdb, 0xb9, 0x02, 0x01, 0xcd, 0x15, 0xb8, 0x07, 0x53, 0xbb, 0x01, 0, 0xb9, 0x03, 0, 0xcd, 0x15, 0xf4, 0xeb, 0xfd} // by APM
)

type boot struct {
	o        Options
	disk     *memory
	mu       sync.Mutex
	notes    []string
	pid      atomic.Int64
	discards int
}

func newBoot(t *testing.T, disk *memory, pattern string) *boot {
	b := &boot{disk: disk}
	b.o = Options{Accel: TCG, Dir: t.TempDir(), Timeout: time.Minute, Memory: 64 << 20, Pattern: regexp.MustCompile(pattern)}
	b.o.Disks = func() ([]Disk, func() error, error) {
		return []Disk{{Name: "vda", Size: int64(len(disk.b)), Device: disk}}, func() error { b.discards++; return nil }, nil
	}
	b.o.Note = func(s string) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.notes = append(b.notes, s)
	}
	b.o.started = func(pid int) { b.pid.Store(int64(pid)) }
	return b
}

func (b *boot) run(t *testing.T) *Result {
	t.Helper()
	res, err := Boot(t.Context(), b.o)
	if err != nil {
		t.Fatal(err)
	}
	b.verifyGone(t)
	return res
}

// verifyGone makes sure that the machine has ended, and its disks are given up.
func (b *boot) verifyGone(t *testing.T) {
	t.Helper()
	pid := int(b.pid.Load())
	if pid == 0 || b.discards == 0 {
		t.Error("the machine has not run, or its disks are kept")
	}
	if err := unix.Kill(pid, 0); pid != 0 && !errors.Is(err, unix.ESRCH) {
		t.Errorf("QEMU, process %d, is still there: %v", pid, err)
	}
}

func TestUp(t *testing.T) {
	t.Parallel()
	b := newBoot(t, sector(append(say("guest login: "), halt...)...), "login: ")
	b.o.Timeout = 10 * time.Minute
	res := b.run(t)
	if !res.Up || !strings.Contains(res.Why, "guest login: ") || res.FirstLine == 0 || res.After < res.FirstLine {
		t.Errorf("%+v", res)
	}
	if !bytes.Contains(res.Console, []byte("guest login: ")) {
		t.Errorf("the console is %q", res.Console)
	}
	if img, err := png.Decode(bytes.NewReader(res.Screen)); err != nil || img.Bounds().Dx() < 320 {
		t.Errorf("the screen: %v", err)
	}
	if !regexp.MustCompile(`^\d+\.\d+\.\d+$`).MatchString(res.Version) || res.Accel != TCG {
		t.Errorf("QEMU %q with %q", res.Version, res.Accel)
	}
}

// Whatever a guest does instead of coming up, it is no pass, and soon known.
func TestNotUp(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		code    []byte
		timeout time.Duration
		why     string
	}{
		"reboots": {append(say("again "), reset...), 10 * time.Minute, "begun anew"},
		"off":     {append(say("bye "), off...), 10 * time.Minute, "switched itself off"},
		"hangs":   {append(say("here "), restart...), 15 * time.Second, "did not come up within 15s"},
		"nothing": {nil, 15 * time.Second, "did not come up"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBoot(t, sector(c.code...), "login:")
			b.o.Timeout = c.timeout
			res := b.run(t)
			if res.Up || res.Broken || !strings.Contains(res.Why, c.why) || res.ToDo == "" {
				t.Errorf("%+v, want %q", res, c.why)
			}
		})
	}
}

// A guest that talks without end is listened to, and what is kept of it is bounded.
func TestFlood(t *testing.T) {
	t.Parallel()
	b := newBoot(t, sector(append(say("begins\n"), flood...)...), "login:")
	b.o.Timeout = 15 * time.Second
	res := b.run(t)
	if res.Up || len(res.Console) > keptHead+keptTail+100 || !bytes.HasPrefix(bytes.TrimLeft(res.Console, "\x1b[]0-9;=?hlmcJHSeaBIOS (version)\r\n"), []byte("begins\nxxx")) {
		t.Errorf("%v, %d bytes are kept: %.100q", res.Up, len(res.Console), res.Console)
	}
}

// What QEMU is: without network, rights, and files of the host.
func TestConfined(t *testing.T) {
	t.Parallel()
	b := newBoot(t, sector(append(say("login:"), halt...)...), "login:")
	b.o.Timeout = 10 * time.Minute
	b.o.Definition = &domain.Machine{Machine: "pc-q35-999", CPUs: 9999, Memory: 1 << 50, NICs: []string{"virtio", "nonsense"},
		Disks: []domain.MachineDisk{{Target: "vda", Bus: "sata", Serial: "evil,file=/etc/passwd"}}, Left: []string{"the host's device 1"}}
	b.o.started = func(pid int) {
		b.pid.Store(int64(pid))
		verifyConfined(t, pid)
	}
	if res := b.run(t); !res.Up || len(res.Left) == 0 {
		t.Errorf("%+v", res)
	}
}

func verifyConfined(t *testing.T, pid int) {
	t.Helper()
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(proc, name))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	args := strings.Split(strings.TrimSuffix(read("cmdline"), "\x00"), "\x00")
	for i, want := range []string{"-nodefaults", "-no-user-config", "-sandbox", sandbox, "none"} {
		if !slices.Contains(args, want) {
			t.Errorf("%d: QEMU was not given %s: %q", i, want, args)
		}
	}
	for i, arg := range args {
		if args[max(0, i-1)] == "-netdev" && !strings.HasPrefix(arg, "hubport,") || strings.HasPrefix(arg, "-hda") {
			t.Errorf("QEMU was given a network: %q", args)
		}
		if i > 0 && strings.Contains(arg, "/") {
			t.Errorf("QEMU was given a path: %q", arg)
		}
	}
	status := read("status")
	for _, want := range []string{"Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"} {
		if !strings.Contains(status, want) {
			t.Errorf("%s is not so: %s", want, status)
		}
	}
	if os.Geteuid() == 0 && strings.Contains(status, "Uid:\t0") {
		t.Error("QEMU runs as root")
	}
	if lines := strings.Count(read("net/dev"), "\n"); lines > 3 {
		t.Errorf("QEMU sees network interfaces of the host: %s", read("net/dev"))
	}
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		t.Error(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink(filepath.Join(proc, "fd", fd.Name()))
		memory := strings.HasPrefix(to, "/memfd:") // its own
		if err != nil || strings.HasPrefix(to, "/") && to != "/dev/null" && !memory {
			t.Errorf("QEMU has %s open: %v", to, err)
		}
	}
	limits := read("limits")
	for _, want := range []string{fmt.Sprintf("Max file size             %d", maxFile), "Max core file size        0"} {
		if !strings.Contains(limits, want) {
			t.Errorf("%s is not so: %s", want, limits)
		}
	}
}

// An interrupt ends the machine, and is no verdict on it.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	b := newBoot(t, sector(append(say("here "), restart...)...), "login:")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b.o.Timeout = time.Hour
	b.o.started = func(pid int) { b.pid.Store(int64(pid)); cancel() }
	if res, err := Boot(ctx, b.o); !errors.Is(err, context.Canceled) || res != nil {
		t.Errorf("%+v, %v", res, err)
	}
	b.verifyGone(t)
}

// readNext is code that reads the disk's second sector: mov ax,0x0201; mov bx,0x8000;
// mov es,0; mov cx,2; mov dx,0x80; int 13h.
var readNext = []byte{0x31, 0xc0, 0x8e, 0xc0, 0xb8, 0x01, 0x02, 0xbb, 0x00, 0x80, 0xb9, 0x02, 0x00, 0xba, 0x80, 0x00, 0xcd, 0x13}

// QEMU that ends by itself says nothing about the guest; what that has said is kept.
func TestDied(t *testing.T) {
	t.Parallel()
	b := newBoot(t, sector(slices.Concat(say("last words "), readNext, halt)...), "login:")
	b.o.Timeout = 10 * time.Minute
	b.disk.asked = func() {
		if err := unix.Kill(int(b.pid.Load()), unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Error(err)
		}
	}
	res := b.run(t)
	if res.Up || !res.Broken || !strings.Contains(res.Why, "it has ended") && !strings.Contains(res.Why, errMonitor.Error()) || res.ToDo == "" {
		t.Errorf("%+v", res)
	}
	if !bytes.Contains(res.Console, []byte("last words ")) {
		t.Errorf("the console is %q", res.Console)
	}
}

// KVM that is there and can run nothing costs a second start; where it is not there, none.
func TestKVMBroken(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "qemu") // QEMU's user comes here, too
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	broken := filepath.Join(dir, "qemu")
	script := "#!/bin/sh\ncase \"$*\" in *accel=kvm*) echo no KVM >&2; exit 1;; esac\nexec qemu-system-x86_64 \"$@\"\n"
	testkit.Program(t, broken, script)
	err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(filepath.Join(dir, "kvm"), nil, 0o600),
		os.Chmod(filepath.Join(dir, "kvm"), 0o666))
	if err != nil {
		t.Fatal(err)
	}
	for device, told := range map[string]int{"kvm": 1, "nothing": 0} {
		b := newBoot(t, sector(append(say("guest login: "), halt...)...), "login: ")
		b.o.Accel, b.o.Timeout, b.o.kvm, b.o.Program = "", 10*time.Minute, filepath.Join(dir, device), broken
		res := b.run(t)
		if !res.Up || res.Accel != TCG || b.discards != 1+told || len(b.notes) != told {
			t.Errorf("%s: %+v; %d times discarded, told %q", device, res, b.discards, b.notes)
		}
		if told > 0 && !strings.Contains(b.notes[0], "KVM cannot run it here: ") {
			t.Errorf("told %q", b.notes)
		}
	}
}

// Without anything on its disk the screen stays the firmware's; with something else on
// it, that is seen.
func TestScreen(t *testing.T) {
	t.Parallel()
	// mov ax,0xb800; mov es,ax; xor di,di; mov ax,0x1f41; mov cx,2000; cld; rep stosw: the
	// screen is full of A, in white on blue.
	paint := []byte{0xb8, 0x00, 0xb8, 0x8e, 0xc0, 0x31, 0xff, 0xb8, 0x41, 0x1f, 0xb9, 0xd0, 0x07, 0xfc, 0xf3, 0xab}
	// mov ax,0x0240; mov bx,0x8000; mov cx,2; mov dx,0x80; int 13h, 128 times: it reads 4 MiB.
	readMuch := []byte{0xbd, 0x80, 0x00, 0x31, 0xc0, 0x8e, 0xc0, 0xb8, 0x40, 0x02, 0xbb, 0x00, 0x80, 0xb9, 0x02, 0x00, 0xba, 0x80, 0x00, 0xcd, 0x13, 0x4d, 0x75, 0xef}
	for name, c := range map[string]struct {
		code []byte
		up   bool
	}{
		"painted": {slices.Concat(readMuch, paint, halt), true},
		"idle":    {slices.Concat(readMuch, halt), false}, // what the firmware has said stays there
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBoot(t, sector(c.code...), "x")
			b.o.Pattern, b.o.Screen, b.o.Timeout = nil, true, 30*time.Second
			if c.up {
				b.o.Timeout = 10 * time.Minute
			}
			if res := b.run(t); res.Up != c.up {
				t.Errorf("%v: %s", res.Up, res.Why)
			}
		})
	}
}
