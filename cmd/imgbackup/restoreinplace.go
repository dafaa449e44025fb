// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"slices"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/request"
	"github.com/imgbackup/imgbackup/restore"
)

// targetsInPlace are where the disks were, if they may go there.
func (a *app) targetsInPlace(ctx context.Context, repo *chain.Repository, m *chain.Manifest, r *restoreRequest) ([]restore.Target, error) {
	self, err := repo.Self()
	if err != nil {
		return nil, err
	}
	// One that is damaged has no say: a restore must not depend on others than its own.
	ms, _, err := repo.Manifests(ctx, m.Domain)
	if err != nil {
		return nil, err
	}
	p := request.InPlace{
		Host: self.Host, Definitions: cmp.Or(a.definitions, request.DefinitionsDir), Force: r.options.Force,
		Newest: chain.Newest(ms),
	}
	targets, notes, err := p.Targets(m, r.disks)
	a.noteAll(notes)
	r.options.Force = true // of what was looked at
	return targets, err
}

// untouchedJSON is a file that belongs to the state of the disks, and was not restored.
type untouchedJSON struct {
	Role string `json:"role"`
	Name string `json:"name,omitempty"` // of one that a person has named
	Path string `json:"path"`           // where it was
}

// untouchedBy are those of a checkpoint of which the disks alone were restored.
func untouchedBy(m *chain.Manifest) []untouchedJSON {
	var all []untouchedJSON
	for i := range m.Files {
		f := &m.Files[i]
		switch f.Role {
		case chain.RoleNVRAM, chain.RoleTPM, chain.RoleManagedSave:
			if !slices.ContainsFunc(all, func(u untouchedJSON) bool { return u.Role == f.Role }) {
				all = append(all, untouchedJSON{Role: f.Role, Path: f.Path})
			}
		case chain.RoleFile:
			all = append(all, untouchedJSON{f.Role, f.Name, f.Path})
		}
	}
	return all
}
