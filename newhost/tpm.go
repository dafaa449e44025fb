// SPDX-License-Identifier: Apache-2.0

package newhost

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/recovery"
)

// tpm is where libvirt looks for the state of the domain's TPM; the zero one: it has none there.
func (h *Host) tpm(d *Domain) recovery.TPM {
	if d.UUID == "" || d.OwnTPM || h.req.TPMs == "" {
		return recovery.TPM{}
	}
	return recovery.TPM{Root: h.req.TPMs, UUID: d.UUID}
}

// checkState says what is in the way of a TPM's state that is to be restored.
func (h *Host) checkState(d *Domain) {
	if d.State != Waits {
		return // Define compares
	}
	if err := h.tpm(d).Check(d.Manifest); err != nil {
		d.inTheWay("%v", err)
	}
}

// placeState puts the TPM's state of a domain that was restored where libvirt looks for it. What is there stays.
func (h *Host) placeState(d *Domain) error {
	from := filepath.Join(d.Folder, d.Name+".tpm")
	var names []string
	for _, f := range d.Record.Result.Files {
		if f.Role != chain.RoleTPM || f.Damage != "" {
			continue
		}
		name, ok := strings.CutPrefix(f.Path, from+"/")
		if !ok || !filepath.IsLocal(name) {
			return fmt.Errorf("the record in %s names %q, which is no file of a TPM's state", d.Folder, f.Path)
		}
		names = append(names, name)
	}
	if d.OwnTPM && len(names) > 0 {
		h.req.note(d.Name, fmt.Sprintf("the state of its TPM is in %s, and belongs where its definition says before it is started", from))
	}
	return h.tpm(d).Place(from, names, &h.folders)
}
