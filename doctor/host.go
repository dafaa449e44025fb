// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/memory"
	"github.com/imgbackup/imgbackup/machine"
	"github.com/imgbackup/imgbackup/qemu"
)

// Host is what a host is asked, whatever its repositories and jobs are.
type Host struct {
	Drills bool // drills are meant to be run here: what they need is missed
	Memory memory.Budget
	KVM    string // the device; empty: the usual one
	Root   string // before the paths of what the kernel tells; empty: nothing
}

// Checks are those of the host.
func (h Host) Checks() []Check {
	return []Check{
		{"qemu-img", h.img},
		{"qemu-nbd", h.nbd},
		{"qemu-system", h.emulator},
		{"kvm", h.kvm},
		{"firmware", h.firmware},
		{"swtpm", h.tpm},
		{"libguestfs", h.guestfs},
		{"fuse", h.fuse},
		{"landlock", h.kernel},
		{"apparmor", h.appArmor},
		{"memory", h.room},
		{"clock", h.clock},
	}
}

// forDrills is what only drills miss: a warning where they are run, else worth a word.
func (h Host) forDrills(advice, format string, args ...any) Finding {
	f := warning(advice, format, args...)
	if !h.Drills {
		f.Level = OK
	}
	return f
}

// known is what is known of versions of QEMU.
var known = []struct {
	before qemu.Version // and from the one before it in this list on
	level  Level
	what   string
}{
	{qemu.Version{Major: 4, Minor: 1}, Failed, "it has no command for bitmaps (qemu-img bitmap came with 5.1)"},
	{qemu.Version{Major: 4, Minor: 1, Micro: 1}, Failed, "4.1.0 damages qcow2 images that guests write to"},
	{qemu.Version{Major: 5, Minor: 1}, Failed, "it has no command for bitmaps (qemu-img bitmap came with 5.1)"},
	{qemu.Version{Major: 7, Minor: 2}, Warning, "it is older than what imgbackup was tried with, which is 7.2 to 10.0"},
}

func judge(f qemu.Found) Finding {
	for _, k := range known {
		if f.Version.Before(k.before) {
			return Finding{Level: k.level, Text: f.Says + ", " + f.Path + ": " + k.what, Advice: "use a newer QEMU"}
		}
	}
	return ok("%s, %s", f.Says, f.Path)
}

func (h Host) img(ctx context.Context) []Finding {
	f, err := qemu.Find(ctx, "qemu-img")
	if err != nil {
		return []Finding{failed("install it: without it no bitmap is added, and each backup reads everything", "%v", err)}
	}
	return []Finding{judge(f)}
}

func (h Host) nbd(ctx context.Context) []Finding {
	f, err := qemu.Find(ctx, "qemu-nbd")
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return []Finding{warning("install it where there are images in LUKS, vmdk, vhdx, vdi or qed", "%v", err)}
	case err != nil:
		return []Finding{failed("see why it does not start", "%v", err)}
	}
	return []Finding{judge(f)}
}

func (h Host) emulator(ctx context.Context) []Finding {
	f, err := qemu.Find(ctx, "qemu-system-x86_64")
	if err != nil {
		return []Finding{h.forDrills("install qemu-system-x86 (Debian, Ubuntu) or qemu-kvm, or leave the step boot out of drills",
			"there is none that boots a guest in a drill: %v", err)}
	}
	return []Finding{judge(f)}
}

func (h Host) kvm(context.Context) []Finding {
	device := h.KVM
	if device == "" {
		device = confine.KVM
	}
	_, err := os.Stat(device)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []Finding{h.forDrills("turn virtualization on in the machine's firmware, or nested virtualization where this is a guest",
			"there is no %s: drills boot guests, and libguestfs looks at them, emulated, which is slow", device)}
	case err != nil:
		return []Finding{warning("see who may look at it", "%v", err)}
	case !confine.KVMOpens(device):
		return []Finding{h.forDrills("let the group kvm open it, and be in that group", "%s can't be opened from here: drills boot guests emulated, which is slow", device)}
	}
	return []Finding{ok("%s can be opened (whether it starts a guest, a drill shows)", device)}
}

func (h Host) firmware(context.Context) []Finding {
	plain, secure := machine.HostFirmware()
	if plain == "" {
		return []Finding{h.forDrills("install ovmf (Debian, Ubuntu), edk2-ovmf (Fedora) or qemu-ovmf-x86_64 (SUSE)",
			"there is no UEFI firmware: guests with UEFI whose firmware was not archived can't be booted by drills")}
	}
	if secure == "" {
		return []Finding{ok("%s (none for secure boot)", plain)}
	}
	return []Finding{ok("%s, %s", plain, secure)}
}

func (h Host) tpm(context.Context) []Finding {
	path, err := exec.LookPath("swtpm")
	if err != nil {
		return []Finding{h.forDrills("install swtpm", "it is not installed: drills boot guests without their TPM")}
	}
	return []Finding{ok("%s", path)}
}

func (h Host) guestfs(context.Context) []Finding {
	const install = "install guestfish (Debian, Ubuntu) or guestfs-tools (Fedora), or leave the steps filesystems and files out of drills"
	path, err := exec.LookPath("guestfish")
	if err != nil {
		return []Finding{h.forDrills(install, "guestfish is not installed: drills don't look into file systems")}
	}
	kernels, err := filepath.Glob("/boot/vmlinu[xz]-*")
	if err != nil || len(kernels) == 0 {
		return []Finding{h.forDrills("install a kernel, as linux-image-cloud-amd64, or name one by SUPERMIN_KERNEL",
			"%s is there, and no kernel in /boot that its appliance could be made of", path)}
	}
	for _, k := range kernels {
		if unix.Access(k, unix.R_OK) == nil {
			return []Finding{ok("%s; its appliance is made of %s", path, k)}
		}
	}
	return []Finding{h.forDrills("run drills as root, or let the kernel be read: dpkg-statoverride --update --add root root 0644 "+kernels[0],
		"%s is there, and no kernel in /boot can be read by this user", path)}
}

// fuse is what mount takes, which nothing else does.
func (h Host) fuse(context.Context) []Finding {
	path, err := exec.LookPath("fusermount3")
	if err != nil {
		return []Finding{ok("fusermount3 is not installed (package fuse3): imgbackup mount does not work here")}
	}
	if err := unix.Access("/dev/fuse", unix.R_OK|unix.W_OK); err != nil {
		return []Finding{ok("%s is there, and /dev/fuse can't be opened (%v): imgbackup mount does not work here", path, err)}
	}
	return []Finding{ok("%s, /dev/fuse", path)}
}

func (h Host) kernel(context.Context) []Finding {
	var all []Finding
	if confine.Off() {
		all = append(all, warning("take IMGBACKUP_CONFINE out of the environment", "IMGBACKUP_CONFINE=off: QEMU's programs, and imgbackup itself, run unconfined"))
	}
	k := confine.ThisKernel()
	const how = "use a kernel from 5.13 on that has it (CONFIG_SECURITY_LANDLOCK; its name in lsm= of the kernel's command line)"
	if k.Landlock == 0 {
		all = append(all, warning(how, "the kernel has no Landlock: what reads images is not kept from other files"))
	}
	if !k.Seccomp {
		all = append(all, warning("use a kernel that has them (CONFIG_SECCOMP_FILTER)", "the kernel has no filters of system calls: QEMU's programs are not kept from the network"))
	}
	if len(all) > 0 {
		return all
	}
	if !k.Signals {
		return []Finding{ok("Landlock %d and seccomp; it does not keep programs from signalling others of the same user", k.Landlock)}
	}
	return []Finding{ok("Landlock %d and seccomp", k.Landlock)}
}

// appArmor is about guests of libvirt, which are confined by profiles of their own.
func (h Host) appArmor(context.Context) []Finding {
	on, err := os.ReadFile(h.Root + "/sys/module/apparmor/parameters/enabled")
	if err != nil || !bytes.HasPrefix(on, []byte("Y")) {
		return []Finding{ok("AppArmor is not in force")}
	}
	var all []Finding
	if me, err := os.ReadFile(h.Root + "/proc/self/attr/current"); err == nil {
		if name := strings.TrimRight(string(me), "\x00\n"); name != "unconfined" {
			all = append(all, warning("let its profile have the images' folders and the repository", "this process runs under AppArmor's profile %.100q, which may keep files from it", name))
		}
	}
	if loaded, err := libvirtProfiles(h.Root + "/sys/kernel/security/apparmor/profiles"); err == nil && loaded {
		return append(all, ok("libvirt's guests are confined: one may open the disks of its definition; for a socket of imgbackup serve add a line as"+
			" \"/run/imgbackup/*.sock rw,\" to /etc/apparmor.d/local/abstractions/libvirt-qemu"))
	} else if errors.Is(err, fs.ErrPermission) {
		return append(all, ok("AppArmor is in force; only root sees whether libvirt's guests are confined by it"))
	}
	return append(all, ok("AppArmor is in force, and has no profiles of libvirt"))
}

func libvirtProfiles(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }() // only read
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "libvirt") {
			return true, nil
		}
	}
	return false, lines.Err()
}

func (h Host) room(context.Context) []Finding {
	switch {
	case !h.Memory.Limited():
		return []Finding{ok("%d MiB for buffers, as much as is of use", h.Memory.Bytes()>>20)}
	case h.Memory.Bytes() < memory.Least:
		return []Finding{warning("give it 256 MiB", "limited to %s, less than the %d MiB that all of it was tried with", h.Memory, memory.Least>>20)}
	}
	return []Finding{ok("limited to %s: slower than with %d MiB", h.Memory, memory.Usual>>20)}
}

// clock asks the kernel whether somebody keeps its clock right.
func (h Host) clock(context.Context) []Finding {
	state, err := unix.Adjtimex(&unix.Timex{})
	switch {
	case err != nil:
		return []Finding{warning("see that the time is right", "the kernel does not tell whether its clock is kept right: %v", err)}
	case state == unix.TIME_ERROR:
		return []Finding{warning("install chrony or systemd-timesyncd: retention and schedules go by the clock", "nobody keeps this machine's clock right")}
	}
	return []Finding{ok("it is kept right")}
}
