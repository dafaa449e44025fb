// SPDX-License-Identifier: Apache-2.0

// Package view reads the disks of a checkpoint straight out of a repository: nothing is
// restored first.
//
// Invariants:
//
//   - A byte is handed out only after the digest in the map has proven the chunk
//     that it is from. Damage is an error of the reads that need what is damaged,
//     and of no others.
//   - The repository is only read.
//   - Memory is bounded, whatever the disk's size: decoded chunks, the parts of the
//     map that are resolved, and what is read ahead have fixed limits.
//   - Of several readers that need a chunk at the same time, one fetches it.
package view
