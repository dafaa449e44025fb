// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/imgbackup/imgbackup/domain/lima"
	"github.com/imgbackup/imgbackup/domain/pve"
)

// Places say where managers keep their VMs.
type Places struct {
	Root string // stands for / where not empty: in tests
	Lima string // Lima's folder; empty: LIMA_HOME, or ~/.lima
}

// LimaHome is the folder of Lima's instances.
func (p Places) LimaHome() string {
	if home := cmp.Or(p.Lima, os.Getenv("LIMA_HOME")); home != "" {
		return home
	}
	user, err := os.UserHomeDir()
	if err != nil {
		return "/nonexistent/.lima" // of who has no home
	}
	return filepath.Join(user, ".lima")
}

// PVE is the folder of the configurations of this node's VMs.
func (p Places) PVE() string { return p.Root + "/etc/pve/qemu-server" }

// Domains lists the VMs of a manager on this host, sorted by the manager's names, as domains. A
// host without the manager has none.
func (p Places) Domains(manager string) ([]string, error) {
	dir := p.LimaHome()
	if manager == PVE {
		dir = p.PVE()
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the VMs of %s: %w", manager, err)
	}
	var all []string
	for _, e := range entries {
		if name, ok := p.vm(manager, dir, e.Name()); ok {
			all = append(all, Join(manager, name))
		}
	}
	return all, nil
}

// vm is the VM that an entry of a manager's folder is.
func (p Places) vm(manager, dir, entry string) (name string, ok bool) {
	if manager == PVE {
		id, ok := strings.CutSuffix(entry, ".conf")
		return id, ok && pve.CheckVMID(id) == nil
	}
	_, err := os.Lstat(filepath.Join(dir, entry, lima.YAML))
	return entry, lima.CheckName(entry) == nil && !errors.Is(err, fs.ErrNotExist) // what can't be looked at is told by its backup
}
