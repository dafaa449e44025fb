// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// Format is how an image file is to be read.
type Format string

// The formats that are read natively.
const (
	Raw   Format = "raw"
	Qcow2 Format = "qcow2"
)

// OpenOptions say how a chain is opened. The zero value is the strictest.
type OpenOptions struct {
	// AllowDirs are folders, besides the image's own, whose files (at any
	// depth) may be backing and data files.
	AllowDirs []string
	// ReadLimit bounds the bytes of guest data read from files per second; nil:
	// no limit.
	ReadLimit *rate.Limiter
	// Over is what lies below the active layer, topmost first, in place of what its header says. A
	// person says so: these may lie anywhere. What the last of them names lies below that.
	Over []Named
	// Salvage is for an image that can no longer be read everywhere: where its tables
	// can't be, it holds data, as far as [Image.Extents] and the sets know, which
	// [Image.ReadAt] fails for. Tables are read in smaller parts.
	Salvage bool
	// Foreign opens images that this package does not read itself: those of other
	// formats than raw and qcow2, and encrypted ones. nil: they are refused.
	Foreign func(path string, format Format) (Foreign, error)
}

// Named is an image file, and how it is to be read.
type Named struct {
	Path   string
	Format Format
}

// Foreign is an image that another program reads. It has no backing file.
type Foreign interface {
	// Size is the virtual size in bytes.
	Size() int64
	// ReadAt fills p, which lies within the disk.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// Extents covers [start, end) without gaps. Layers do not count.
	Extents(start, end int64) iter.Seq2[Extent, error]
	// How says for people what reads the image.
	How() string
	Close() error
}

// Sourced is a [Foreign] that reads files of its own, all of which are the layer's then: they are
// locked, and whether they change is looked at. It closes them.
type Sourced interface {
	// Sources are its files; the first counts as the image itself.
	Sources() []*File
}

// Image is one disk's image with its backing chain, opened read-only. It is
// safe for concurrent use; Close must come last.
type Image struct {
	// Layers begin with the active layer; each one's backing file is the next.
	// There is at least one.
	Layers []*Layer

	opts          OpenOptions
	locks         imageLocks
	cache         *tableCache
	buffers       buffers
	decompressors decompressors
}

// Layer is one image of a chain.
type Layer struct {
	Path          string     // absolute, symlinks resolved
	Format        Format     // as declared, never probed
	Size          int64      // virtual size in bytes, what QEMU takes it for
	Header        *Header    // nil: raw
	Bitmaps       []*Bitmap  // persistent dirty bitmaps
	BitmapsErr    error      // why no bitmap is usable
	Snapshots     []Snapshot // internal snapshots
	BackingPath   string     // absolute, symlinks resolved; empty: none
	BackingFormat Format     // empty: no backing file
	DataFile      string     // external data file, absolute, symlinks resolved; empty: none

	foreign Foreign // what reads the image, if this package does not; Header is nil then

	index int
	named string // absolute, symlinks as they are: what names in the image are relative to
	file  *File
	data  *File // where guest data lies: file, or the external data file
	cache *tableCache
	cut   bool // the file's end is missing: bitmap metadata lies beyond it

	layout          atomic.Pointer[layout] // nil: the tables are read
	surveying       sync.Mutex             // guards what follows
	surveyed        bool
	refcountsWanted bool
	refcounts       *Refcounts
}

// Open opens the image at path, which is of the given format, and all its
// backing files, read-only.
//
// A block device among them is refused with an [*qemu.InUseError] when it is mounted
// or otherwise claimed; that of the active layer stays claimed until Close, so
// that opening it a second time fails, too. Other errors: [ErrNotQcow2],
// [*DamageError], [*UnsupportedError], [*PolicyError], and those of the
// operating system. Broken bitmaps are no error here, see Layer.BitmapsErr.
func Open(path string, format Format, o OpenOptions) (*Image, error) {
	named, err := sys.Abs(path)
	if err != nil {
		return nil, err
	}
	switch {
	case format == Raw, format == Qcow2:
	case format == "":
		return nil, &PolicyError{Path: named, What: "its format must be given (raw or qcow2); formats are never guessed"}
	case o.Foreign == nil:
		return nil, &UnsupportedError{Path: named, What: fmt.Sprintf("format %s cannot be read; raw and qcow2 can", quote(string(format)))}
	}
	resolved, err := filepath.EvalSymlinks(named)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	rules, err := newPolicy(named, o.AllowDirs)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	c := &Image{opts: o, cache: newTableCache(o.Salvage)}
	if err := c.open(namedFile{path: named, resolved: resolved}, format, rules); err != nil {
		_ = c.Close() // nothing was written; err is what matters
		return nil, err
	}
	return c, nil
}

// locate makes a path absolute, and resolves its symbolic links, too.
func locate(path string) (resolved, named string, err error) {
	if named, err = sys.Abs(path); err != nil {
		return "", "", err
	}
	resolved, err = filepath.EvalSymlinks(named)
	return resolved, named, err
}

// open opens the active layer and then, layer by layer, what lies below.
func (c *Image) open(next namedFile, format Format, rules *policy) error {
	seen := map[sys.ID]string{}
	for {
		l := &Layer{Path: next.resolved, Format: format, index: len(c.Layers), named: next.path, cache: c.cache}
		// The layer belongs to the chain from here on, so that Close finds
		// what it has opened.
		c.Layers = append(c.Layers, l)
		if err := l.open(rules, c.opts.Foreign); err != nil {
			if l.index > 0 {
				return fmt.Errorf("backing file of %s: %w", c.Layers[l.index-1].Path, err)
			}
			return err
		}
		for _, f := range l.Files() {
			key, err := f.ID()
			if err != nil {
				return err
			}
			if before, ok := seen[key]; ok {
				return &PolicyError{Path: l.Path, What: fmt.Sprintf("the backing chain comes back to the same file, which it also names %s", quote(before))}
			}
			seen[key] = f.path
		}
		if i := l.index; i < len(c.opts.Over) {
			if l.Header == nil {
				return &UnsupportedError{Path: l.Path, What: "it is put over another, and only qcow2 images can be"}
			}
			resolved, named, err := locate(c.opts.Over[i].Path)
			if err != nil {
				return fmt.Errorf("backing file of %s: %w", l.Path, err)
			}
			next, format = namedFile{path: named, resolved: resolved}, c.opts.Over[i].Format
			l.BackingPath, l.BackingFormat = resolved, format
			continue
		}
		if l.Header == nil || l.Header.BackingFile == "" {
			return nil
		}
		if len(c.Layers) == maxLayers {
			return &PolicyError{Path: c.Layers[0].Path, What: fmt.Sprintf("its backing chain has more than %d images", maxLayers)}
		}
		var err error
		if format, err = backingFormat(l.Path, l.Header); err != nil {
			return err
		}
		if next, err = rules.resolve(l.named, l.Header.BackingFile, "backing file"); err != nil {
			return err
		}
		l.BackingPath, l.BackingFormat = next.resolved, format
	}
}

// open opens one layer's files and reads its metadata.
func (l *Layer) open(rules *policy, foreign func(string, Format) (Foreign, error)) error {
	var err error
	if l.file, err = openFile(l.Path, l.index == 0); err != nil {
		return err
	}
	l.data = l.file
	if l.Format == Raw {
		if l.file.size > maxVirtualSize {
			return &UnsupportedError{Path: l.Path, What: fmt.Sprintf("a raw image of %d bytes is larger than a disk can be", l.file.size)}
		}
		// QEMU sees whole sectors; the rest of the last one reads as zeros.
		l.Size = (l.file.size + sectorSize - 1) &^ (sectorSize - 1)
		return nil
	}
	if l.Format != Qcow2 {
		return l.openForeign(foreign)
	}
	h, err := parseHeader(l.file, l.file.size, l.Path)
	if err != nil {
		return err
	}
	if h.CryptMethod == cryptLUKS && l.index == 0 && foreign != nil {
		if h.BackingFile != "" || h.Has(IncompatDataFile) {
			return &UnsupportedError{Path: l.Path, What: "an encrypted image with a backing file or a data file cannot be read"}
		}
		return l.openForeign(foreign)
	}
	if h.CryptMethod != cryptNone {
		name := map[uint32]string{cryptAES: "AES", cryptLUKS: "LUKS"}[h.CryptMethod]
		return &UnsupportedError{Path: l.Path, What: "the image is encrypted (" + name + "); encrypted images cannot be read yet"}
	}
	l.Header = h
	l.Size = h.RawSize &^ (sectorSize - 1)
	if err := l.checkL1(); err != nil && !l.cache.salvage {
		return err
	}
	if l.Snapshots, err = readSnapshots(l.file, l.file.size, l.Path, h); err != nil {
		return err
	}
	if err := l.openData(rules); err != nil {
		return err
	}
	l.loadBitmaps() // what is wrong with bitmaps does not keep the guest's data from being read
	return nil
}

// openForeign lets another program read the layer.
func (l *Layer) openForeign(open func(string, Format) (Foreign, error)) error {
	if l.file.device {
		return &UnsupportedError{Path: l.Path, What: fmt.Sprintf("an image of format %s on a block device, or an encrypted one, cannot be read", l.Format)}
	}
	var err error
	if l.foreign, err = open(l.Path, l.Format); err != nil {
		return err
	}
	if l.Size = l.foreign.Size(); l.Size < 0 || l.Size%sectorSize != 0 || l.Size > maxVirtualSize {
		return &UnsupportedError{Path: l.Path, What: fmt.Sprintf("its virtual size of %d bytes is not that of a disk", l.Size)}
	}
	return nil
}

// ReadBy says for people what reads the layer if this package does not; else it is
// empty.
func (l *Layer) ReadBy() string {
	if l.foreign == nil {
		return ""
	}
	return l.foreign.How()
}

// openData opens the external data file, if there is one.
func (l *Layer) openData(rules *policy) error {
	if !l.Header.Has(IncompatDataFile) {
		return nil
	}
	named, err := rules.resolve(l.named, l.Header.DataFile, "data file")
	if err != nil {
		return err
	}
	data, err := openFile(named.resolved, l.index == 0)
	if err != nil {
		return fmt.Errorf("data file of %s: %w", l.Path, err)
	}
	l.data, l.DataFile = data, named.resolved
	return nil
}

// Size is the virtual size of the active layer in bytes, as QEMU takes it:
// whole sectors, rounded down for qcow2 and up for raw files.
func (c *Image) Size() int64 { return c.Layers[0].Size }

// Close releases all locks and closes all files.
func (c *Image) Close() error {
	errs := []error{c.Unlock()}
	for _, l := range c.Layers {
		if l.foreign != nil {
			errs = append(errs, l.foreign.Close())
		}
		if l.file == nil {
			continue
		}
		errs = append(errs, l.file.close())
		if l.data != l.file {
			errs = append(errs, l.data.close())
		}
	}
	return errors.Join(errs...)
}
