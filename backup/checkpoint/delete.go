// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// Scope says which checkpoints a deletion is about, given one.
type Scope int

const (
	Itself       Scope = iota
	WithChildren       // it and all that follow it, directly or not
	ChildrenOnly       // all that follow it
)

// DeleteRequest says which checkpoints of a domain go.
type DeleteRequest struct {
	Domain     string
	Checkpoint string // by name
	Scope      Scope
	// Paths of images, by disk, that are no longer where the checkpoints found
	// them.
	Paths map[string]string
	// MetadataOnly leaves the images alone.
	MetadataOnly bool
	// Adopted says that bitmaps go, too, that other programs made; else these stay in
	// the images.
	Adopted bool
	// NoLock goes on where a file system has no locks.
	NoLock bool
}

// Deletion is a plan to delete checkpoints: what there is to be done is known, nothing has
// been done. Until it is closed no other run of this program works on the images.
type Deletion struct {
	Domain       string
	MetadataOnly bool
	Checkpoints  []Doomed // in the order in which they go, those that follow others first

	repo   *chain.Repository
	noLock bool
	guards map[string]*qemu.ImageFlock // by the path of the image
	begun  bool
}

// Doomed is one checkpoint that a deletion is about.
type Doomed struct {
	Checkpoint chain.CheckpointRef
	KeepsData  bool     // it is an archive, which stays: only its bitmaps go
	Bitmaps    []Bitmap // none if only definitions go
	Left       []string // names of bitmaps that another program made, and that stay, by disk

	manifest *chain.Manifest
}

// Disks are the names of the checkpoint's disks.
func (d *Doomed) Disks() []string {
	var names []string
	for i := range d.manifest.Disks {
		names = append(names, d.manifest.Disks[i].Name)
	}
	return names
}

// Bitmap is one of a checkpoint's bitmaps and where it is.
type Bitmap struct {
	Disk string
	Path string // of the image, as it is known to the repository
	Name string
	Held bool // the image holds it; otherwise there is nothing to be done
	// Beside is the bitmap of ours beside which it was made for libvirt; empty: it is ours.
	Beside string
}

// Deleted says what became of one checkpoint.
type Deleted struct {
	Checkpoint chain.CheckpointRef
	Bitmaps    []string // images whose bitmap was removed
	Absent     []string // images that held none
	Left       []string // as of [Doomed]
	Kept       bool     // its archive stays
}

// PlanDelete finds out what is to be done to delete checkpoints, and that it can be: the
// repository can be written to, the images are there, no VM has them, and they are this
// host's, or their paths were given. It writes nothing. The plan must be closed.
//
// Errors are a [usage.ErrWrong] of a request that makes no sense, [chain.ErrNoCheckpoint],
// [qemu.InUseError] and [qemu.BusyError] of an image, and failures to read.
func PlanDelete(ctx context.Context, repo *chain.Repository, req DeleteRequest) (*Deletion, error) {
	if err := repo.CheckWritable(); err != nil {
		return nil, err
	}
	chosen, err := req.choose(ctx, repo)
	if err != nil {
		return nil, err
	}
	if err := req.check(chosen); err != nil {
		return nil, err
	}
	p := &Deletion{Domain: req.Domain, MetadataOnly: req.MetadataOnly, repo: repo, noLock: req.NoLock, guards: make(map[string]*qemu.ImageFlock)}
	for _, m := range chosen {
		d := Doomed{Checkpoint: *m.Ref(), KeepsData: m.Kind != chain.KindCheckpoint, manifest: m}
		if !req.MetadataOnly {
			d.Bitmaps, err = p.findBitmaps(ctx, m, req.Paths, req.Adopted)
			d.Left = leaves(m, req.Adopted)
		}
		if err != nil {
			p.Close()
			return nil, fmt.Errorf("checkpoint %s: %w", m.Checkpoint, err)
		}
		p.Checkpoints = append(p.Checkpoints, d)
	}
	return p, nil
}

// choose returns the checkpoints that the request is about, those that follow others
// first. What follows one is known only if every manifest of the domain can be read.
func (req *DeleteRequest) choose(ctx context.Context, repo *chain.Repository) ([]*chain.Manifest, error) {
	m, err := repo.Manifest(ctx, req.Domain, req.Checkpoint)
	if err != nil {
		return nil, err
	}
	if req.Scope == Itself {
		return []*chain.Manifest{m}, nil
	}
	all, damaged, err := repo.Manifests(ctx, req.Domain)
	if err != nil {
		return nil, err
	}
	if len(damaged) > 0 {
		return nil, fmt.Errorf("what follows checkpoint %s is not known: %w", m.Checkpoint, damaged[0])
	}
	chosen := chain.BuildTree(all).Subtree(m.UUID)
	if req.Scope == ChildrenOnly {
		chosen = chosen[:len(chosen)-1] // the last is the checkpoint itself
	}
	return chosen, nil
}

// check refuses what makes no sense whatever the images hold.
func (req *DeleteRequest) check(chosen []*chain.Manifest) error {
	for disk := range req.Paths {
		if !slices.ContainsFunc(chosen, func(m *chain.Manifest) bool { _, ok := m.Disk(disk); return ok }) {
			return usage.Errorf("--disk %s: no checkpoint that is to be deleted has such a disk", disk)
		}
	}
	for _, m := range chosen {
		if req.MetadataOnly && m.Kind != chain.KindCheckpoint {
			return usage.Errorf("checkpoint %s is an archive: its definition cannot be removed without its data (forget removes both)", m.Checkpoint)
		}
	}
	return nil
}

// findBitmaps lists a checkpoint's bitmaps and looks at the images that they are in.
func (p *Deletion) findBitmaps(ctx context.Context, m *chain.Manifest, paths map[string]string, adopted bool) ([]Bitmap, error) {
	self, err := p.repo.Self()
	if err != nil {
		return nil, err
	}
	var all []Bitmap
	for i := range m.Disks {
		d := &m.Disks[i]
		if d.Bitmap == "" || d.Adopted != nil && !adopted {
			continue
		}
		b := Bitmap{Disk: d.Name, Path: d.Source.Path, Name: d.Bitmap}
		if path, given := paths[d.Name]; given {
			b.Path = backup.ImagePath(path)
		} else if !self.Host.Same(m.Host) {
			return nil, fmt.Errorf("it was made on host %s, and its bitmaps are there: --disk %s=PATH,format=qcow2 says where the image is here, %s",
				m.Host.Name, d.Name, withoutImages(m))
		}
		both := []Bitmap{b}
		if d.LibvirtBitmap != "" { // goes first: ours tells that it is that
			both = []Bitmap{{Disk: b.Disk, Path: b.Path, Name: d.LibvirtBitmap, Beside: b.Name}, b}
		}
		for _, b := range both {
			err := p.lookFor(ctx, &b)
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("%w; --disk %s=PATH says where it is now, %s", err, b.Disk, withoutImages(m))
			}
			if err != nil {
				return nil, &chain.DiskError{Disk: d.Name, Err: err}
			}
			all = append(all, b)
		}
	}
	return all, nil
}

// leaves are the names of the bitmaps of a checkpoint that stay, since another program
// made them, disk by disk.
func leaves(m *chain.Manifest, adopted bool) []string {
	var all []string
	for i := range m.Disks {
		if d := &m.Disks[i]; d.Adopted != nil && !adopted {
			all = append(all, d.Bitmap)
		}
	}
	return all
}

// withoutImages says what can be done with a checkpoint whose images can't be had.
func withoutImages(m *chain.Manifest) string {
	if m.Kind == chain.KindCheckpoint {
		return "--metadata removes the definition alone"
	}
	return fmt.Sprintf("and if it is gone, so are its bitmaps: only the archive is left, which forget %s %s removes", m.Domain, m.Checkpoint)
}

// lookFor sees that a bitmap's image is there and that no VM has it, and whether it holds
// the bitmap.
func (p *Deletion) lookFor(ctx context.Context, b *Bitmap) error {
	if err := p.guard(ctx, b); err != nil {
		return err
	}
	err := qcow2.WithTopLayer(b.Path, func(l *qcow2.Layer) error {
		b.Held = l.Bitmap(b.Name) != nil
		return nil
	})
	return err
}

// guard takes an image's flock, once.
func (p *Deletion) guard(ctx context.Context, b *Bitmap) error {
	if p.guards[b.Path] != nil {
		return nil
	}
	g, err := backup.GuardImage(ctx, b.Path, p.noLock)
	if err == nil {
		p.guards[b.Path] = g
	}
	return err
}

// Close gives the images up.
func (p *Deletion) Close() {
	for _, g := range p.guards {
		_ = g.Close() // opened for reading only
	}
	p.guards = nil
}

// Run carries the plan out, once: it takes each checkpoint's bitmaps out of the images,
// and then removes its definition. Every other bitmap records all writes since it was
// made by itself, so that none is lost. The archive of a checkpoint that has data stays.
//
// It returns what was done also when an error ended it. Then the same can be asked for
// again: a definition goes last. note is called with what a person should know.
func (p *Deletion) Run(ctx context.Context, note func(msg string)) ([]Deleted, error) {
	if p.begun || p.guards == nil {
		return nil, errors.New("a deletion is carried out once, while its plan is open")
	}
	p.begun = true
	var all []Deleted
	for _, d := range p.Checkpoints {
		done, err := p.delete(ctx, d, note)
		if err != nil {
			return all, err
		}
		all = append(all, done)
	}
	return all, nil
}

func (p *Deletion) delete(ctx context.Context, d Doomed, note func(string)) (Deleted, error) {
	done := Deleted{Checkpoint: d.Checkpoint, Left: d.Left, Kept: d.KeepsData}
	for _, b := range d.Bitmaps {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		removed, err := p.remove(ctx, b)
		switch {
		case err != nil:
			return done, fmt.Errorf("checkpoint %s: %w", d.Checkpoint.Name, &chain.DiskError{Disk: b.Disk, Err: err})
		case removed:
			done.Bitmaps = append(done.Bitmaps, b.Path)
		case b.Held:
			note(fmt.Sprintf("checkpoint %s, disk %s: the bitmap %s of %s is no longer the one that was made beside %s, and stays",
				d.Checkpoint.Name, b.Disk, b.Name, b.Path, b.Beside))
		default:
			done.Absent = append(done.Absent, b.Path)
			note(fmt.Sprintf("checkpoint %s, disk %s: %s holds no bitmap %s", d.Checkpoint.Name, b.Disk, b.Path, b.Name))
		}
	}
	if d.KeepsData {
		return done, nil
	}
	return done, p.repo.Under(ctx, "delete checkpoint "+d.Checkpoint.Name, func(h *chain.Hold) error {
		return chain.Delete(ctx, h, d.manifest)
	})
}

// remove takes a bitmap out of its image. One that was made for libvirt stays, if another
// has its name by now.
func (p *Deletion) remove(ctx context.Context, b Bitmap) (removed bool, err error) {
	if b.Beside == "" {
		return backup.RemoveBitmap(ctx, p.guards[b.Path], b.Path, b.Name)
	}
	removed, _, err = backup.RemoveLibvirtBitmap(ctx, p.guards[b.Path], b.Path, b.Name, b.Beside)
	return removed, err
}
