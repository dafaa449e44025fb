// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Machine is what a definition says of the virtual machine that a guest notices when it
// boots. It is for making one like it, not the same one: addresses are left out, and
// whatever belongs to the host.
type Machine struct {
	Type    string // kvm, qemu, …
	Arch    string // x86_64, …; empty: not said
	Machine string // pc-q35-7.2, …; empty: not said
	OSType  string // hvm, …
	CPUs    int    // at least 1
	Memory  int64  // bytes; 0: not said
	EFI     bool   // the firmware is UEFI, not a BIOS
	Secure  bool   // which needs system management mode
	// LocalTime says that the clock shows local time, as Windows' does.
	LocalTime bool
	SCSI      string // model of the first SCSI controller; empty: not said
	Disks     []MachineDisk
	NICs      []string // models of the network interfaces; empty ones: not said
	TPM       string   // model of an emulated TPM: tpm-tis, tpm-crb; empty: there is none
	TPMOld    bool     // it is of version 1.2
	Kernel    bool     // the host gives it a kernel to boot
	Serial    bool     // it has a serial port, or a console that is one
	Left      []string // what of the host it uses, in words for a person
}

// MachineDisk is how a disk is attached.
type MachineDisk struct {
	Target string
	Bus    string // virtio, sata, scsi, …; by the target's name if it is not said
	Serial string
	Order  int // of booting; 0: not said
}

// ParseMachine reads what a definition says of the machine.
func ParseMachine(data []byte) (*Machine, error) {
	root, err := parseTree(data)
	if err != nil {
		return nil, fmt.Errorf("domain XML: %w", err)
	}
	d, err := fromTree(root)
	if err != nil {
		return nil, err
	}
	m := &Machine{Type: root.value("type"), CPUs: 1}
	m.readOS(root)
	m.EFI = m.EFI || d.NVRAM != "" || strings.Contains(strings.ToLower(d.Loader), "ovmf") || strings.Contains(strings.ToLower(d.Loader), "aavmf")
	if n := root.kid("vcpu"); n != nil {
		text := n.value("current")
		if text == "" {
			text = strings.TrimSpace(n.text)
		}
		if cpus, err := strconv.Atoi(text); err == nil && cpus > 0 {
			m.CPUs = cpus
		}
	}
	for _, name := range []string{"currentMemory", "memory"} {
		if n := root.kid(name); n != nil && m.Memory == 0 {
			m.Memory = memory(n)
		}
	}
	if n := root.kid("clock"); n != nil {
		m.LocalTime = n.value("offset") == "localtime"
	}
	if devices := root.kid("devices"); devices != nil {
		m.readDevices(devices)
	}
	m.readDisks(root, d)
	_, m.Left, err = shares(data, Moved{NVRAM: "-", Loader: "-"})
	return m, err
}

func (m *Machine) readOS(root *node) {
	n := root.kid("os")
	if n == nil {
		return
	}
	if t := n.kid("type"); t != nil {
		m.Arch, m.Machine, m.OSType = t.value("arch"), t.value("machine"), strings.TrimSpace(t.text)
	}
	m.Kernel = n.kid("kernel") != nil
	m.EFI = n.value("firmware") == "efi"
	if l := n.kid("loader"); l != nil {
		m.Secure = l.value("secure") == "yes"
	}
}

func (m *Machine) readDevices(devices *node) {
	for _, n := range devices.kids {
		switch n.name {
		case "controller":
			if n.value("type") == "scsi" && m.SCSI == "" {
				m.SCSI = n.value("model")
			}
		case "interface":
			model := ""
			if k := n.kid("model"); k != nil {
				model = k.value("type")
			}
			m.NICs = append(m.NICs, model)
		case "tpm":
			if b := n.kid("backend"); b != nil && b.value("type") == "emulator" {
				m.TPM, m.TPMOld = n.value("model"), b.value("version") == "1.2"
				if m.TPM == "" {
					m.TPM = "tpm-tis"
				}
			}
		case "serial", "console":
			m.Serial = true
		}
	}
}

func (m *Machine) readDisks(root *node, d *Domain) {
	for i := range d.Disks {
		disk := &d.Disks[i]
		md := MachineDisk{Target: disk.Target, Bus: disk.bus}
		if md.Bus == "" {
			md.Bus = busOf(disk.Target)
		}
		for _, n := range root.kid("devices").kids {
			if t := n.kid("target"); n.name != "disk" || t == nil || t.value("dev") != disk.Target {
				continue
			}
			if k := n.kid("serial"); k != nil {
				md.Serial = strings.TrimSpace(k.text)
			}
			if k := n.kid("boot"); k != nil {
				md.Order, _ = strconv.Atoi(k.value("order")) // 0: not said
			}
		}
		m.Disks = append(m.Disks, md)
	}
}

// Disk returns how the disk of that target is attached.
func (m *Machine) Disk(target string) (*MachineDisk, bool) {
	for i := range m.Disks {
		if m.Disks[i].Target == target {
			return &m.Disks[i], true
		}
	}
	return nil, false
}

// busOf is the bus that libvirt takes for a disk of that name.
func busOf(target string) string {
	for prefix, bus := range map[string]string{"vd": "virtio", "sd": "scsi", "hd": "ide", "xvd": "xen", "fd": "fdc", "nvme": "nvme"} {
		if strings.HasPrefix(target, prefix) {
			return bus
		}
	}
	return "virtio"
}

// memoryUnits are libvirt's units of memory, bytes.
var memoryUnits = map[string]int64{
	"b": 1, "bytes": 1, "kb": 1e3, "k": 1 << 10, "kib": 1 << 10, "": 1 << 10, "mb": 1e6, "m": 1 << 20, "mib": 1 << 20,
	"gb": 1e9, "g": 1 << 30, "gib": 1 << 30, "tb": 1e12, "t": 1 << 40, "tib": 1 << 40,
}

// memory is an amount of memory, bytes; 0: it is none.
func memory(n *node) int64 {
	unit, ok := memoryUnits[strings.ToLower(n.value("unit"))]
	amount, err := strconv.ParseInt(strings.TrimSpace(n.text), 10, 64)
	if !ok || err != nil || amount < 0 || amount > math.MaxInt64/unit {
		return 0
	}
	return amount * unit
}
