// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// Clones are private copies of all files of an image, each as it is at one moment. They have no
// names, and go when they are closed.
type Clones struct {
	image *Image
	files []*os.File // in the order of the layers' files
}

// Copier makes a private copy of a file, or block device, that the file system does not clone.
type Copier func(f *File) (*os.File, error)

// TryClone returns the reason why a file of the image can't be cloned, or nil, as far as that is
// known before. Of one that can't be, copied is asked whether it is copied otherwise.
func (c *Image) TryClone(copied func(f *File) bool) error {
	return c.eachFile(func(f *File) error {
		err := f.cloneable()
		if err == nil {
			err = sys.TryClone(f.f, c.cloneDirs(f)...)
		}
		if err != nil && copied(f) {
			return nil
		}
		return err
	})
}

// Clone clones every file of the image, which should be locked. Those that can't be cloned are
// copied by instead, which may be nil. The image is read as before until [Clones.Use].
func (c *Image) Clone(instead Copier) (*Clones, error) {
	k := &Clones{image: c}
	err := c.eachFile(func(f *File) error {
		to, err := c.cloneOf(f, instead)
		if err != nil {
			return err
		}
		k.files = append(k.files, to)
		is, err := stateOf(to)
		if err == nil && is.Size != f.size {
			err = fmt.Errorf("%s: its copy has %d bytes instead of %d", f.path, is.Size, f.size)
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

func (c *Image) cloneOf(f *File, instead Copier) (*os.File, error) {
	err := f.cloneable()
	if err == nil {
		var to *os.File
		if to, err = sys.CloneFile(f.f, c.cloneDirs(f)...); err == nil {
			return to, nil
		}
	}
	if instead == nil || !f.device && !sys.CannotClone(err) {
		return nil, err
	}
	to, ierr := instead(f)
	if ierr != nil {
		return nil, errors.Join(err, ierr)
	}
	return to, nil
}

func (f *File) cloneable() error {
	if f.device {
		return &UnsupportedError{Path: f.path, What: "the kernel clones no block device"}
	}
	return nil
}

// eachFile calls do with each file of an image that is read natively.
func (c *Image) eachFile(do func(*File) error) error {
	for _, l := range c.Layers {
		if by := l.ReadBy(); by != "" {
			return &UnsupportedError{Path: l.Path, What: "an image that is read by " + by + " can't be cloned"}
		}
		for _, f := range l.Files() {
			if err := do(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// cloneDirs are the folders in which a clone of a file may be made: that of the active image,
// which is written to anyway, or its own.
func (c *Image) cloneDirs(f *File) []string {
	dirs := []string{filepath.Dir(c.Layers[0].Path)}
	if own := filepath.Dir(f.path); own != dirs[0] {
		dirs = append(dirs, own)
	}
	return dirs
}

// Use lets the image be read from the clones from now on, and nothing of it from the files that it
// was opened from: they are unlocked, and closed. What was read out of them counts as before. The
// files' paths, and how they were when they were opened, stay those of the originals.
func (k *Clones) Use() error {
	errs := []error{k.image.Unlock()}
	at := 0
	for _, l := range k.image.Layers {
		for _, f := range l.Files() {
			f.direct.Close()
			f.direct = nil
			errs = append(errs, f.f.Close())
			f.f = k.files[at]
			at++
			var err error
			f.clone, err = stateOf(f.f)
			errs = append(errs, err)
		}
	}
	k.files = nil
	return errors.Join(errs...)
}

// Close drops the clones, unless they are used.
func (k *Clones) Close() error {
	var errs []error
	for _, f := range k.files {
		errs = append(errs, f.Close())
	}
	k.files = nil
	return errors.Join(errs...)
}

// CheckClone returns an error if the file is read from a clone that was written to.
func (f *File) CheckClone() error {
	is, err := stateOf(f.f)
	if err == nil && is != f.clone {
		err = fmt.Errorf("%s: its clone, which is nobody else's, was written to", f.path)
	}
	return err
}
