// SPDX-License-Identifier: Apache-2.0

// Package manager knows how domains are called that are VMs of another program's than
// libvirt: by the manager, a colon, and the name that the manager has for them, as lima:web
// or pve:100. The name is the same on the command line, in a configuration and in a
// repository, so that no VM of one manager is taken for one of another. It knows where they
// are kept, too, and lists them.
package manager

import (
	"slices"
	"strings"
)

// The managers.
const (
	Lima = "lima" // https://lima-vm.io
	PVE  = "pve"  // Proxmox VE
)

// All lists the managers.
func All() []string { return []string{Lima, PVE} }

// Split takes a domain's name apart; false: it is no VM of a manager's.
func Split(domain string) (manager, vm string, ok bool) {
	manager, vm, ok = strings.Cut(domain, ":")
	if !ok || !slices.Contains(All(), manager) {
		return "", "", false
	}
	return manager, vm, true
}

// Join is the name of a manager's VM as a domain.
func Join(manager, vm string) string { return manager + ":" + vm }

// Base is what files of a domain are called by: its name, without its manager's.
func Base(domain string) string {
	if _, vm, ok := Split(domain); ok && vm != "" {
		return vm
	}
	return domain
}
