// SPDX-License-Identifier: Apache-2.0

// Package push writes the disks of a shut-down domain to files or block devices,
// full or as what changed since a checkpoint: libvirt's push mode for images that
// no VM is using.
//
// What a target holds:
//
//   - A full backup: all of the disk. A raw file is sparse, a qcow2 image flat.
//   - An incremental qcow2: the clusters that contain changes, whole, and no
//     others. What changed and reads as zeros now is zeros in it, never left
//     out: over the backup that it builds on (qemu-img rebase -u -b BASE), it
//     reads as the disk does. It names a backing file only if told to.
//   - An incremental raw: a new file holds the changes and reads as zeros
//     everywhere else, so that changes to zeros cannot be told from what did not
//     change; in a file or device that is reused, the changes are written over
//     what it holds, zeros included.
//   - Its virtual size is the disk's size now.
//
// Invariants:
//
//   - All targets appear, complete and durable, or none does, and a checkpoint
//     that goes with them is made only then (internal/outfile; what is written
//     in place comes last, and an error says that it is incomplete).
//   - Nothing that belongs to an image of the domain is ever a target.
//   - Memory is bounded by a buffer of [chunkSize] for each worker and the tables'
//     pages.
package push
