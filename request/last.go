// SPDX-License-Identifier: Apache-2.0

package request

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
)

// DefinitionsDir is where libvirt keeps the definitions of domains.
const DefinitionsDir = "/etc/libvirt/qemu"

// Last are the disks of a domain of which a request names none: those of its newest
// checkpoint from this host, by the definition that it was made with if that file is
// still there; or else the definition that libvirt keeps.
type Last struct {
	Definition string               // a file; empty: Known are the disks
	Disks      []string             // values of --disk beside it
	Known      []backup.DiskRequest // as the checkpoint recorded them
	Files      []string             // values of --with-file
	Notes      []string             // what is taken, for a person
}

// FindLast finds the disks of a domain that none were named of. definitions is the
// folder in which libvirt keeps its domains. Without a repository (nil) only that
// folder is asked.
func FindLast(ctx context.Context, repo *chain.Repository, domain, definitions string) (*Last, error) {
	if err := chain.CheckDomain(domain); err != nil {
		return nil, usage.Wrap(err)
	}
	never := "no repository is named"
	if repo != nil {
		m, err := newestHere(ctx, repo, domain)
		switch {
		case err != nil:
			return nil, err
		case m != nil:
			return lastOf(m)
		}
		never = "this host has made no checkpoint of " + domain
	}
	file := filepath.Join(definitions, domain+".xml")
	switch _, err := os.Stat(file); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, usage.Errorf("no disk is named: give --disk %s, or --domain-xml FILE (%s, and there is no %s)",
			DiskForm, never, file)
	case err != nil:
		return nil, fmt.Errorf("no disk is named, and the definition that libvirt keeps can't be looked at: %w", err)
	}
	return &Last{Definition: file, Notes: []string{"no disk is named: taking the definition " + file}}, nil
}

// newestHere is the domain's newest checkpoint that this host has made of its images; nil: none.
func newestHere(ctx context.Context, repo *chain.Repository, domain string) (*chain.Manifest, error) {
	self, err := repo.Self()
	if err != nil {
		return nil, err
	}
	ms, damaged, err := repo.Manifests(ctx, domain)
	if err != nil {
		return nil, err
	}
	// One that can't be read may be the one that is looked for.
	if err := errors.Join(damaged...); err != nil {
		return nil, fmt.Errorf("no disk is named, and the newest checkpoint cannot be determined: %w", err)
	}
	var here []*chain.Manifest
	for _, m := range ms {
		if m.Host.Is(self.Host) && m.Imported == nil {
			here = append(here, m)
		}
	}
	return chain.Newest(here), nil
}

// lastOf are the disks of a checkpoint.
func lastOf(m *chain.Manifest) (*Last, error) {
	l := &Last{}
	if f, ok := m.File(chain.RoleDomainXML); ok && f.Path != "" {
		_, err := os.Stat(f.Path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("no disk is named, and the definition of checkpoint %s can't be looked at: %w", m.Checkpoint, err)
		}
		if err == nil {
			l.Definition = f.Path
			for _, left := range m.LeftOut {
				if left.Code == chain.LeftOutByRequest {
					l.Disks = append(l.Disks, strings.ReplaceAll(left.Disk, ",", ",,")+",backup=no")
				}
			}
			l.note("no disk is named: taking the definition %s, as checkpoint %s did", f.Path, m.Checkpoint)
			return l, l.files(m)
		}
	}
	var names []string
	for i := range m.Disks {
		d := &m.Disks[i]
		l.Known = append(l.Known, backup.DiskRequest{Disk: d.Name, Path: d.Source.Path, Format: qcow2.Format(d.Source.Format)})
		names = append(names, fmt.Sprintf("%s (%s)", d.Name, d.Source.Path))
	}
	l.note("no disk is named: taking those of checkpoint %s: %s", m.Checkpoint, strings.Join(names, ", "))
	if slices.ContainsFunc(m.Files, func(f chain.File) bool { return f.Role != chain.RoleFile }) {
		l.note("the domain's definition is no longer where it was, and is left out with what belongs to it (--domain-xml FILE takes it)")
	}
	return l, l.files(m)
}

func (l *Last) note(format string, args ...any) {
	l.Notes = append(l.Notes, fmt.Sprintf(format, args...))
}
