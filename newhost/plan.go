// SPDX-License-Identifier: Apache-2.0

package newhost

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/restore"
)

// InTheWayError says why no domain was restored.
type InTheWayError struct {
	Reasons []string // each begins with the domain that it is about, if it is about one
}

func (e *InTheWayError) Error() string {
	return "nothing was restored: " + strings.Join(e.Reasons, "; ")
}

// Plan looks at all that would be restored, and at what is there. The error is an [InTheWayError]
// if something keeps all from being restored; domains that cannot be restored for reasons of their
// own do not: they have failed.
func (h *Host) Plan(ctx context.Context) error {
	names, err := h.repo.Domains(ctx)
	if err != nil {
		return err
	}
	for _, name := range h.req.Except {
		if !slices.Contains(names, name) {
			return usage.Errorf("the repository has no domain %s that could be left out", name)
		}
	}
	for _, name := range names {
		if !slices.Contains(h.req.Except, name) {
			h.Domains = append(h.Domains, &Domain{Name: name, State: Waits})
		}
	}
	if len(h.Domains) == 0 {
		return errors.New("the repository holds no domain that could be restored")
	}
	if err := h.each(ctx, h.find); err != nil {
		return err
	}
	if err := h.tryNames(ctx); err != nil {
		return err
	}
	if err := h.each(ctx, h.prove); err != nil {
		return err
	}
	h.compare()
	if err := h.checkDefinable(ctx); err != nil {
		return err
	}
	return h.refuse()
}

// each does something with each domain, some at once. Its error is the context's.
func (h *Host) each(ctx context.Context, do func(context.Context, *Domain)) error {
	var g errgroup.Group
	g.SetLimit(max(1, h.req.AtOnce))
	for _, d := range h.Domains {
		g.Go(func() error {
			if ctx.Err() == nil {
				do(ctx, d)
			}
			return nil
		})
	}
	_ = g.Wait() // what went wrong is the domain's
	return ctx.Err()
}

// find chooses a domain's checkpoint, and looks at what stands under its name.
func (h *Host) find(ctx context.Context, d *Domain) {
	if err := chain.CheckDomain(d.Name); err != nil {
		d.fail(err) // somebody has put it there: it names no file
		return
	}
	d.Folder = filepath.Join(h.req.Dir, d.Name)
	m, known, err := h.choose(ctx, d.Name)
	switch {
	case errors.Is(err, errNotYet):
		d.State, d.Why = Skipped, err.Error()
	case err != nil:
		d.fail(err)
	}
	d.Manifest = m
	if known != nil {
		h.look(ctx, d, known)
	}
}

// prove proves the maps of a domain's disks, counts what they hold, and finds out what its definition
// will be.
func (h *Host) prove(ctx context.Context, d *Domain) {
	if d.State != Waits {
		return
	}
	var err error
	if d.Targets, err = d.targets(d.Folder, h.req.Format); err != nil {
		d.fail(err)
		return
	}
	o := h.req.Options
	o.Continue = false // of which nothing is known yet
	amounts, err := restore.Prove(ctx, h.repo, d.Manifest, d.Targets, o)
	if err != nil {
		d.fail(err)
		return
	}
	if d.Data = amounts.Data; d.Begun {
		d.Data = 0 // nobody knows how much of it is there
	}
	for i := range d.Manifest.Files {
		d.Data += d.Manifest.Files[i].Size
	}
	h.define(ctx, d)
}

// define reads the domain's definition, and tries to adjust it.
func (h *Host) define(ctx context.Context, d *Domain) {
	f, ok := d.Manifest.File(chain.RoleDomainXML)
	if !ok {
		return
	}
	var text bytes.Buffer
	if err := archive.CopyFile(ctx, h.repo.Store, f.FileRef, &text); err != nil {
		if h.req.Options.SkipDamaged && archive.IsDamage(err) {
			d.WrongDefinition = err
			return
		}
		d.fail(fmt.Errorf("its definition: %w", err))
		return
	}
	is, err := dom.Parse(text.Bytes())
	switch {
	case err != nil:
	case is.Name != d.Name:
		err = fmt.Errorf("it is that of a domain %.80q", is.Name)
	case d.Manifest.DomainUUID != "" && is.UUID != d.Manifest.DomainUUID:
		err = fmt.Errorf("its UUID is %.40q, and the checkpoint's %s", is.UUID, d.Manifest.DomainUUID)
	}
	if err == nil {
		d.Definition, err = dom.Adjust(text.Bytes(), d.moved(d.Folder, d.Targets, restore.FilesIn(d.Manifest, d.Name, d.Folder, d.Targets)))
	}
	if err != nil {
		d.WrongDefinition, d.Definition = fmt.Errorf("its definition stays as it was: %w", err), nil
		return
	}
	d.UUID, d.OwnTPM = d.Definition.UUID, is.OwnTPM()
	d.Definition.XML = nil // of as many as there are domains
}

// compare looks at the domains beside one another.
func (h *Host) compare() {
	type place struct{ host, path string }
	at := make(map[place][]string)
	for _, d := range h.Domains {
		if d.State != Waits {
			continue
		}
		for i := range d.Manifest.Disks {
			disk := &d.Manifest.Disks[i]
			p := place{cmp.Or(d.Manifest.Host.ID, d.Manifest.Host.Name), disk.Source.Path}
			for _, other := range at[p] {
				d.SharesDisks = append(d.SharesDisks, fmt.Sprintf("disk %s was the same file as %s: %s", disk.Name, other, disk.Source.Path))
			}
			at[p] = append(at[p], fmt.Sprintf("disk %s of %s", disk.Name, d.Name))
		}
	}
}

// refuse is the error for what is in the way.
func (h *Host) refuse() error {
	var reasons []string
	for _, d := range h.Domains {
		for _, why := range d.InTheWay {
			reasons = append(reasons, d.Name+": "+why)
		}
	}
	if why := h.space(); why != "" {
		reasons = append(reasons, why)
	}
	if len(reasons) > 0 {
		return &InTheWayError{reasons}
	}
	return nil
}

// space says that there is too little room for all; empty: there is enough, or nobody knows.
func (h *Host) space() string {
	var need int64
	for _, d := range h.Domains {
		if d.State == Waits {
			need += d.Data
		}
	}
	free, err := sys.FreeSpace(h.dir)
	if err != nil || need <= free {
		return ""
	}
	why := fmt.Sprintf("%s has %d bytes free, and up to %d are needed", h.req.Dir, free, need)
	if h.req.IgnoreSpace {
		h.req.note("", why+": some may fail")
		return ""
	}
	return why + " (zeros within data take none: --ignore-space tries)"
}
