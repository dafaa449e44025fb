// SPDX-License-Identifier: Apache-2.0

package known

import (
	"bytes"
	"encoding/binary"
)

// Digest is the SHA-256 of a chunk, a pack or an index.
type Digest = [32]byte

// Pack names a pack.
type Pack struct {
	Name   Digest
	Length int64 // bytes
}

// Frame is where a chunk's frame lies in a pack, bytes.
type Frame struct {
	Chunk  Digest
	Offset uint32
	Length uint32
}

// Place is where a chunk is said to be.
type Place struct {
	Pack   Pack
	Offset uint32
	Length uint32
}

// A record is the beginning of a chunk's digest, or all of it, and three numbers of four
// bytes, little endian: the pack's, the offset and the length.
const (
	tableKey  = 8
	spillKey  = len(Digest{})
	placeLen  = 3 * 4
	blockSize = 4096 // at most, bytes
)

// record is a record as it is held while it is sorted.
type record struct {
	key    uint64 // of the digest's beginning, so that it sorts as the bytes do
	pack   uint32
	offset uint32
	length uint32
}

func keyOf(chunk *Digest) uint64 { return binary.BigEndian.Uint64(chunk[:]) }

func (r *record) put(b []byte) {
	binary.BigEndian.PutUint64(b, r.key)
	putPlace(b[tableKey:], r.pack, r.offset, r.length)
}

func putPlace(b []byte, pack, offset, length uint32) {
	binary.LittleEndian.PutUint32(b, pack)
	binary.LittleEndian.PutUint32(b[4:], offset)
	binary.LittleEndian.PutUint32(b[8:], length)
}

func getPlace(b []byte) (pack, offset, length uint32) {
	return binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:])
}

// search returns the first of the records of size bytes in block whose key is not below
// that of the chunk.
func search(block []byte, size, key int, chunk *Digest) int {
	low, high := 0, len(block)/size
	for low < high {
		mid := int(uint(low+high) / 2)
		if bytes.Compare(block[mid*size:][:key], chunk[:key]) < 0 {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low
}
