// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// NoBitmapError says that no bitmap can be added to an image without harm, although the
// image can be read.
type NoBitmapError struct {
	Path string
	Why  string // one phrase, with what to do where there is something
	Err  error  // what the kernel answered; may be nil
}

func (e *NoBitmapError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: no bitmap can be added: %s: %v", e.Path, e.Why, e.Err)
	}
	return fmt.Sprintf("%s: no bitmap can be added: %s", e.Path, e.Why)
}

func (e *NoBitmapError) Unwrap() error { return e.Err }

func (l *Layer) noBitmap(why string, err error) error {
	return &NoBitmapError{Path: l.Path, Why: why, Err: err}
}

// CheckAddBitmap returns the reason why a bitmap can't be added to the image without
// harm, a [*NoBitmapError], or nil. QEMU refuses to open an image whose bitmap metadata
// it does not like, and others it would repair, or make worse, on the way.
func (l *Layer) CheckAddBitmap() error {
	no := func(why string) error { return l.noBitmap(why, nil) }
	h := l.Header
	switch {
	case h == nil:
		return no("a raw image has no bitmaps")
	case h.Version < 3:
		return no("a qcow2 image of version 2 has no bitmaps (qemu-img amend -o compat=1.1 makes it version 3)")
	case h.Has(IncompatCorrupt):
		return no("the image is marked corrupt")
	case h.Has(IncompatDirty):
		return no("the image was not closed and its refcounts may be wrong (qemu-img check -r all mends them)")
	case l.Size == 0:
		return no("the disk is empty")
	case len(l.Bitmaps) >= maxBitmaps:
		return no("it has as many bitmaps as an image can have")
	}
	for _, e := range h.Extensions {
		if e.Type == bitmapsExtension && len(e.Data) != bitmapsExtensionSize {
			return no("its bitmaps extension is damaged")
		}
	}
	if l.BitmapsErr != nil && !errors.Is(l.BitmapsErr, ErrBitmapsDead) {
		return no("its bitmap metadata is damaged: " + l.BitmapsErr.Error())
	}
	for _, b := range l.Bitmaps {
		switch {
		case b.refused != "":
			return no(fmt.Sprintf("QEMU refuses bitmap %s: %s", quote(b.Name), b.refused))
		case b.Problem != nil && !errors.Is(b.Problem, ErrBitmapInUse):
			return no(b.Problem.Error())
		}
	}
	return nil
}

// CheckWritable returns the reason why this process may not write to the layer's file, a
// [*NoBitmapError], or nil.
func (l *Layer) CheckWritable() error {
	if err := sys.Restart(func() error {
		return unix.Faccessat(unix.AT_FDCWD, l.Path, unix.W_OK, unix.AT_EACCESS)
	}); err != nil {
		return l.noBitmap("the image cannot be written to", err)
	}
	return nil
}

// BitmapGranularity is the granularity that a new bitmap of the layer gets unless another is asked
// for: QEMU's default, the cluster size but at least 4 KiB and at most 64 KiB, or more where a
// bitmap would be larger than QEMU allows.
func (l *Layer) BitmapGranularity() int64 {
	g := int64(64 << 10)
	if l.Header != nil {
		g = min(max(l.Header.ClusterSize(), 4<<10), g)
	}
	for g < 1<<maxGranularityBits && ceilDiv(ceilDiv(l.Size, g), 8) > maxBitmapData {
		g *= 2
	}
	return g
}

// CheckRoom returns the reason why a QEMU that opens the image for writing and adds a
// bitmap of that granularity (bytes) may run out of room, a [*NoBitmapError], or nil: it
// stores all bitmaps anew before it frees the old ones, and when that fails it loses
// them. For a moment as much as it may need is allocated beside the image. Granularity 0
// is for who adds none.
func (l *Layer) CheckRoom(granularity int64) error {
	return l.checkRoom(granularity, sys.CheckGrowth)
}

func (l *Layer) checkRoom(granularity int64, check func(f *os.File, n int64) error) error {
	if l.Header == nil {
		return nil
	}
	need := spaceFor(l, granularity)
	if l.file.device {
		check = func(*os.File, int64) error { return l.checkDevice(need) }
	}
	err := check(l.file.f, need)
	switch {
	case err != nil && granularity > 0:
		return l.noBitmap("there may be too little room to store the bitmaps of the image anew", err)
	case err != nil:
		return fmt.Errorf("%s: there may be too little room to store its bitmaps anew: %w", l.Path, err)
	}
	return nil
}

// spaceFor is twice what the bitmaps occupy, and 16 clusters, and what a new bitmap needs.
func spaceFor(l *Layer, granularity int64) int64 {
	cluster := l.Header.ClusterSize()
	var stored int64
	for _, b := range l.Bitmaps {
		// Table, data and, generously, the entry in the directory.
		stored += b.StoredBytes + bitmapEntryHead + maxBitmapName + 1
	}
	if granularity > 0 {
		stored += ceilDiv(bitmapTableEntries(l.Size, granularity, cluster)*8, cluster) * cluster
	}
	need := 2*stored + 16*cluster
	// Refcounts of the new clusters, at most 64 bits each, and a larger refcount table where they
	// need one.
	return need + 2*ceilDiv(need, cluster)*8 + 2*l.Header.RefcountBytes
}

// checkDevice returns ENOSPC unless a block device has n bytes behind the image.
func (l *Layer) checkDevice(n int64) error {
	end, err := l.imageEnd()
	if err != nil {
		return err
	}
	if have := l.file.size - end; have < n {
		return fmt.Errorf("%d bytes are free on the device, %d are needed: %w", have, n, unix.ENOSPC)
	}
	return nil
}

// imageEnd is the end of the last cluster that the refcounts call used. A qcow2 image on a block
// device can grow from there to the end of the device.
func (l *Layer) imageEnd() (int64, error) {
	h := l.Header
	table := make([]byte, min(h.RefcountBytes, maxRefTableBytes))
	if err := l.file.readMeta(table, h.RefcountOffset, "the refcount table"); err != nil {
		return 0, err
	}
	block := make([]byte, h.ClusterSize())
	perBlock := h.ClusterSize() * 8 >> h.RefcountOrder
	for i := int64(len(table)/8) - 1; i >= 0; i-- {
		offset := binary.BigEndian.Uint64(table[i*8:]) &^ 0x1ff
		if offset == 0 {
			continue
		}
		if offset > uint64(l.file.size) {
			return 0, l.file.beyond(l.file.size, int64(len(block)), "a refcount block")
		}
		if err := l.file.readMeta(block, int64(offset), "a refcount block"); err != nil {
			return 0, err
		}
		for at := int64(len(block)) - 1; at >= 0; at-- {
			if block[at] != 0 {
				last := (at*8 + int64(bits.Len8(block[at])) - 1) >> h.RefcountOrder
				return (i*perBlock + last + 1) * h.ClusterSize(), nil
			}
		}
	}
	return 0, nil
}
