// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"golang.org/x/time/rate"
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
	// ReadLimit bounds the bytes of guest data read per second; nil: no limit.
	ReadLimit *rate.Limiter
}

// Chain is one disk's image with its backing chain, opened read-only. It is
// safe for concurrent use; Close must come last.
type Chain struct {
	// Layers begin with the active layer; each one's backing file is the next.
	Layers []*Layer

	opts  OpenOptions
	locks imageLocks
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
	DataFile      string     // external data file, absolute; empty: none

	file *File
	data *File // where guest data lies: file, or the external data file
}
