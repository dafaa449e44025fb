// SPDX-License-Identifier: Apache-2.0

package newhost

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/virsh"
)

// Libvirt is what domains are defined in.
type Libvirt interface {
	Domains(ctx context.Context) ([]virsh.Domain, error)
	// Definition is that of an inactive domain, or what it is started by the next time.
	Definition(ctx context.Context, uuid string) ([]byte, error)
	// Define takes a definition in, which is in a file.
	Define(ctx context.Context, file string) error
	// Autostart has it start a domain with the host.
	Autostart(ctx context.Context, uuid string) error
}

// ErrNoDefinition says that a domain cannot be defined, since its checkpoint has no definition.
var ErrNoDefinition = errors.New("its checkpoint has no definition, as it was made without --domain-xml: it cannot be defined")

// checkDefinable looks at what libvirt has: domains that are in the way.
func (h *Host) checkDefinable(ctx context.Context) error {
	if h.req.Libvirt == nil {
		return nil
	}
	there, err := h.req.Libvirt.Domains(ctx)
	if err != nil {
		return fmt.Errorf("nothing was restored: %w", err)
	}
	wanted := make(map[string]string) // UUID → domain
	for _, d := range h.Domains {
		if d.State != Waits && d.State != Stands || h.req.Recover && (d.Begun || d.State == Stands) {
			continue // of what is begun its recovery knows
		}
		if err := d.readIdentity(); err != nil {
			d.inTheWay("%v", err)
			continue
		}
		if other := wanted[d.UUID]; other != "" && d.UUID != "" {
			d.inTheWay("it has the UUID of %s, and libvirt takes only one of them: leave one out with --except", other)
		}
		wanted[d.UUID] = d.Name
		h.checkState(d)
		if err := h.meet(ctx, d, there); err != nil {
			return err
		}
	}
	return nil
}

// readIdentity finds out the UUID that the domain has in its definition.
func (d *Domain) readIdentity() error {
	if d.State == Waits {
		if d.Definition != nil {
			d.UUID = d.Definition.UUID
		}
		return nil
	}
	path := d.definitionFile()
	if path == "" {
		return nil
	}
	text, err := sys.ReadBounded(path, chain.MaxDomainXML)
	if err != nil {
		return err
	}
	is, err := dom.Parse(text)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	d.UUID, d.OwnTPM = is.UUID, is.OwnTPM()
	return nil
}

// definitionFile is where the definition lies that was restored; empty: there is none.
func (d *Domain) definitionFile() string {
	if d.Record == nil {
		return ""
	}
	for _, f := range d.Record.Result.Files {
		if f.Role == chain.RoleDomainXML && f.Damage == "" && f.Adjusted {
			return filepath.Join(d.Folder, filepath.Base(f.Path))
		}
	}
	return ""
}

// meet compares a domain with those that libvirt has. One that is this one itself, which an earlier run
// has defined, is none in the way.
func (h *Host) meet(ctx context.Context, d *Domain, there []virsh.Domain) error {
	for _, t := range there {
		if t.Name != d.Name && (t.UUID != d.UUID || d.UUID == "") {
			continue
		}
		is, err := h.isOurs(ctx, d, t)
		switch {
		case err != nil:
			return err
		case is && d.State != Waits:
			d.Defined, d.libvirtID = true, t.UUID
		case is && !t.Active: // its folder is gone, and will be there again
		case t.Active:
			d.inTheWay("libvirt runs a domain %s (UUID %s)", t.Name, t.UUID)
		default:
			d.inTheWay("libvirt has a domain %s already (UUID %s), whose disks are others", t.Name, t.UUID)
		}
	}
	return nil
}

// isOurs reports whether a domain that libvirt has is the one that was restored: with its name, and its disks in
// its folder.
func (h *Host) isOurs(ctx context.Context, d *Domain, t virsh.Domain) (bool, error) {
	if t.Name != d.Name || d.UUID != "" && t.UUID != d.UUID {
		return false, nil
	}
	text, err := h.req.Libvirt.Definition(ctx, t.UUID)
	if err != nil {
		return false, err
	}
	is, err := dom.Parse(text)
	if err != nil {
		return false, nil // it is not one of these
	}
	for disk, path := range d.diskFiles() {
		if has, ok := is.Disk(disk); !ok || has.Path != path {
			return false, nil
		}
	}
	return true, nil
}

// diskFiles are where its disks are, or are to be.
func (d *Domain) diskFiles() map[string]string {
	all := make(map[string]string)
	if d.Record == nil {
		for _, t := range d.Targets {
			all[t.Disk] = t.Path
		}
		return all
	}
	for _, disk := range d.Record.Result.Disks {
		all[disk.Disk] = filepath.Join(d.Folder, filepath.Base(disk.Path))
	}
	return all
}

// Define defines a domain that was restored, unless it is, and has libvirt start it with this host, if it did so with
// the old one.
func (h *Host) Define(ctx context.Context, d *Domain) error {
	if err := h.handOver(ctx, d); err != nil || d.Record.Defined {
		return err
	}
	if d.Record.Autostart {
		if err := h.req.Libvirt.Autostart(ctx, d.libvirtID); err != nil {
			return err
		}
	}
	// From here on it is the user's: what is changed there stays.
	d.Record.Defined = true
	return d.Record.write(d.Folder)
}

// handOver defines a domain that was restored, unless it is.
func (h *Host) handOver(ctx context.Context, d *Domain) error {
	if d.Defined {
		return nil
	}
	path := d.definitionFile()
	switch {
	case path == "" && d.WrongDefinition != nil:
		return d.WrongDefinition
	case path == "":
		return ErrNoDefinition
	}
	// Somebody may have defined one meanwhile, which would be replaced.
	if err := h.meetAgain(ctx, d); err != nil || d.Defined {
		return err
	}
	if err := h.placeState(d); err != nil {
		return fmt.Errorf("the state of its TPM: %w", err)
	}
	h.step("defining")
	if err := h.req.Libvirt.Define(ctx, path); err != nil {
		return err
	}
	if err := h.meetAgain(ctx, d); err != nil {
		return err
	}
	if !d.Defined {
		return fmt.Errorf("libvirt took the definition in %s, and has no domain %s with these disks", path, d.Name)
	}
	h.step("defined")
	return nil
}

// meetAgain is meet with what libvirt has now; what is in the way is an error.
func (h *Host) meetAgain(ctx context.Context, d *Domain) error {
	there, err := h.req.Libvirt.Domains(ctx)
	if err != nil {
		return err
	}
	d.InTheWay = nil
	if err := h.meet(ctx, d, there); err != nil {
		return err
	}
	if len(d.InTheWay) > 0 {
		return errors.New(strings.Join(d.InTheWay, "; "))
	}
	return nil
}
