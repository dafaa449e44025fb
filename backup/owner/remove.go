// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// Request says which bitmaps of an image go.
type Request struct {
	Image     string   // a qcow2 image; its backing files are left alone
	Names     []string // of bitmaps
	Unclaimed bool     // all that nobody claims who is known, instead
	Force     bool     // also what is needed
	NoLock    bool     // go on where the file system has no locks
}

// Bitmap is one that is in the image.
type Bitmap struct {
	Name  string
	Owner Owner
}

// Removal is a plan to remove bitmaps: what there is to be done is known, and nothing has
// been done. Until it is closed no other run of this program works on the image.
type Removal struct {
	Image  string
	Remove []Bitmap
	Keep   []Bitmap

	guard *qemu.ImageFlock
	begun bool
}

// NeededError says that a bitmap is needed, or may be.
type NeededError struct {
	Bitmap Bitmap
	Doubt  error // why nobody knows; nil: it is needed
}

func (e *NeededError) Error() string {
	if e.Doubt != nil {
		return fmt.Sprintf("bitmap %s stays, since whose it is can't be known: %v", e.Bitmap.Name, e.Doubt)
	}
	return fmt.Sprintf("bitmap %s stays: it is %s", e.Bitmap.Name, e.Bitmap.Owner)
}

// Plan finds out what is to be removed, and that it can be: no program has the image open
// for writing, it is sound, and nobody needs the bitmaps. It writes nothing. known is
// asked when the image is locked, so that what is committed before is seen. The plan must
// be closed.
//
// Errors are [*NeededError], [qemu.InUseError], [qemu.BusyError], those of known, and
// failures to read.
func Plan(ctx context.Context, req Request, known func(context.Context) (*Known, error)) (*Removal, error) {
	p := &Removal{Image: backup.ImagePath(req.Image)}
	var err error
	if p.guard, err = backup.GuardImage(ctx, p.Image, req.NoLock); err != nil {
		return nil, err
	}
	if err = p.choose(ctx, req, known); err == nil {
		err = p.checkImage(ctx)
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// choose decides which bitmaps go.
func (p *Removal) choose(ctx context.Context, req Request, known func(context.Context) (*Known, error)) error {
	var there []string
	err := qcow2.WithTopLayer(p.Image, func(l *qcow2.Layer) error {
		if l.BitmapsErr != nil {
			return fmt.Errorf("%s: no bitmap of it can be removed: %w", p.Image, l.BitmapsErr)
		}
		for _, b := range l.Bitmaps {
			there = append(there, b.Name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range req.Names {
		if !slices.Contains(there, name) {
			return fmt.Errorf("%s holds no bitmap %s%s", p.Image, name, listed(there))
		}
	}
	k, err := known(ctx)
	if err != nil {
		return err
	}
	for _, name := range there {
		b := Bitmap{Name: name, Owner: k.Of(name)}
		if goes := slices.Contains(req.Names, name) || req.Unclaimed && !b.Owner.Claims(); !goes {
			p.Keep = append(p.Keep, b)
			continue
		}
		if err := b.check(k.Doubts); err != nil && !req.Force {
			return err
		}
		p.Remove = append(p.Remove, b)
	}
	return nil
}

// check returns why a bitmap must not be removed, or nil.
func (b Bitmap) check(doubts []error) error {
	switch {
	case b.Owner.Needs():
		return &NeededError{Bitmap: b}
	case len(doubts) > 0:
		return &NeededError{Bitmap: b, Doubt: errors.Join(doubts...)}
	}
	return nil
}

func listed(names []string) string {
	if len(names) == 0 {
		return " (it holds none)"
	}
	return " (there is " + strings.Join(names, ", ") + ")"
}

// checkImage looks for what would make QEMU write over guest data: as before a bitmap is
// added.
func (p *Removal) checkImage(ctx context.Context) error {
	if len(p.Remove) == 0 {
		return nil
	}
	return qcow2.WithTopLayer(p.Image, func(l *qcow2.Layer) error {
		if err := l.CheckWritable(); err != nil {
			return err
		}
		if err := backup.CheckRefcounts(ctx, l); err != nil {
			return fmt.Errorf("%s: %w", p.Image, err)
		}
		return nil
	})
}

// Run removes the bitmaps, one after the other, once. It returns the names of those that
// are gone also when an error ended it: the same can be asked for again.
func (p *Removal) Run(ctx context.Context) (gone []string, err error) {
	if p.begun || p.guard == nil {
		return nil, errors.New("bitmaps are removed once, while their plan is open")
	}
	p.begun = true
	for _, b := range p.Remove {
		if err := ctx.Err(); err != nil {
			return gone, err
		}
		removed, err := backup.RemoveBitmap(ctx, p.guard, p.Image, b.Name)
		if err != nil {
			return gone, err
		}
		if removed {
			gone = append(gone, b.Name)
		}
	}
	return gone, nil
}

// Close gives the image up.
func (p *Removal) Close() {
	if p.guard != nil {
		_ = p.guard.Close() // opened for reading only
		p.guard = nil
	}
}
