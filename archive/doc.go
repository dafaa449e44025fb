// SPDX-License-Identifier: Apache-2.0

// Package archive stores the data of virtual disks and gives it back.
//
// Guest data is cut into chunks: runs of at most [GridSize] bytes that lie in
// one aligned cell of that size. A chunk is stored once, as one zstd frame in a
// pack, an immutable object that holds many of them. A map says, for one disk in
// one archive, which chunk (or zeros) each range of the disk is; a full map means
// zeros by what it leaves out, a delta map means "as before". [Replay] merges the
// maps of a chain into the content of a checkpoint.
//
// Invariants:
//
//   - Objects are immutable and named by the SHA-256 of their stored bytes. An
//     object that already stands under its name is read and hashed before it
//     counts as stored; a damaged one is replaced.
//   - Packs and maps are plain zstd files: zstd -t passes, and zstd -dc of a pack
//     gives its chunks back to back, of a map its lines.
//   - A map is enough: it names packs with their lengths, the place of each frame
//     and the SHA-256 of each chunk. A pack's own table is for audit and for
//     rebuilding the index; reading a disk never needs it.
//   - Nothing is believed: the manifest proves a map's directory ([MapRef]), the
//     directory proves each frame of the map, a run proves its chunk.
//   - Damage is a [DamageError]; a store that fails is never damage, and its
//     errors pass through as they are.
//   - Memory is bounded, whatever the size of the disk: work in flight, the
//     deduplication table and the frames of a merge have fixed limits; only the
//     list of packs that a map names is kept whole (40 bytes per pack). What is known
//     of more chunks lies on disk (package known).
//
// The stored forms are specified in docs/format.md; version 1 of each stays
// readable.
package archive
