// SPDX-License-Identifier: Apache-2.0

package qcow2

// Bits of the incompatible, compatible and autoclear features that are known.
const (
	IncompatDirty       uint64 = 1 << 0 // refcounts may be wrong (lazy refcounts, not closed)
	IncompatCorrupt     uint64 = 1 << 1 // QEMU found the metadata corrupt
	IncompatDataFile    uint64 = 1 << 2 // guest data lies in an external data file
	IncompatCompression uint64 = 1 << 3 // the header names a compression type
	IncompatExtendedL2  uint64 = 1 << 4 // L2 entries have subclusters

	AutoclearBitmaps uint64 = 1 << 0 // the bitmaps are consistent with the data
	AutoclearDataRaw uint64 = 1 << 1 // the external data file can be read as a raw image
)

// Compression is how compressed clusters are compressed.
type Compression uint8

// The compression types.
const (
	Zlib Compression = 0 // raw deflate
	Zstd Compression = 1
)

// Header is a qcow2 header as it was read and found in order.
type Header struct {
	Version         int    // 2 or 3
	ClusterBits     uint   // 9..21
	RawSize         int64  // the virtual size as recorded, bytes
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
	Length          int64 // of the header, bytes
	Compression     Compression
	Extensions      []Extension // in file order, unknown ones included
}

// Extension is a header extension.
type Extension struct {
	Type   uint32
	Offset int64  // of its data in the file
	Data   []byte // without padding
}

// ClusterSize is in bytes.
func (h *Header) ClusterSize() int64 { return 1 << h.ClusterBits }

// Has tells whether all of the incompatible feature bits are set.
func (h *Header) Has(bits uint64) bool { return h.Incompatible&bits == bits }

// Extension returns the first header extension of a type, or nil.
func (h *Header) Extension(typ uint32) *Extension {
	for i := range h.Extensions {
		if h.Extensions[i].Type == typ {
			return &h.Extensions[i]
		}
	}
	return nil
}
