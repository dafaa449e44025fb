// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/domain/manager"
	"github.com/imgbackup/imgbackup/domain/pve"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/recovery"
	"github.com/imgbackup/imgbackup/request"
	"github.com/imgbackup/imgbackup/restore"
)

// defines reports whether the definition is restored otherwise than it was.
func (r *restoreRequest) defines() bool { return r.adjust || r.identity || r.name != "" }

// restoreFiles are the checkpoint's files beside the disks. A definition that is
// adjusted is told of.
func restoreFiles(m *chain.Manifest, r restoreRequest, disks []restore.Target, tell func(*dom.Adjusted)) ([]restore.FileTarget, error) {
	files := restore.FilesIn(m, cmp.Or(r.name, manager.Base(m.Domain)), r.output, disks)
	if !r.defines() {
		return files, nil
	}
	at := slices.IndexFunc(files, func(f restore.FileTarget) bool { return chain.Defines(f.File.Role) })
	switch {
	case at < 0:
		return nil, usage.Errorf("--adjust-xml, --new-identity, --name: checkpoint %s holds no definition of the domain", m.Checkpoint)
	case files[at].File.Role == chain.RoleLima:
		return nil, usage.Errorf("--adjust-xml, --new-identity, --name: a lima.yaml names neither its instance nor its disks: the folder that it is in does (docs/vms.md)")
	case files[at].File.Role == chain.RolePVE:
		files[at].Adjust = adjustPVE(r, disks, tell)
		return files, nil
	}
	moved := dom.Moved{Disks: make(map[string]dom.Image), Name: r.name, NewIdentity: r.identity}
	for _, d := range disks {
		was, _ := m.Disk(d.Disk)
		moved.Disks[d.Disk] = dom.Image{Path: filepath.Join(r.output, filepath.Base(d.Path)), Format: string(d.Format), Decrypted: was.Decrypted()}
	}
	for i := range files {
		path := filepath.Join(r.output, filepath.Base(files[i].Path))
		switch files[i].File.Role {
		case chain.RoleNVRAM:
			moved.NVRAM = path
		case chain.RoleLoader:
			moved.Loader = path
		}
	}
	files[at].Adjust = func(data []byte) ([]byte, error) {
		a, err := dom.Adjust(data, moved)
		if err != nil {
			return nil, err
		}
		tell(a)
		return a.XML, nil
	}
	return files, nil
}

// adjustPVE is what adjusts a configuration of Proxmox VE's.
func adjustPVE(r restoreRequest, disks []restore.Target, tell func(*dom.Adjusted)) func([]byte) ([]byte, error) {
	moved := pve.Moved{Drives: make(map[string]pve.Image), Name: r.name, NewIdentity: r.identity}
	for _, d := range disks {
		moved.Drives[d.Disk] = pve.Image{Path: filepath.Join(r.output, filepath.Base(d.Path)), Format: string(d.Format)}
	}
	return func(data []byte) ([]byte, error) {
		a, err := pve.Adjust(data, moved)
		if err != nil {
			return nil, usage.Wrap(err)
		}
		tell(&dom.Adjusted{XML: a.Config, Name: a.Name, UUID: a.UUID, MACs: a.MACs, OtherDisks: a.OtherDisks, Shared: a.Shared})
		return a.Config, nil
	}
}

// noteAdjusted tells what the restored definition still has in common with the domain
// that was backed up, and what it does not say.
func (a *app) noteAdjusted(r restoreRequest, d *dom.Adjusted, result *restore.Result) {
	shared := d.OtherDisks
	if r.identity || r.name != "" {
		shared = append(shared, d.Shared...)
	}
	has := make(map[string]bool)
	for _, f := range result.Files {
		has[f.Role] = true
		if chain.Defines(f.Role) && len(shared) > 0 {
			a.note(fmt.Sprintf("%s still names what the original uses: %s. Take out what both must not use at once", f.Path, strings.Join(shared, ", ")))
		}
	}
	if len(d.Decrypted) > 0 {
		a.note(recovery.Decrypted(d.Decrypted))
	}
	if r.name != "" && !r.identity {
		a.note("it has the UUID and the MAC addresses of the original, beside which it must not run: --new-identity gives it others")
	}
	if has[chain.RoleDomainXML] && has[chain.RoleTPM] && d.UUID != "" && (!r.all.define || tpmsOf(r.all.connect) == "") {
		a.note(fmt.Sprintf("libvirt looks for the state of the TPM in %s: what was restored belongs there before the domain is started", filepath.Join(request.TPMs, d.UUID)))
	}
}

// whoseDefinition says what a definition that was adjusted is now.
func whoseDefinition(d *dom.Adjusted) string {
	if d == nil || d.MACs == nil {
		return ""
	}
	text := ": " + d.Name
	if d.UUID != "" {
		text += ", UUID " + d.UUID
	}
	if n := len(d.MACs); n > 0 {
		text += fmt.Sprintf(", %s", count(n, "new MAC"))
	}
	return text
}

// adjustedJSON is an adjusted definition as restore --json shows it.
type adjustedJSON struct {
	Name   string            `json:"name"`
	UUID   string            `json:"uuid,omitempty"`
	MACs   map[string]string `json:"macs,omitempty"`
	Shared []string          `json:"shared"`
}

func viewAdjusted(d *dom.Adjusted) *adjustedJSON {
	if d == nil {
		return nil
	}
	return &adjustedJSON{Name: d.Name, UUID: d.UUID, MACs: d.MACs, Shared: append(append([]string{}, d.OtherDisks...), d.Shared...)}
}
