// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"cmp"
	"fmt"
	"strings"
)

// shares lists what a definition names that only one domain can use at a time, in
// words for a person: first the disks, then the rest. What was moved is its own, and
// what nothing is written to can be shared.
func shares(data []byte, m Moved) (disks, rest []string, err error) {
	root, err := parseTree(data)
	if err != nil {
		return nil, nil, err
	}
	d, err := fromTree(root)
	if err != nil {
		return nil, nil, err
	}
	for i := range d.Disks {
		disk := &d.Disks[i]
		if _, moved := m.Disks[disk.Target]; !moved && !disk.Empty() && !disk.ReadOnly {
			disks = append(disks, fmt.Sprintf("disk %s (%s)", disk.Target, diskSource(root, disk)))
		}
	}
	if d.NVRAM != "" && m.NVRAM == "" {
		rest = append(rest, "the firmware's variables "+d.NVRAM)
	}
	if d.Loader != "" && m.Loader == "" && !d.LoaderReadOnly && d.NVRAM == "" {
		rest = append(rest, "the firmware "+d.Loader)
	}
	if devices := root.kid("devices"); devices != nil {
		for _, n := range devices.kids {
			if about, ok := sharedDevices[n.name]; ok {
				if what := about(n); what != "" {
					rest = append(rest, what)
				}
			}
		}
	}
	if root.kid("qemu:commandline") != nil {
		rest = append(rest, "whatever its own arguments for QEMU name (qemu:commandline)")
	}
	return disks, rest, nil
}

// diskSource says where the disk is, as far as a person needs it to know it again.
func diskSource(root *node, disk *Disk) string {
	switch {
	case disk.Path != "":
		return disk.Path
	case disk.Volume.Name != "":
		return fmt.Sprintf("volume %s of pool %s", disk.Volume.Name, disk.Volume.Pool)
	}
	for _, n := range root.kid("devices").kids {
		if t := n.kid("target"); n.name == "disk" && t != nil && t.value("dev") == disk.Target && n.kid("source") != nil {
			return strings.TrimSpace(disk.Type + ", " + strings.TrimSpace(disk.Protocol+" "+n.kid("source").value("name")))
		}
	}
	return disk.Type
}

// sharedDevices say what a device uses that another domain cannot use, too; empty:
// nothing.
var sharedDevices = map[string]func(*node) string{
	"hostdev": func(n *node) string { return "the host's device " + hostDevice(n) },
	"interface": func(n *node) string {
		switch tap := n.kid("target"); {
		case n.value("type") == "hostdev":
			return "the host's network device " + hostDevice(n)
		case tap == nil || tap.value("dev") == "" || strings.HasPrefix(tap.value("dev"), "vnet"):
			return ""
		default:
			return "the network device " + tap.value("dev")
		}
	},
	"filesystem": func(n *node) string {
		if n.kid("readonly") != nil {
			return ""
		}
		return named(n, "the folder ", "dir", "file", "dev", "name", "socket")
	},
	"graphics": func(n *node) string {
		if port := n.value("port"); port != "" && port != "-1" && n.value("autoport") != "yes" {
			return fmt.Sprintf("the port %s (%s)", port, n.value("type"))
		}
		if socket := n.value("socket"); socket != "" {
			return "the socket " + socket
		}
		return ""
	},
	"serial": character, "parallel": character, "channel": character, "redirdev": character,
	"vsock": func(n *node) string {
		if cid := n.kid("cid"); cid != nil && cid.value("auto") != "yes" && cid.has("address") {
			return "the vsock address " + cid.value("address")
		}
		return ""
	},
	"memory": func(n *node) string {
		if source := n.kid("source"); source != nil && source.kid("path") != nil {
			return "the memory in " + strings.TrimSpace(source.kid("path").text)
		}
		return ""
	},
	"lease": func(n *node) string {
		if key := n.kid("key"); key != nil {
			return "the lease " + strings.TrimSpace(key.text)
		}
		return ""
	},
	"shmem": func(n *node) string { return "the shared memory " + n.value("name") },
	"tpm": func(n *node) string {
		backend := n.kid("backend")
		if backend == nil {
			return ""
		}
		if device := backend.kid("device"); device != nil {
			return "the TPM " + device.value("path")
		}
		return named(backend, "the TPM's state in ", "path")
	},
	"input": func(n *node) string { return named(n, "the input device ", "dev", "evdev") },
}

// named is what and the first of the attributes that the source has; empty: none.
func named(n *node, what string, keys ...string) string {
	if source := n.kid("source"); source != nil {
		for _, key := range keys {
			if val := source.value(key); val != "" {
				return what + val
			}
		}
	}
	return ""
}

// character is a device that a stream of characters comes from or goes to.
func character(n *node) string {
	source := n.kid("source")
	if source == nil || source.value("mode") == "connect" {
		return ""
	}
	switch kind := n.value("type"); kind {
	case "tcp", "udp":
		return fmt.Sprintf("the port %s (%s)", source.value("service"), n.name)
	case "dev", "pipe", "file", "unix":
		path := source.value("path")
		if path == "" || strings.Contains(path, "/libvirt/qemu/channel/") { // which libvirt makes anew
			return ""
		}
		return fmt.Sprintf("%s (%s)", path, n.name)
	}
	return ""
}

// hostDevice says which device of the host it is.
func hostDevice(n *node) string {
	source := n.kid("source")
	if source == nil {
		return n.value("type")
	}
	if a := source.kid("address"); a != nil {
		switch {
		case a.has("uuid"):
			return a.value("uuid")
		case a.has("slot"):
			hex := func(key string) string { return strings.TrimPrefix(cmp.Or(a.value(key), "0"), "0x") }
			return fmt.Sprintf("%04s:%02s:%02s.%s", hex("domain"), hex("bus"), hex("slot"), hex("function"))
		}
		if a.has("device") {
			return fmt.Sprintf("%s bus %s device %s", n.value("type"), a.value("bus"), a.value("device"))
		}
	}
	if vendor, product := source.kid("vendor"), source.kid("product"); vendor != nil && product != nil {
		return fmt.Sprintf("%s %s:%s", n.value("type"), vendor.value("id"), product.value("id"))
	}
	for _, k := range source.kids {
		if text := cmp.Or(k.value("name"), strings.TrimSpace(k.text)); text != "" {
			return text
		}
	}
	return n.value("type")
}
