// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Cloner copies what the kernel does not clone: by a snapshot of a logical volume, say. The intent has
// the name of each copy before it is made, so that it goes however the run ends.
type Cloner interface {
	// Clone makes the copy, and opens it. Nobody writes to what is copied meanwhile.
	Clone(ctx context.Context, domain string, k chain.IntentClone) (*os.File, error)
	// Release removes the copy, which is open no more. It may not have been made, or be gone,
	// which is no error.
	Release(ctx context.Context, domain string, k chain.IntentClone) error
}

// nameClones puts the copies that are to be made into the intent.
func (a *attempt) nameClones() {
	a.intent.Clones = nil
	for i, k := range a.commanded {
		k.Name = chain.CloneName(a.intent.UUID, i)
		a.intent.Clones = append(a.intent.Clones, k)
	}
}

// commandedCopy copies files of a disk's image by req.Cloner; nil: there is none.
func (a *attempt) commandedCopy(ctx context.Context, d *disk) qcow2.Copier {
	if a.req.Cloner == nil {
		return nil
	}
	return func(f *qcow2.File) (*os.File, error) {
		for _, k := range a.intent.Clones {
			if k.Disk != d.req.Disk || k.Path != f.Path() {
				continue
			}
			// What a VM has written may still be in the kernel's memory alone, of which a
			// snapshot of a device has nothing.
			if err := f.Sync(); err != nil {
				return nil, err
			}
			to, err := a.req.Cloner.Clone(ctx, a.req.Domain, k)
			if err != nil {
				return nil, err
			}
			if err := looksLike(f, to); err != nil {
				return nil, errors.Join(err, to.Close())
			}
			return to, nil
		}
		return nil, errors.New("that was not to be expected, so that no copy of it is in the intent")
	}
}

// How much of a copy is compared with what it is one of: its beginning, where an image has its
// header, its end, and some pieces in between.
const (
	copyBegin  = 1 << 20
	copyPiece  = 64 << 10
	copyPieces = 32
)

// looksLike returns an error if a copy that somebody else made is not one of a file, as far as
// samples show it: one that was made earlier is not.
func looksLike(f *qcow2.File, to *os.File) error {
	size := f.Opened().Size
	st, err := sys.Stat(to)
	if err != nil {
		return err
	}
	if sys.IdentityOf(&st).Device != f.Device() {
		return fmt.Errorf("%s: of a block device a copy is a block device, and of a file a file", to.Name())
	}
	if id, err := f.ID(); err != nil || id == sys.IdentityOf(&st) {
		return errors.Join(err, fmt.Errorf("%s is no copy of %s, but the same", to.Name(), f.Path()))
	}
	if end, err := to.Seek(0, io.SeekEnd); err != nil || end != size {
		return errors.Join(err, fmt.Errorf("%s has %d bytes, and %s has %d", to.Name(), end, f.Path(), size))
	}
	if err := sameBytes(f, to, 0, min(copyBegin, size)); err != nil {
		return err
	}
	for range copyPieces {
		at := rand.Int64N(max(1, size-copyPiece+1))
		if err := sameBytes(f, to, at, min(copyPiece, size-at)); err != nil {
			return err
		}
	}
	at := max(0, size-copyPiece)
	return sameBytes(f, to, at, size-at)
}

func sameBytes(f *qcow2.File, to *os.File, at, n int64) error {
	want, got := make([]byte, n), make([]byte, n)
	if _, err := f.ReadAt(want, at); err != nil {
		return err
	}
	if _, err := to.ReadAt(got, at); err != nil {
		return err
	}
	if !bytes.Equal(want, got) {
		return fmt.Errorf("%s is no copy of %s as it is now: they differ in the %d bytes from %d on", to.Name(), f.Path(), n, at)
	}
	return nil
}

// dropClones releases the copies that were made by command, and closes the images that are read
// from them. What could not be released stays in the intent.
func (a *attempt) dropClones(ctx context.Context) {
	if len(a.intent.Clones) == 0 {
		return
	}
	if err := a.unlock(); err != nil {
		a.hooks.note("closing the images: %v", err)
	}
	var left []chain.IntentClone
	for _, k := range a.intent.Clones {
		if err := a.req.Cloner.Release(context.WithoutCancel(ctx), a.req.Domain, k); err != nil {
			a.hooks.note("disk %s: the copy %s of %s could not be released, which the next backup tries again: %v", k.Disk, k.Name, k.Path, err)
			left = append(left, k)
		}
	}
	a.intent.Clones = left
}

// releaseClone releases a copy that an earlier run has left.
func (s *settler) releaseClone(ctx context.Context, in *chain.Intent, k chain.IntentClone) error {
	if s.cloner == nil {
		return fmt.Errorf("its copy %s of %s is to be released, and the configuration has no release_command", k.Name, k.Path)
	}
	return s.cloner.Release(ctx, in.Domain, k)
}
