// SPDX-License-Identifier: Apache-2.0

// Package owner finds out whose the dirty bitmaps in an image are, and removes those that
// nobody needs: of repositories that were given up, of other programs, of hosts that are
// gone. Each bitmap in an image slows every write of its guest.
//
// Who an owner is, is known from what can be asked here: the repositories that a person
// names, and libvirt's checkpoints of this host. A bitmap that a checkpoint of one of
// these needs is removed only if a person insists, and so is any while not all of them
// could be read.
package owner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
)

// Kind says what an owner is.
type Kind string

const (
	Checkpoint    Kind = "checkpoint"    // a checkpoint of a repository
	Unfinished    Kind = "unfinished"    // a run that has not ended, or was killed
	Libvirt       Kind = "libvirt"       // a checkpoint that libvirt has
	Forgotten     Kind = "forgotten"     // a checkpoint of a repository that was forgotten
	Virtnbdbackup Kind = "virtnbdbackup" // that program, by the bitmap's name
	Nobody        Kind = "unknown"       // nobody who is known here
)

// Owner is whose a bitmap is.
type Owner struct {
	Kind       Kind   `json:"kind"`
	Domain     string `json:"domain,omitempty"`
	Checkpoint string `json:"checkpoint,omitempty"`
	Repository string `json:"repository,omitempty"` // where it is
}

// Needs reports whether the owner still needs the bitmap.
func (o Owner) Needs() bool {
	return o.Kind == Checkpoint || o.Kind == Unfinished || o.Kind == Libvirt
}

// Claims reports whether anybody claims the bitmap, be it by its name.
func (o Owner) Claims() bool { return o.Needs() || o.Kind == Virtnbdbackup }

func (o Owner) String() string {
	of := " of " + o.Domain
	if o.Repository != "" {
		of += " in " + o.Repository
	}
	switch o.Kind {
	case Checkpoint:
		return "of checkpoint " + o.Checkpoint + of
	case Unfinished:
		return "of a run that has not ended, or was killed: checkpoint " + o.Checkpoint + of
	case Libvirt:
		return "of libvirt's checkpoint " + o.Checkpoint + of
	case Forgotten:
		return "of the forgotten checkpoint " + o.Checkpoint + of
	case Virtnbdbackup:
		return "virtnbdbackup's, by its name"
	}
	return "nobody's known here"
}

// LibvirtFolder is where libvirt keeps what it knows of checkpoints.
const LibvirtFolder = "/var/lib/libvirt/qemu/checkpoint"

// Place is a repository that is asked.
type Place struct {
	Name string
	Repo *chain.Repository
}

// Known are the owners of bitmaps as far as they are known, by the bitmaps' names.
type Known struct {
	of     map[string]Owner
	Doubts []error // what could not be read: who is nobody's may be somebody's
}

// Read asks the repositories, and libvirt's folder, for the owners of bitmaps. An error is
// a repository's that could not be asked; what is damaged is a doubt.
func Read(ctx context.Context, places []Place, libvirtFolder string) (*Known, error) {
	k := &Known{of: make(map[string]Owner)}
	for _, p := range places {
		if err := k.readRepository(ctx, p); err != nil {
			return nil, fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	k.readLibvirt(libvirtFolder)
	return k, nil
}

// Of is whose a bitmap is.
func (k *Known) Of(bitmap string) Owner {
	if o, ok := k.of[bitmap]; ok {
		return o
	}
	if number, ok := strings.CutPrefix(bitmap, "virtnbdbackup."); ok && number != "" && strings.Trim(number, "0123456789") == "" {
		return Owner{Kind: Virtnbdbackup}
	}
	return Owner{Kind: Nobody}
}

// add notes an owner; one that needs the bitmap counts more than one that does not.
func (k *Known) add(bitmap string, o Owner) {
	if old, ok := k.of[bitmap]; bitmap != "" && (!ok || o.Needs() && !old.Needs()) {
		k.of[bitmap] = o
	}
}

func (k *Known) readRepository(ctx context.Context, p Place) error {
	domains, err := p.Repo.Domains(ctx)
	if err != nil {
		return err
	}
	for _, domain := range domains {
		ms, damaged, err := p.Repo.Manifests(ctx, domain)
		if err != nil {
			return err
		}
		k.Doubts = append(k.Doubts, damaged...)
		for _, m := range ms {
			k.addDisks(m, Owner{Kind: Checkpoint, Domain: domain, Checkpoint: m.Checkpoint, Repository: p.Name})
		}
	}
	runs, unusable, err := p.Repo.Runs(ctx)
	if err != nil {
		return err
	}
	k.Doubts = append(k.Doubts, unusable...)
	for _, run := range runs {
		for _, in := range run.Intents {
			if in.Complete {
				continue // its checkpoint has the bitmap
			}
			for _, image := range in.Images {
				k.add(image.Add, Owner{Kind: Unfinished, Domain: in.Domain, Checkpoint: in.Checkpoint, Repository: p.Name})
			}
		}
	}
	for f, err := range p.Repo.AllForgotten(ctx) {
		var left []*chain.Manifest
		switch {
		case err == nil:
			left = f.Manifests()
		case chain.Unusable(err):
			k.Doubts = append(k.Doubts, err)
		default:
			return err
		}
		for _, m := range left {
			k.addDisks(m, Owner{Kind: Forgotten, Domain: m.Domain, Checkpoint: m.Checkpoint, Repository: p.Name})
		}
	}
	return nil
}

func (k *Known) addDisks(m *chain.Manifest, o Owner) {
	for i := range m.Disks {
		k.add(m.Disks[i].Bitmap, o)
		k.add(m.Disks[i].LibvirtBitmap, o)
	}
}

// readLibvirt reads what libvirt knows of checkpoints: a folder for each domain, with a
// domaincheckpoint for each. A host without libvirt has no such folder.
func (k *Known) readLibvirt(folder string) {
	domains, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		k.Doubts = append(k.Doubts, err)
	}
	for _, d := range domains {
		files, err := filepath.Glob(filepath.Join(escapeGlob(folder), escapeGlob(d.Name()), "*.xml"))
		if err == nil && d.IsDir() {
			_, err = os.ReadDir(filepath.Join(folder, d.Name())) // Glob passes over what it may not read
		}
		if err != nil {
			k.Doubts = append(k.Doubts, err)
		}
		for _, file := range files {
			if err := k.readLibvirtCheckpoint(d.Name(), file); err != nil {
				k.Doubts = append(k.Doubts, fmt.Errorf("%s: %w", file, err))
			}
		}
	}
}

func (k *Known) readLibvirtCheckpoint(domain, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	c, err := dom.ParseCheckpoint(data)
	if err != nil {
		return err
	}
	o := Owner{Kind: Libvirt, Domain: domain, Checkpoint: c.Name}
	k.add(c.Name, o) // what a disk's bitmap is named that has no name of its own
	for _, d := range c.Disks {
		k.add(d.Bitmap, o)
	}
	return nil
}

func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}
