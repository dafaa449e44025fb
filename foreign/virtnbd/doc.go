// SPDX-License-Identifier: Apache-2.0

// Package virtnbd reads what virtnbdbackup leaves in a folder: its streams of disks, full,
// incremental and differential ones, plain or compressed with LZ4.
//
// A stream is a row of frames. Each begins with a head of 40 bytes: a word of four letters, a
// space, 16 hex digits, a space, 16 hex digits, CR LF. The numbers are a place in the disk and a
// length, bytes.
//
//	meta  length bytes of JSON about the disk and the backup, and CR LF; the first frame
//	data  length bytes of the disk, and CR LF
//	zero  nothing: that range of the disk reads as zeros
//	stop  nothing; the last frame
//
// In a compressed stream data frames hold LZ4 frames instead: one, or several where a range was
// too long for one request. How long each is stands in a JSON array behind the stop frame, an
// entry for each data frame: a number, or an object whose one member is a list of numbers. CR LF
// and a frame "comp" follow, whose length is that of the array, and end the file.
//
// An incremental stream holds what changed since a checkpoint of another; put over what that
// gives, it is the disk. What an increment says is zero is left out, as virtnbdrestore does: in
// streams of some versions that is what did not change.
//
// Invariants:
//
//   - Nothing is written. Every file is open from before it is looked at until the image is
//     closed, and its identity is the caller's to compare ([Image.Sources]).
//   - Whatever the streams say, memory is bounded: by [maxFrames] for each stream, by
//     [maxDiskFrames] for a disk, and by the chunks that are decoded, at most [maxChunk] each.
//   - A stream of which anything is missing, overlaps or lies out of bounds is an error before
//     any of it is read as a disk.
package virtnbd
