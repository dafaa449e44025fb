// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"

	"github.com/imgbackup/imgbackup/bitmapstore"
)

// ErrBitmapInUse is wrapped by the Problem of a bitmap whose in_use flag is set: a writer has the
// image open right now, or it ended without closing it. What such a bitmap says must not be
// believed.
var ErrBitmapInUse = errors.New("the bitmap is marked in use: a writer has the image open, or ended without closing it")

// ErrBitmapsDead is wrapped by Layer.BitmapsErr when the image has bitmaps that a program without
// support for them has made invalid, as it should: it cleared the autoclear bit, or made the image
// one of version 2.
var ErrBitmapsDead = errors.New("the image's bitmaps were invalidated")

// Bitmap is a persistent dirty bitmap of one qcow2 layer, as its directory entry describes it.
type Bitmap struct {
	Name        string // raw bytes, 1..1023
	Granularity int64  // bytes of the virtual disk per bit, a power of two; 0: the entry's value is not one QEMU can have
	Enabled     bool   // recording: flag "auto"
	InUse       bool   // flag "in_use"
	Problem     error  // why the bits cannot be used; nil: they can be read
	StoredBytes int64  // bytes of the table and data clusters that it occupies in the file; 0 when the table was not read

	src          bitmapSource
	refused      string // what QEMU does not accept of an entry that can be read all the same; "" is nothing
	tableOffset  int64
	tableEntries int64
}

// bitmapSource is what the bitmap reader needs to know of a qcow2 image.
type bitmapSource struct {
	file        io.ReaderAt
	path        string // for messages
	fileSize    int64  // bytes
	clusterSize int64  // bytes
	size        int64  // virtual size, bytes
	version     int    // 2 or 3
	autoclear   uint64 // autoclear_features
	extension   []byte // data of header extension 0x23852875, without padding
	hasExt      bool   // the extension is there
}

// damage is a *DamageError at an offset of the file.
func (s *bitmapSource) damage(offset int64, what string) error {
	return &DamageError{Path: s.path, Offset: offset, What: what}
}

// loadBitmaps fills in the bitmaps of a layer whose header, size and file are known.
func (l *Layer) loadBitmaps() {
	if l.Header == nil {
		return
	}
	s := bitmapSource{
		file:        l.file,
		path:        l.Path,
		fileSize:    l.file.size,
		clusterSize: l.Header.ClusterSize(),
		size:        l.Size,
		version:     l.Header.Version,
		autoclear:   l.Header.Autoclear,
	}
	for _, e := range l.Header.Extensions {
		if e.Type != bitmapsExtension {
			continue
		}
		if s.hasExt {
			l.BitmapsErr = s.damage(e.Offset, "there are two bitmaps extensions")
			return
		}
		s.hasExt, s.extension = true, e.Data
	}
	l.Bitmaps, l.BitmapsErr = readBitmaps(s)
	l.cut = !errors.Is(l.BitmapsErr, ErrBitmapsDead) && s.cut(l.Bitmaps)
}

// cut reports whether the directory of valid bitmaps, or the table of one that is
// not in use, lies beyond the end of the file. QEMU has written both to their
// ends, so the file has lost its own.
func (s *bitmapSource) cut(bitmaps []*Bitmap) bool {
	if len(s.extension) == bitmapsExtensionSize &&
		!s.holds(binary.BigEndian.Uint64(s.extension[16:]), binary.BigEndian.Uint64(s.extension[8:])) {
		return true
	}
	return slices.ContainsFunc(bitmaps, func(b *Bitmap) bool {
		return !b.InUse && b.tableOffset > 0 && b.tableEntries > 0 && !s.holds(uint64(b.tableOffset), uint64(b.tableEntries)*8)
	})
}

// Runs is the set of dirty bytes, clipped to the layer's virtual size. Each iteration reads the
// file anew, in bounded memory, at a cost that follows the part of the bitmap that has dirty bits.
// A bitmap with a Problem ends with it; what proves wrong only now is a *DamageError.
func (b *Bitmap) Runs() bitmapstore.Runs {
	if b.Problem != nil {
		return bitmapstore.Fail(b.Problem)
	}
	return bitmapstore.FromBits(b.Granularity, b.src.size, b.pages())
}

// DirtyBytes is the number of bytes that the bitmap says were written.
func (b *Bitmap) DirtyBytes() (int64, error) { return b.Runs().Bytes() }

// Bitmap returns the bitmap of that name, or nil.
func (l *Layer) Bitmap(name string) *Bitmap {
	for _, b := range l.Bitmaps {
		if b.Name == name {
			return b
		}
	}
	return nil
}
