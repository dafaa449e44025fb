// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"crypto/rand"

	"github.com/google/uuid"

	"github.com/imgbackup/imgbackup/domain"
)

const (
	defaultMemory = 1 << 30 // of a machine without a definition
	maxMemory     = 2 << 30 // unless more is allowed
	minMemory     = 64 << 20
	maxCPUs       = 2
	maxNICs       = 8
	maxDisks      = 32
)

// sandbox is what QEMU denies itself by seccomp filters.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// command is QEMU's command line, and the files that it inherits.
type command struct {
	o     *Options
	m     *domain.Machine
	accel string
	q35   bool

	args  []string
	files []*os.File // the first is its descriptor 3
	left  []string   // of the definition

	memory int64
	ports  map[string]int // of controllers, in use
}

func (c *command) add(args ...string) { c.args = append(c.args, args...) }

// inherit gives QEMU a file, and returns its number there.
func (c *command) inherit(f *os.File) int {
	c.files = append(c.files, f)
	return 2 + len(c.files)
}

// close closes what QEMU has inherited. Once more is no harm.
func (c *command) close() {
	for _, f := range c.files {
		_ = f.Close()
	}
}

// socket is a character device of QEMU's that is a socket.
func (c *command) socket(id string, f *os.File) {
	c.add("-chardev", fmt.Sprintf("socket,id=%s,fd=%d", id, c.inherit(f)))
}

// minimal is the machine of a domain without a definition.
func minimal() *domain.Machine {
	return &domain.Machine{Arch: "x86_64", OSType: "hvm", CPUs: 1, Memory: defaultMemory}
}

// checkFit says why the machine can't be made.
func checkFit(m *domain.Machine) error {
	switch {
	case m.OSType != "hvm" && m.OSType != "":
		return &UnfitError{fmt.Sprintf("its type is %.40q: only full virtual machines (hvm) are booted", m.OSType), "leave the step boot out"}
	case m.Arch != "x86_64" && m.Arch != "i686" && m.Arch != "":
		return &UnfitError{fmt.Sprintf("it is a machine of the architecture %.40q: only x86_64 and i686 are booted", m.Arch), "leave the step boot out"}
	case m.Kernel:
		return &UnfitError{"the host gives it a kernel to boot, which is not in the archive", "leave the step boot out, or boot it by --command"}
	}
	return nil
}

// base is the machine without its devices.
func (c *command) base(known func(machine string) bool) {
	m := c.m
	kind := m.Machine
	if !machinePattern.MatchString(kind) || !known(kind) {
		kind = "q35"
		if strings.HasPrefix(m.Machine, "pc-i440fx") || m.Machine == "pc" {
			kind = "pc"
		}
		if m.Machine != "" && m.Machine != kind {
			c.leave("the machine type %.40q, in whose place is %s", m.Machine, kind)
		}
	}
	c.q35 = strings.Contains(kind, "q35")
	for _, what := range m.Left {
		if !strings.HasPrefix(what, "the TPM's state") { // it has a copy
			c.leave("%.200s", what)
		}
	}
	cpus := min(max(m.CPUs, 1), cmp.Or(c.o.CPUs, maxCPUs), runtime.NumCPU())
	c.memory = cmp.Or(m.Memory, defaultMemory)
	c.memory = max(min(c.memory, cmp.Or(c.o.Memory, maxMemory)), minMemory) >> 20 << 20
	if m.Memory > c.memory {
		c.leave("%d MiB of its memory", (m.Memory-c.memory)>>20)
	}
	machine := kind + ",accel=" + c.accel
	if c.firmware() {
		machine += ",pflash0=code,pflash1=vars"
	}
	if m.Secure && c.q35 {
		machine += ",smm=on"
		c.add("-global", "driver=cfi.pflash01,property=secure,value=on")
	}
	cpu := "max"
	if c.accel == KVM {
		cpu = "host"
	}
	base := "utc"
	if m.LocalTime {
		base = "localtime"
	}
	c.add("-name", "imgbackup-drill", "-uuid", uuid.NewString(), "-machine", machine, "-cpu", cpu, "-smp", strconv.Itoa(cpus),
		"-m", strconv.FormatInt(c.memory>>20, 10), "-rtc", "base="+base, "-boot", "menu=off,strict=on",
		"-nodefaults", "-no-user-config", "-nic", "none", "-display", "none", "-no-shutdown", "-S", "-sandbox", sandbox,
		"-device", "VGA")
}

var machinePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

func (c *command) leave(format string, args ...any) {
	c.left = append(c.left, fmt.Sprintf(format, args...))
}

// firmware reports whether the machine's firmware comes from two flash memories.
func (c *command) firmware() bool { return c.m.EFI }

// node makes an NBD export a node of QEMU's, over a socket that it inherits.
func (c *command) node(name, export string, f *os.File, readOnly bool) {
	b, err := json.Marshal(map[string]any{
		"driver": "raw", "node-name": name, "read-only": readOnly, "discard": "unmap",
		"file": map[string]any{"driver": "nbd", "export": export, "read-only": readOnly, "discard": "unmap",
			"server": map[string]string{"type": "fd", "str": strconv.Itoa(c.inherit(f))}},
	})
	if err != nil { // it is made of strings
		panic(err)
	}
	c.add("-blockdev", string(b))
}

// disks attaches the disks, as the definition does. The one that boots first, or the
// first one, is the first.
func (c *command) disks(disks []Disk, sockets []*os.File) {
	order := make(map[string]int)
	for i, d := range disks {
		order[d.Name] = 1000 + i
		if md, ok := c.m.Disk(d.Name); ok && md.Order > 0 && md.Order < 1000 {
			order[d.Name] = md.Order
		}
	}
	for i, d := range disks {
		c.node("disk"+strconv.Itoa(i), d.Name, sockets[i], false)
		md, ok := c.m.Disk(d.Name)
		if !ok {
			md = &domain.MachineDisk{Target: d.Name, Bus: busWithout(d.Name)}
		}
		device := c.device(md) + ",drive=disk" + strconv.Itoa(i) + ",bootindex=" + strconv.Itoa(order[d.Name])
		if serialPattern.MatchString(md.Serial) {
			device += ",serial=" + md.Serial
		} else if md.Bus == "nvme" {
			device += ",serial=" + d.Name
		}
		c.add("-device", device)
	}
	for _, md := range c.m.Disks {
		if !slices.ContainsFunc(disks, func(d Disk) bool { return d.Name == md.Target }) {
			c.leave("disk %s, which is not in the checkpoint, or not drilled", md.Target)
		}
	}
}

var serialPattern = regexp.MustCompile(`^[A-Za-z0-9_.+-]{1,36}$`)

// busWithout is the bus of a disk that no definition describes.
func busWithout(name string) string {
	switch {
	case strings.HasPrefix(name, "sd"):
		return "sata"
	case strings.HasPrefix(name, "hd"):
		return "ide"
	case strings.HasPrefix(name, "nvme"):
		return "nvme"
	}
	return "virtio"
}

// device is the kind of device that a disk is, on a controller that is made when it is
// needed first.
func (c *command) device(md *domain.MachineDisk) string {
	n := c.ports[md.Bus]
	c.ports[md.Bus]++
	switch md.Bus {
	case "scsi":
		return fmt.Sprintf("scsi-hd,bus=%s.0,scsi-id=%d", c.controller("scsi", n, 7, c.scsi()), n%7)
	case "sata":
		return fmt.Sprintf("ide-hd,bus=%s.%d", c.controller("sata", n, 6, "ich9-ahci"), n%6)
	case "ide":
		if !c.q35 && n < 4 {
			return fmt.Sprintf("ide-hd,bus=ide.%d,unit=%d", n/2, n%2)
		}
		return fmt.Sprintf("ide-hd,bus=%s.%d", c.controller("ide-", n, 6, "ich9-ahci"), n%6)
	case "usb":
		return "usb-storage,bus=" + c.controller("usb", n, 4, "qemu-xhci") + ".0"
	case "nvme":
		return "nvme"
	case "virtio":
	default:
		c.leave("the bus %.20q of disk %s, in whose place is virtio", md.Bus, md.Target)
	}
	return "virtio-blk-pci"
}

// controller is that of the n-th disk of a bus, of which each takes so many.
func (c *command) controller(name string, n, ports int, model string) string {
	id := name + strconv.Itoa(n/ports)
	if n%ports == 0 {
		c.add("-device", model+",id="+id)
	}
	return id
}

// scsi is the model of SCSI controllers.
func (c *command) scsi() string {
	switch c.m.SCSI {
	case "lsilogic":
		return "lsi53c895a"
	case "vmpvscsi":
		return "pvscsi"
	case "lsisas1068":
		return "mptsas1068"
	}
	return "virtio-scsi-pci"
}

// networkModels are those that a machine gets.
var networkModels = map[string]string{"virtio": "virtio-net-pci", "e1000": "e1000", "e1000e": "e1000e", "rtl8139": "rtl8139"}

// network gives the guest its network interfaces, each on a hub with nothing else.
func (c *command) network() {
	for i, model := range c.m.NICs {
		kind, ok := networkModels[model]
		if !ok {
			kind = "e1000"
		}
		if i == maxNICs {
			c.leave("%d of its network interfaces", len(c.m.NICs)-maxNICs)
			return
		}
		c.add("-netdev", fmt.Sprintf("hubport,id=net%d,hubid=%d", i, i), "-device", fmt.Sprintf("%s,netdev=net%d,mac=%s,romfile=", kind, i, newMAC()))
	}
}

// newMAC is a random address of those that nobody else gives out.
func newMAC() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	b[0] = b[0]&^1 | 2
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5])
}
