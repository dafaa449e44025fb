// SPDX-License-Identifier: Apache-2.0

package pve

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// MaxConfig bounds a configuration, bytes; Proxmox VE's own file system has a smaller bound.
const MaxConfig = 1 << 20

// Config is what a backup needs of a VM's configuration.
type Config struct {
	Name      string // empty: it has none
	UUID      string // that the guest sees, lower case; empty: none is given
	Template  bool   // nothing is written to its disks any more, and those of others may be based on them
	Lock      string // what Proxmox VE does with it, as backup or suspended; empty: nothing
	VMState   string // the volume with its memory, if it was suspended; empty: it was not
	Drives    []Drive
	Unused    []Drive  // volumes that are not attached
	Snapshots []string // their names
	Pending   bool     // changes wait for the next start
	Args      string   // for QEMU, that Proxmox VE knows nothing of
}

// Drive is a disk or another medium.
type Drive struct {
	Key      string // as scsi0
	Volume   string // STORAGE:NAME, an absolute path, or of a medium also none or cdrom
	Format   string // that is said of it; empty: none is
	CDROM    bool
	NoBackup bool // Proxmox VE's own backups leave it out
}

// line is a key of a configuration and its value.
var line = regexp.MustCompile(`^([a-z][a-z0-9_-]*):[ \t]*(.*?)[ \t\r]*$`)

var section = regexp.MustCompile(`^\[([A-Za-z][A-Za-z0-9_:-]*)\][ \t\r]*$`)

// drive is the key of a drive.
var drive = regexp.MustCompile(`^(?:ide|sata|scsi|virtio|efidisk|tpmstate|unused)(?:0|[1-9][0-9]{0,2})$`)

// ParseConfig reads a VM's configuration.
func ParseConfig(data []byte) (*Config, error) {
	if len(data) > MaxConfig {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(data), MaxConfig)
	}
	if bytes.IndexByte(data, 0) >= 0 {
		return nil, errors.New("there is a NUL in it")
	}
	c := &Config{}
	seen := make(map[string]bool)
	for i, text := range strings.Split(string(data), "\n") {
		trimmed := strings.TrimSpace(text)
		if trimmed == "" || trimmed[0] == '#' { // the second is its description
			continue
		}
		if m := section.FindStringSubmatch(text); m != nil {
			return c, c.sections(strings.Split(string(data), "\n")[i:])
		}
		m := line.FindStringSubmatch(text)
		if m == nil {
			return nil, fmt.Errorf("line %d is none of a configuration: %.80q", i+1, trimmed)
		}
		if seen[m[1]] {
			return nil, fmt.Errorf("line %d: there are two of %s", i+1, m[1])
		}
		seen[m[1]] = true
		if err := c.set(m[1], m[2]); err != nil {
			return nil, fmt.Errorf("line %d: %s: %w", i+1, m[1], err)
		}
	}
	return c, nil
}

// sections takes what follows the VM as it is: snapshots, and what is to change.
func (c *Config) sections(lines []string) error {
	for _, text := range lines {
		m := section.FindStringSubmatch(text)
		switch {
		case m == nil || strings.Contains(m[1], ":"):
		case strings.EqualFold(m[1], "PENDING"):
			c.Pending = true
		default:
			c.Snapshots = append(c.Snapshots, m[1])
		}
	}
	return nil
}

// set takes one key.
func (c *Config) set(key, value string) (err error) {
	switch key {
	case "name":
		c.Name = value
	case "template":
		c.Template = value == "1"
	case "lock":
		c.Lock = value
	case "vmstate":
		c.VMState = value
	case "args":
		c.Args = value
	case "smbios1":
		c.UUID, err = smbiosUUID(value)
	case cdrom:
		key, value = oldCDROM(value)
	}
	if err != nil || !drive.MatchString(key) {
		return err
	}
	d, err := parseDrive(key, value)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(c.Drives, func(o Drive) bool { return o.Key == key }) {
		return errors.New("ide2 is the same, and is there, too")
	}
	if strings.HasPrefix(key, "unused") {
		c.Unused = insert(c.Unused, d)
	} else {
		c.Drives = insert(c.Drives, d)
	}
	return nil
}

// cdrom is what the medium of ide2 was called.
const cdrom = "cdrom"

func oldCDROM(value string) (key, now string) {
	if !strings.Contains(value, "media=") {
		value += ",media=cdrom"
	}
	return "ide2", value
}

// insert keeps drives in the order of their buses and numbers.
func insert(all []Drive, d Drive) []Drive {
	at, _ := slices.BinarySearchFunc(all, d, func(a, b Drive) int {
		busA, nA := splitKey(a.Key)
		busB, nB := splitKey(b.Key)
		return cmp.Or(strings.Compare(busA, busB), cmp.Compare(nA, nB))
	})
	return slices.Insert(all, at, d)
}

func splitKey(key string) (bus string, number int) {
	bus = strings.TrimRight(key, "0123456789")
	number, _ = strconv.Atoi(key[len(bus):]) // digits, of which there are few
	return bus, number
}

// properties takes a value apart: key=value with commas between, where the first may have no
// key, which is then usual.
func properties(value, usual string) (map[string]string, error) {
	all := make(map[string]string)
	for i, part := range strings.Split(value, ",") {
		key, val, ok := strings.Cut(part, "=")
		if !ok {
			key, val = usual, part
		}
		if !ok && (i > 0 || usual == "") {
			return nil, fmt.Errorf("%.80q is no KEY=VALUE", part)
		}
		if key == "volume" {
			key = "file"
		}
		if _, twice := all[key]; twice {
			return nil, fmt.Errorf("%s is given twice", key)
		}
		all[key] = val
	}
	return all, nil
}

func parseDrive(key, value string) (Drive, error) {
	d := Drive{Key: key}
	p, err := properties(value, "file")
	if err != nil {
		return d, err
	}
	d.Volume, d.Format, d.CDROM = p["file"], p["format"], p["media"] == cdrom
	if d.Volume == "" {
		return d, errors.New("it names no volume")
	}
	switch p["backup"] {
	case "0", "no", "off", "false":
		d.NoBackup = true
	}
	return d, nil
}

var uuidForm = regexp.MustCompile(`^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// smbiosUUID is the UUID of smbios1; empty: it has none.
func smbiosUUID(value string) (string, error) {
	p, err := properties(value, "")
	id := strings.ToLower(p["uuid"])
	if err != nil || id == "" {
		return "", err
	}
	if !uuidForm.MatchString(id) {
		return "", fmt.Errorf("%.80q is no UUID", id)
	}
	return id, nil
}
