// SPDX-License-Identifier: Apache-2.0

package pve

import (
	"crypto/rand"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/google/uuid"
)

// Moved says where the drives of a VM are now, and what it is now.
type Moved struct {
	Drives map[string]Image // by key

	Name        string // empty: as it was
	NewIdentity bool   // another UUID and generation id, other MAC addresses
}

// Image is a file that is a drive.
type Image struct {
	Path   string // absolute
	Format string // raw, qcow2 or vmdk
}

// Adjusted is a configuration that names the files where they are now.
type Adjusted struct {
	Config []byte
	Name   string            // empty: it has none
	UUID   string            // empty: it has none
	MACs   map[string]string // of the configuration as it was → new; nil: none was changed

	// What it still names that two VMs can't use at once, in words for a person.
	OtherDisks, Shared []string
}

// dropped are the keys that say something of the VM where it was.
var dropped = regexp.MustCompile(`^(?:parent|lock|vmstate|snaptime|running.*|unused[0-9]+)$`)

// sharedKey are the keys of what a host has once.
var sharedKey = regexp.MustCompile(`^(?:hostpci|usb|serial|parallel|virtiofs)[0-9]+$|^args$`)

var (
	netKey  = regexp.MustCompile(`^net[0-9]+$`)
	mac     = regexp.MustCompile(`(?i)\b[0-9a-f]{2}(?::[0-9a-f]{2}){5}\b`)
	dnsName = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
)

// Adjust rewrites a configuration so that it names the files where they are now. Of the lines
// of the VM as it is all others stay as they were, comments included; snapshots, changes that
// wait, and volumes that are not attached are left out, since they were not moved.
func Adjust(data []byte, m Moved) (*Adjusted, error) {
	was, err := ParseConfig(data)
	if err != nil {
		return nil, err
	}
	if m.Name != "" && !dnsName.MatchString(m.Name) {
		return nil, fmt.Errorf("%.80q is no name of a VM in Proxmox VE: it has letters and digits, and . - between them", m.Name)
	}
	e := &editor{moved: m, out: &Adjusted{Name: was.Name, UUID: was.UUID}}
	if m.NewIdentity {
		e.out.MACs, e.out.UUID = make(map[string]string), uuid.NewString()
	}
	for _, text := range strings.Split(strings.TrimRight(string(data), "\n"), "\n") {
		if section.MatchString(text) {
			break
		}
		if err := e.line(text); err != nil {
			return nil, err
		}
	}
	e.finish()
	e.out.Config = []byte(strings.Join(e.lines, "\n") + "\n")
	return e.out, e.prove(was)
}

type editor struct {
	moved Moved
	lines []string
	done  map[string]bool // keys that were written
	out   *Adjusted
}

func (e *editor) add(key, value string) {
	if e.done == nil {
		e.done = make(map[string]bool)
	}
	e.done[key] = true
	e.lines = append(e.lines, key+": "+value)
}

// line takes one line of the VM as it is.
func (e *editor) line(text string) error {
	m := line.FindStringSubmatch(text)
	if m == nil || strings.HasPrefix(text, "#") {
		e.lines = append(e.lines, text)
		return nil
	}
	key, value := m[1], m[2]
	if key == cdrom {
		key, value = oldCDROM(value)
	}
	switch {
	case dropped.MatchString(key):
		return nil
	case drive.MatchString(key):
		return e.drive(key, value)
	case key == "name" && e.moved.Name != "":
		value = e.moved.Name
	case e.moved.NewIdentity && key == "smbios1":
		value = e.smbios(value)
	case e.moved.NewIdentity && key == "vmgenid":
		value = uuid.NewString()
	case e.moved.NewIdentity && netKey.MatchString(key):
		value = mac.ReplaceAllStringFunc(value, e.mac)
	case sharedKey.MatchString(key):
		e.out.Shared = append(e.out.Shared, fmt.Sprintf("%s (%.100s)", key, value))
	}
	e.add(key, value)
	return nil
}

// drive names the file in place of the volume.
func (e *editor) drive(key, value string) error {
	image, ok := e.moved.Drives[key]
	if !ok {
		d, err := parseDrive(key, value)
		if err != nil {
			return err
		}
		if d.Volume != "none" && d.Volume != "cdrom" {
			e.out.OtherDisks = append(e.out.OtherDisks, fmt.Sprintf("%s (%.200s)", key, d.Volume))
		}
		e.add(key, value)
		return nil
	}
	if !strings.HasPrefix(image.Path, "/") || strings.ContainsAny(image.Path, ",\n\r") {
		return fmt.Errorf("%s: Proxmox VE's configuration can't name the path %.200q", key, image.Path)
	}
	if !slices.Contains([]string{"raw", "qcow2", "vmdk", "qed"}, image.Format) {
		return fmt.Errorf("%s was restored as %.20s, which no VM of Proxmox VE can have: choose raw or qcow2", key, image.Format)
	}
	parts := []string{image.Path}
	for _, part := range strings.Split(value, ",") {
		k, _, named := strings.Cut(part, "=")
		if named && k != "file" && k != "volume" && k != "format" {
			parts = append(parts, part)
		}
	}
	switch {
	case !strings.HasPrefix(key, "tpmstate"):
		parts = append(parts, "format="+image.Format)
	case image.Format != "raw":
		return fmt.Errorf("%s can only be raw in Proxmox VE, and was restored as %s", key, image.Format)
	}
	e.add(key, strings.Join(parts, ","))
	return nil
}

func (e *editor) smbios(value string) string {
	parts := []string{"uuid=" + e.out.UUID}
	for _, part := range strings.Split(value, ",") {
		if !strings.HasPrefix(part, "uuid=") {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, ",")
}

// mac makes a new address of this host's own kind, the same for the same.
func (e *editor) mac(was string) string {
	if now, ok := e.out.MACs[was]; ok {
		return now
	}
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	b[0] = b[0]&^1 | 2     // of one card, given by an administrator
	now := fmt.Sprintf("%02X:%02X:%02X:%02X:%02X:%02X", b[0], b[1], b[2], b[3], b[4], b[5])
	e.out.MACs[was] = now
	return now
}

// finish adds what the configuration did not have.
func (e *editor) finish() {
	if e.moved.Name != "" {
		e.out.Name = e.moved.Name
		if !e.done["name"] {
			e.add("name", e.moved.Name)
		}
	}
	if e.moved.NewIdentity && !e.done["smbios1"] {
		e.add("smbios1", "uuid="+e.out.UUID)
	}
}

// prove reads the adjusted configuration.
func (e *editor) prove(was *Config) error {
	c, err := ParseConfig(e.out.Config)
	if err != nil {
		return fmt.Errorf("adjust the configuration: %w", err)
	}
	keys := func(all []Drive) (k []string) {
		for _, d := range all {
			k = append(k, d.Key)
		}
		return k
	}
	if c.Name != e.out.Name || c.UUID != e.out.UUID || !slices.Equal(keys(c.Drives), keys(was.Drives)) {
		return fmt.Errorf("adjust the configuration: it became that of another VM (%q, UUID %q)", c.Name, c.UUID)
	}
	for _, key := range slices.Sorted(maps.Keys(e.moved.Drives)) {
		at := slices.IndexFunc(c.Drives, func(d Drive) bool { return d.Key == key })
		if at < 0 || c.Drives[at].Volume != e.moved.Drives[key].Path {
			return fmt.Errorf("adjust the configuration: it has no %s, or not where it is now", key)
		}
	}
	return nil
}
