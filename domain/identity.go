// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"

	"github.com/google/uuid"
)

// identity is what makes a domain another one than that whose definition it was made
// from. libvirt demands that the system's UUID in sysinfo is the domain's.
type identity struct {
	uuid string
	macs map[string]string // as the definition has them → new
	used map[string]bool   // canonical
}

func newIdentity() (*identity, error) {
	id, err := uuid.NewRandom()
	return &identity{uuid: id.String(), macs: make(map[string]string), used: make(map[string]bool)}, err
}

// identity gives the domain another identity.
func (e *editor) identity(root *element) error {
	id := e.made
	e.text(root.kid("uuid"), id.uuid)
	if n := root.kid("genid"); n != nil && n.inner < n.close {
		other, err := uuid.NewRandom()
		if err != nil {
			return err
		}
		e.text(n, other.String())
	}
	if system := root.path("sysinfo", "system"); system != nil {
		for _, entry := range system.kids {
			if entry.name == "entry" && attrOf(entry, "name") == "uuid" {
				e.text(entry, id.uuid)
			}
		}
	}
	devices := root.kid("devices")
	if devices == nil {
		return nil
	}
	return errors.Join(id.know(devices), e.interfaces(devices))
}

// know keeps the addresses that there are from being made anew.
func (id *identity) know(devices *element) error {
	for _, n := range devices.kids {
		if mac := n.kid("mac"); n.name == "interface" && mac != nil {
			addr, err := net.ParseMAC(attrOf(mac, "address"))
			if err != nil {
				return err
			}
			id.used[addr.String()] = true
		}
	}
	return nil
}

// interfaces gives the network interfaces other addresses, and other ids on their
// switches. Two that share an address, as a pair for failover does, still do.
func (e *editor) interfaces(devices *element) error {
	for _, n := range devices.kids {
		if n.name != "interface" {
			continue
		}
		if mac := n.kid("mac"); mac != nil {
			fresh, err := e.made.mac(attrOf(mac, "address"))
			if err != nil {
				return err
			}
			e.tag(mac, "address", fresh)
		}
		for _, key := range []string{"interfaceid", "instanceid"} {
			p := n.path("virtualport", "parameters")
			if p == nil || attrOf(p, key) == "" {
				continue
			}
			other, err := uuid.NewRandom()
			if err != nil {
				return err
			}
			e.tag(p, key, other.String())
		}
	}
	return nil
}

// mac is the new address in the place of an old one, of the same maker.
func (id *identity) mac(old string) (string, error) {
	addr, err := net.ParseMAC(old)
	if err != nil || len(addr) != 6 {
		return "", fmt.Errorf("%q is no MAC address", clip(old))
	}
	key := addr.String()
	for id.macs[key] == "" {
		fresh := append(net.HardwareAddr{}, addr...)
		if _, err := rand.Read(fresh[3:]); err != nil {
			return "", err
		}
		if text := fresh.String(); !id.used[text] {
			id.used[text], id.macs[key] = true, text
		}
	}
	return id.macs[key], nil
}

// holds proves that a definition has this identity and nothing of the old one.
func (id *identity) holds(data []byte) error {
	d, err := Parse(data)
	if err != nil {
		return err
	}
	if d.UUID != "" && d.UUID != id.uuid {
		return errors.New("the UUID cannot be replaced")
	}
	root, err := elements(data)
	if err != nil {
		return err
	}
	left := &identity{used: make(map[string]bool)}
	if devices := root.kid("devices"); devices != nil {
		err = left.know(devices)
	}
	for old := range id.macs {
		if left.used[old] {
			return fmt.Errorf("the MAC address %s cannot be replaced", old)
		}
	}
	return err
}
