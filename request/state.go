// SPDX-License-Identifier: Apache-2.0

package request

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/qemu"
)

// What a domain keeps beside its disks and firmware, and loses if a backup does not
// know it: the state of its TPM, without which a guest asks for its recovery keys, and
// its memory, if it was saved.

// tpm is the state of an emulated TPM.
func (in *XML) tpm() ([]backup.FileRequest, error) {
	for _, t := range in.domain.TPMs {
		if t.Backend != "emulator" {
			in.note("the TPM of %s is not emulated (%s): its state is not archived", in.domain.Name, t.Backend)
			continue
		}
		at := in.from.TPMState
		if at == "" {
			at = t.Path
		}
		switch {
		case at == "" && in.domain.UUID == "":
			return nil, errors.New("where is the state of the domain's TPM? its definition has no UUID: give --tpm-state PATH")
		case at == "":
			at = filepath.Join(TPMs, in.domain.UUID)
		}
		if _, err := os.Stat(at); err != nil && in.from.TPMState != "" {
			return nil, fmt.Errorf("--tpm-state: %w", err)
		}
		path, err := sys.Abs(at)
		return []backup.FileRequest{{Role: chain.RoleTPM, Path: path}}, err
	}
	if in.from.TPMState != "" {
		return nil, fmt.Errorf("--tpm-state: the definition of %s has no emulated TPM", in.domain.Name)
	}
	return nil, nil
}

// saved is the domain's memory, if libvirt has saved it: libvirt would go on from
// there when it starts the domain. Disks that are restored without it, or beside
// another one, are not those that this memory knows.
func (in *XML) saved() ([]backup.FileRequest, error) {
	path, err := sys.Abs(in.from.Saved + "/" + in.domain.Name + ".save")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(in.from.Saved); err != nil && in.from.Saved != Saved {
		return nil, fmt.Errorf("--save-dir: %w", err)
	}
	switch _, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("has libvirt saved the memory of %s? %w", in.domain.Name, err)
	case !in.from.AllowSaved:
		return nil, &qemu.InUseError{Path: path, Why: fmt.Sprintf("libvirt has saved the memory of %s there, and would resume it with other disks after a restore: "+
			"start the domain and shut it down, or drop its memory with 'virsh managedsave-remove %s', or archive it, too, with --allow-managed-save", in.domain.Name, in.domain.Name)}
	}
	return []backup.FileRequest{{Role: chain.RoleManagedSave, Path: path}}, nil
}

// autostart reports whether libvirt starts the domain with its host, which is not in the definition: it keeps a
// link in a folder beside.
func (in *XML) autostart() bool {
	if in.domainPath == "" {
		return false
	}
	_, err := os.Lstat(filepath.Join(filepath.Dir(in.domainPath), "autostart", filepath.Base(in.domainPath)))
	return err == nil
}

// note keeps something that a person should know.
func (in *XML) note(format string, args ...any) {
	in.notes = append(in.notes, fmt.Sprintf(format, args...))
}
