// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// header returns the header with its extensions. Without a
// backing file it fits into the smallest cluster.
func (c *Creator) header(refTable, refTableClusters, directory, directorySize int64) []byte {
	be := binary.BigEndian
	var autoclear uint64
	if directory != 0 {
		autoclear = createAutoclearBitmaps
	}
	h := make([]byte, 0, createMinClusterSize)
	h = append(h, 'Q', 'F', 'I', 0xfb)
	h = be.AppendUint32(h, 3)
	h = be.AppendUint64(h, 0) // backing file's name: filled in below
	h = be.AppendUint32(h, 0)
	h = be.AppendUint32(h, uint32(c.clusterBits))
	h = be.AppendUint64(h, uint64(c.o.Size))
	h = be.AppendUint32(h, 0) // no encryption
	h = be.AppendUint32(h, uint32(c.l1Entries))
	h = be.AppendUint64(h, uint64(c.l1Offset))
	h = be.AppendUint64(h, uint64(refTable))
	h = be.AppendUint32(h, uint32(refTableClusters))
	h = be.AppendUint32(h, 0) // no snapshots
	h = be.AppendUint64(h, 0)
	h = be.AppendUint64(h, 0) // incompatible features
	h = be.AppendUint64(h, 0) // compatible features
	h = be.AppendUint64(h, autoclear)
	h = be.AppendUint32(h, createRefcountOrder)
	h = be.AppendUint32(h, createHeaderLength)
	h = be.AppendUint64(h, 0) // compression type zlib, padding
	if directory != 0 {
		h = be.AppendUint32(h, createExtBitmaps)
		h = be.AppendUint32(h, 24)
		h = be.AppendUint32(h, 1) // one bitmap
		h = be.AppendUint32(h, 0)
		h = be.AppendUint64(h, uint64(directorySize))
		h = be.AppendUint64(h, uint64(directory))
	}
	if b := c.o.Bitmap; b != nil && len(b.Name) <= maxOrigin {
		h = be.AppendUint32(h, OriginExtension)
		h = be.AppendUint32(h, uint32(len(b.Name)))
		h = append(h, b.Name...)
		h = append(h, make([]byte, -len(b.Name)&7)...)
	}
	if b := c.o.Backing; b != nil {
		h = be.AppendUint32(h, extBackingFormat)
		h = be.AppendUint32(h, uint32(len(b.Format)))
		h = append(h, b.Format...)
		h = append(h, make([]byte, -len(b.Format)&7)...)
	}
	h = be.AppendUint64(h, 0) // the end of the extensions
	if b := c.o.Backing; b != nil {
		be.PutUint64(h[createBackingField:], uint64(len(h)))
		be.PutUint32(h[createBackingField+8:], uint32(len(b.File)))
		h = append(h, b.File...)
	}
	return h
}

// createBackingField is the offset of the backing file's offset and length.
const createBackingField = 8

// checkBacking refuses a backing file that the header cannot name, or that QEMU
// would take for something else than a file.
func (c *Creator) checkBacking() error {
	b := c.o.Backing
	if b == nil {
		return nil
	}
	switch {
	case c.o.Bitmap != nil:
		return errors.New("qcow2: an image with a backing file is not made with a bitmap")
	case b.Format != Raw && b.Format != Qcow2:
		return fmt.Errorf("qcow2: the backing file's format %s is neither raw nor qcow2", quote(string(b.Format)))
	case b.File == "" || len(b.File) > createMaxBackingName:
		return fmt.Errorf("qcow2: a backing file's name has 1 to %d bytes, not %d", createMaxBackingName, len(b.File))
	case strings.IndexByte(b.File, 0) >= 0:
		return errors.New("qcow2: a backing file's name must not contain a NUL byte")
	}
	// As QEMU's path_has_protocol: what stands before a colon is a protocol,
	// unless a slash comes first.
	if i := strings.IndexAny(b.File, ":/"); i >= 0 && b.File[i] == ':' {
		return fmt.Errorf("qcow2: QEMU would not take the backing file's name %s for a path, since it has a colon: begin it with ./", quote(b.File))
	}
	if n := int64(len(c.header(0, 0, 0, 0))); n > c.o.ClusterSize {
		return fmt.Errorf("qcow2: the backing file's name of %d bytes does not fit into the header, a cluster of %d bytes: use a shorter name or larger clusters", len(b.File), c.o.ClusterSize)
	}
	return nil
}

// OriginExtension is the type of a header extension of ours: the name of the
// bitmap that an image was made with. The image was then flat and had the
// content that the bitmap's checkpoint has. QEMU keeps extensions that it does
// not know.
const OriginExtension uint32 = 0x696d6762 // "imgb"

// maxOrigin is the longest name in that extension, bytes: it fits into the
// header of an image with the smallest clusters.
const maxOrigin = 256

// Origin returns the name of the bitmap that the image was made with by a
// restore, or "".
func (h *Header) Origin() string {
	if e := h.Extension(OriginExtension); e != nil && len(e.Data) <= maxOrigin {
		return string(e.Data)
	}
	return ""
}
