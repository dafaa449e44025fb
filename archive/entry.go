// SPDX-License-Identifier: Apache-2.0

package archive

import "fmt"

// GridSize is the size of a grid cell, bytes: no chunk is larger, none crosses a
// multiple of it on the disk it was read from.
const GridSize = 1 << 20

// DiffSize is the unit in which a backup by content compares and stores the parts
// of a cell that differ, bytes.
const DiffSize = 64 << 10

// Entry is one run of a map: a range of the disk that is zeros or a slice of a chunk.
type Entry struct {
	Offset, Length int64 // guest bytes; Length > 0
	Zero           bool  // reads as zeros; the fields below are unset
	Pack           Ref   // the pack that holds the chunk
	FrameOffset    int64 // of the chunk's zstd frame in the pack, bytes
	FrameLength    int32 // bytes
	ChunkOffset    int32 // where the run begins in the chunk; ChunkOffset+Length ≤ GridSize
	Chunk          Digest
}

// End is the first byte after the run.
func (e *Entry) End() int64 { return e.Offset + e.Length }

// In returns the run's bytes in its whole chunk, which must be that of [Entry.Chunk].
// It fails with a [DamageError] where the map names more than the chunk has.
func (e *Entry) In(chunk []byte) ([]byte, error) {
	if e.ChunkOffset < 0 || e.Length < 0 || int64(e.ChunkOffset)+e.Length > int64(len(chunk)) {
		return nil, &DamageError{Object: PackKey(e.Pack.Name), Offset: e.FrameOffset, Length: int64(e.FrameLength),
			Err: fmt.Errorf("a map wants %d bytes at %d of chunk %s, which has %d", e.Length, e.ChunkOffset, e.Chunk, len(chunk))}
	}
	return chunk[e.ChunkOffset:][:e.Length], nil
}

// continuedBy reports whether n is the immediate continuation of e: zeros after
// zeros, or the next bytes of the same chunk.
func (e *Entry) continuedBy(n *Entry) bool {
	if e.Zero != n.Zero || e.Offset+e.Length != n.Offset {
		return false
	}
	return e.Zero || int64(e.ChunkOffset)+e.Length == int64(n.ChunkOffset) && e.FrameOffset == n.FrameOffset &&
		e.Chunk == n.Chunk && e.Pack == n.Pack && e.FrameLength == n.FrameLength
}

// Clip cuts the run to [start, end), which it must overlap.
func (e *Entry) Clip(start, end int64) {
	if d := start - e.Offset; d > 0 {
		e.Offset += d
		e.Length -= d
		if !e.Zero {
			e.ChunkOffset += int32(d)
		}
	}
	if e.Offset+e.Length > end {
		e.Length = end - e.Offset
	}
}
