// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Bits of the incompatible and autoclear features that are known.
const (
	IncompatDirty       uint64 = 1 << 0 // refcounts may be wrong (lazy refcounts, not closed)
	IncompatCorrupt     uint64 = 1 << 1 // QEMU found the metadata corrupt
	IncompatDataFile    uint64 = 1 << 2 // guest data lies in an external data file
	IncompatCompression uint64 = 1 << 3 // the header names a compression type
	IncompatExtendedL2  uint64 = 1 << 4 // L2 entries have subclusters

	AutoclearBitmaps uint64 = 1 << 0 // the bitmaps are consistent with the data
	AutoclearDataRaw uint64 = 1 << 1 // the external data file can be read as a raw image

	knownIncompat = IncompatDirty | IncompatCorrupt | IncompatDataFile | IncompatCompression | IncompatExtendedL2
)

// Limits of the format as QEMU enforces them (block/qcow2.h).
const (
	minClusterBits      = 9
	maxClusterBits      = 21
	minSubclusterBits   = 14 // the least cluster bits with which subclusters are whole sectors
	maxL1Bytes          = 32 << 20
	maxRefTableBytes    = 8 << 20
	maxBackingName      = 1023
	maxSnapshots        = 65536
	maxSnapshotsBytes   = 64 << 20
	maxSnapshotExtra    = 1024
	maxBackingFormat    = 15
	maxRefcountOrder    = 6
	maxVirtualSize      = 1 << 62
	headerLengthV2      = 72
	headerLengthV3      = 104
	offsetCompression   = 104 // of the compression type in the header
	headerRead          = 112
	sectorSize          = 512
	cryptNone           = 0
	cryptAES            = 1
	cryptLUKS           = 2
	qcow2Magic          = "QFI\xfb"
	featureNameBytes    = 48
	featureIncompatible = 0
)

// ErrNotQcow2 says that a file that was declared qcow2 does not begin as one.
var ErrNotQcow2 = errors.New("not a qcow2 image (its first bytes are not those of the format); a raw one is declared by format=raw or --format raw")

// Compression is how compressed clusters are compressed.
type Compression uint8

// The compression types.
const (
	Zlib Compression = 0 // raw deflate
	Zstd Compression = 1
)

func (c Compression) String() string {
	switch c {
	case Zlib:
		return "zlib"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("unknown-%d", uint8(c))
}

// Header is a qcow2 header that was found in order. Offsets and sizes are
// bytes.
type Header struct {
	Version         int    // 2 or 3
	ClusterBits     uint   // 9..21
	RawSize         int64  // the virtual size as recorded; QEMU rounds it down to whole sectors
	BackingFile     string // as recorded; empty: none
	BackingFormat   string // as recorded; empty: not recorded
	DataFile        string // as recorded; empty: not recorded
	CryptMethod     uint32 // 0: not encrypted
	L1Offset        int64
	L1Entries       int64
	RefcountOffset  int64
	RefcountBytes   int64 // of the refcount table
	RefcountOrder   uint  // refcounts have 1<<RefcountOrder bits
	SnapshotCount   int
	SnapshotsOffset int64
	Incompatible    uint64
	Compatible      uint64
	Autoclear       uint64
	Length          int64 // of the header
	Compression     Compression
	Extensions      []Extension // in file order, unknown ones included
}

// ClusterSize is in bytes.
func (h *Header) ClusterSize() int64 { return 1 << h.ClusterBits }

// Has reports whether all of the given incompatible feature bits are set.
func (h *Header) Has(bits uint64) bool { return h.Incompatible&bits == bits }

// l2EntryBytes is the size of an entry of an L2 table.
func (h *Header) l2EntryBytes() int64 {
	if h.Has(IncompatExtendedL2) {
		return 16
	}
	return 8
}

// l2Span is the number of guest bytes that one L2 table maps.
func (h *Header) l2Span() int64 { return h.mappedBy(h.ClusterSize()) }

// mappedBy is the number of guest bytes that so many bytes of an L2 table map. It is told by shifts
// alone: of a shift behind a division Go 1.26.8 makes wrong code for ppc64le.
func (h *Header) mappedBy(table int64) int64 {
	if h.Has(IncompatExtendedL2) {
		return table >> 4 << h.ClusterBits
	}
	return table >> 3 << h.ClusterBits
}

// headerReader carries what the parts of parseHeader share.
type headerReader struct {
	path string
	size int64 // of the file
	h    *Header
}

func (r *headerReader) damage(off int64, format string, args ...any) error {
	return &DamageError{Path: r.path, Offset: off, What: fmt.Sprintf(format, args...)}
}

// parseHeader reads and checks the header of a qcow2 file of size bytes, and
// its extensions. It fails with [ErrNotQcow2], a [*DamageError], or an
// [*UnsupportedError] for features that are unknown; encryption is left for the
// caller to refuse.
func parseHeader(f io.ReaderAt, size int64, path string) (*Header, error) {
	r := &headerReader{path: path, size: size, h: &Header{}}
	var b [headerRead]byte
	n, err := f.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: read the header: %w", path, err)
	}
	if n < len(qcow2Magic) || string(b[:len(qcow2Magic)]) != qcow2Magic {
		return nil, fmt.Errorf("%s: %w", path, ErrNotQcow2)
	}
	if n < headerLengthV2 {
		return nil, r.damage(0, "the file ends inside the header")
	}
	if err := r.fixed(b[:n]); err != nil {
		return nil, err
	}
	nameOffset := int64(binary.BigEndian.Uint64(b[8:]))
	nameLength := int64(binary.BigEndian.Uint32(b[16:]))
	end := r.h.ClusterSize()
	if nameOffset != 0 {
		end = nameOffset
	}
	if err := r.extensions(f, end); err != nil {
		return nil, err
	}
	if err := r.features(); err != nil {
		return nil, err
	}
	if err := r.tables(); err != nil {
		return nil, err
	}
	if err := r.backingName(f, nameOffset, nameLength); err != nil {
		return nil, err
	}
	return r.h, nil
}

// fixed reads the fields at fixed places, of the n bytes that are there, and
// checks those that do not depend on extensions.
func (r *headerReader) fixed(b []byte) error {
	be, h := binary.BigEndian, r.h
	version := be.Uint32(b[4:])
	if version != 2 && version != 3 {
		return &UnsupportedError{Path: r.path, What: fmt.Sprintf("qcow2 version %d is unknown; versions 2 and 3 can be read", version)}
	}
	h.Version = int(version)
	bits := be.Uint32(b[20:])
	if bits < minClusterBits || bits > maxClusterBits {
		return r.damage(20, "cluster bits are %d; %d to %d are possible", bits, minClusterBits, maxClusterBits)
	}
	h.ClusterBits = uint(bits)
	virtual := be.Uint64(b[24:])
	if virtual > maxVirtualSize {
		return r.damage(24, "the virtual size is %d bytes, more than can be", virtual)
	}
	h.RawSize = int64(virtual)
	h.CryptMethod = be.Uint32(b[32:])
	if h.CryptMethod > cryptLUKS {
		return r.damage(32, "encryption method %d is unknown", h.CryptMethod)
	}
	h.L1Entries = int64(be.Uint32(b[36:]))
	h.RefcountBytes = int64(be.Uint32(b[56:])) << h.ClusterBits
	h.RefcountOrder = 4
	h.Length = headerLengthV2

	// Offsets are unsigned in the file; negative ones fall out of the checks
	// of tables.
	h.L1Offset = int64(be.Uint64(b[40:]))
	h.RefcountOffset = int64(be.Uint64(b[48:]))
	h.SnapshotsOffset = int64(be.Uint64(b[64:]))
	snapshots := be.Uint32(b[60:])
	if snapshots > maxSnapshots {
		return r.damage(60, "%d internal snapshots are more than the %d that can be", snapshots, maxSnapshots)
	}
	h.SnapshotCount = int(snapshots)
	if h.Version == 2 {
		return nil
	}

	if len(b) < headerLengthV3 {
		return r.damage(0, "the file ends inside the header")
	}
	h.Incompatible, h.Compatible, h.Autoclear = be.Uint64(b[72:]), be.Uint64(b[80:]), be.Uint64(b[88:])
	order := be.Uint32(b[96:])
	if order > maxRefcountOrder {
		return r.damage(96, "refcount order is %d; at most %d is possible", order, maxRefcountOrder)
	}
	h.RefcountOrder = uint(order)
	h.Length = int64(be.Uint32(b[100:]))
	if h.Length < headerLengthV3 || h.Length > h.ClusterSize() {
		return r.damage(100, "the header is %d bytes long; %d to %d (one cluster) are possible", h.Length, headerLengthV3, h.ClusterSize())
	}
	if h.Length > offsetCompression {
		if len(b) <= offsetCompression {
			return r.damage(0, "the file ends inside the header")
		}
		h.Compression = Compression(b[offsetCompression])
	}
	return nil
}

// features refuses what is unknown or contradicts itself.
func (r *headerReader) features() error {
	h := r.h
	if unknown := h.Incompatible &^ knownIncompat; unknown != 0 {
		return &UnsupportedError{Path: r.path, What: "the image needs features that are unknown here: " + r.featureNames(unknown)}
	}
	if h.Compression > Zstd {
		return &UnsupportedError{Path: r.path, What: fmt.Sprintf("compression type %d is unknown", h.Compression)}
	}
	if set := h.Has(IncompatCompression); set != (h.Compression != Zlib) {
		return r.damage(offsetCompression, "compression type %s and the feature bit for it (%t) contradict each other", h.Compression, set)
	}
	if h.Has(IncompatExtendedL2) && h.ClusterBits < minSubclusterBits {
		return r.damage(20, "subclusters need clusters of at least %d bytes, not %d", 1<<minSubclusterBits, h.ClusterSize())
	}
	if h.Has(IncompatDataFile) && h.DataFile == "" {
		return r.damage(72, "guest data lies in an external data file whose name is not recorded")
	}
	if h.Autoclear&AutoclearDataRaw != 0 && !h.Has(IncompatDataFile) {
		return r.damage(88, "the feature bit for a raw external data file is set, but there is no such file")
	}
	return nil
}

// tables checks where the header's tables are, as QEMU does when it opens an
// image. Whether the file is long enough for a table is checked where that is
// read.
func (r *headerReader) tables() error {
	h := r.h
	if err := r.table(40, "L1 table", h.L1Offset, h.L1Entries*8, maxL1Bytes); err != nil {
		return err
	}
	if need := r.h.neededL1(); h.L1Entries < need {
		return r.damage(36, "the L1 table has %d entries, but the virtual size of %d bytes needs %d", h.L1Entries, h.RawSize, need)
	}
	if h.RefcountBytes == 0 {
		return r.damage(56, "there is no refcount table")
	}
	if err := r.table(48, "refcount table", h.RefcountOffset, h.RefcountBytes, maxRefTableBytes); err != nil {
		return err
	}
	if h.SnapshotCount == 0 {
		return nil
	}
	return r.table(64, "snapshot table", h.SnapshotsOffset, 0, maxSnapshotsBytes)
}

// neededL1 is the number of entries of the L1 table that map the disk.
func (h *Header) neededL1() int64 {
	span := h.l2Span()
	need := h.RawSize / span
	if h.RawSize%span != 0 {
		need++
	}
	return need
}

func (r *headerReader) table(field int64, what string, off, n, most int64) error {
	switch {
	case n > most:
		return r.damage(field, "the %s has %d bytes, more than the %d that can be", what, n, most)
	case off < 0 || off > 1<<62 || off%r.h.ClusterSize() != 0:
		return r.damage(field, "the %s is at offset %d, which is not at the beginning of a cluster", what, uint64(off))
	}
	return nil
}

func (r *headerReader) backingName(f io.ReaderAt, off, n int64) error {
	if off == 0 {
		return nil
	}
	// That it begins within the header's cluster was checked with the
	// extensions, which end there.
	if n > maxBackingName || n > r.h.ClusterSize()-off {
		return r.damage(16, "the backing file's name has %d bytes, more than can be", n)
	}
	if n > r.size-off {
		return r.damage(off, "the file ends inside the backing file's name")
	}
	name := make([]byte, n)
	if _, err := f.ReadAt(name, off); err != nil && (n > 0 || !errors.Is(err, io.EOF)) {
		return fmt.Errorf("%s: read the backing file's name: %w", r.path, err)
	}
	if bytes.IndexByte(name, 0) >= 0 {
		return r.damage(off, "the backing file's name contains a NUL byte")
	}
	r.h.BackingFile = string(name)
	return nil
}
