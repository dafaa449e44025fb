// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/request"
)

// libvirtDefinitions is where libvirt keeps the definitions of domains, outside of
// tests.
const libvirtDefinitions = "/etc/libvirt/qemu"

// takeLast lets a backup that says nothing of disks take those of the domain's newest
// checkpoint from this host, by the definition that it was made with if that file is
// still there; or else the definition that libvirt keeps. What it takes it notes.
func (a *app) takeLast(ctx context.Context, b *request.Backup) error {
	repo, err := a.openRepo(ctx)
	if err != nil {
		return err
	}
	m, err := newestHere(ctx, repo, b.Domain)
	switch {
	case err != nil:
		return err
	case m != nil:
		return a.takeRecorded(b, m)
	}
	file := filepath.Join(a.definitionsDir(), b.Domain+".xml")
	switch _, err := os.Stat(file); {
	case errors.Is(err, fs.ErrNotExist):
		return usage.Errorf("no disk is named: give --disk %s, or --domain-xml FILE (this host has made no checkpoint of %s, and there is no %s)",
			request.DiskForm, b.Domain, file)
	case err != nil:
		return fmt.Errorf("no disk is named, and the definition that libvirt keeps can't be looked at: %w", err)
	}
	b.XML.Domain = file
	a.note("no disk is named: taking the definition " + file)
	return nil
}

// newestHere is the domain's newest checkpoint that this host has made; nil: none.
func newestHere(ctx context.Context, repo *chain.Repository, domain string) (*chain.Manifest, error) {
	if err := checkNames(domain, ""); err != nil {
		return nil, err
	}
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
		return nil, fmt.Errorf("no disk is named, and the newest checkpoint cannot be told: %w", err)
	}
	var here []*chain.Manifest
	for _, m := range ms {
		if m.Host.Is(self.Host) {
			here = append(here, m)
		}
	}
	return chain.Newest(here), nil
}

// takeRecorded takes the disks of a checkpoint.
func (a *app) takeRecorded(b *request.Backup, m *chain.Manifest) error {
	if f, ok := m.File(chain.RoleDomainXML); ok && f.Path != "" {
		_, err := os.Stat(f.Path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("no disk is named, and the definition of checkpoint %s can't be looked at: %w", m.Checkpoint, err)
		}
		if err == nil {
			b.XML.Domain = f.Path
			for _, l := range m.LeftOut {
				if l.Code == chain.LeftOutByRequest {
					b.Disks = append(b.Disks, strings.ReplaceAll(l.Disk, ",", ",,")+",backup=no")
				}
			}
			a.note(fmt.Sprintf("no disk is named: taking the definition %s, as checkpoint %s did", f.Path, m.Checkpoint))
			return nil
		}
	}
	var names []string
	for i := range m.Disks {
		d := &m.Disks[i]
		b.Known = append(b.Known, backup.DiskRequest{Disk: d.Name, Path: d.Source.Path, Format: qcow2.Format(d.Source.Format)})
		names = append(names, fmt.Sprintf("%s (%s)", d.Name, d.Source.Path))
	}
	a.note(fmt.Sprintf("no disk is named: taking those of checkpoint %s: %s", m.Checkpoint, strings.Join(names, ", ")))
	if len(m.Files) > 0 {
		a.note("the domain's definition, and what belongs to it, is not archived again: it is no more where it was (--domain-xml FILE takes it)")
	}
	return nil
}

func (a *app) definitionsDir() string {
	if a.definitions != "" {
		return a.definitions
	}
	return libvirtDefinitions
}
