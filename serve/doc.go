// SPDX-License-Identifier: Apache-2.0

// Package serve makes the disks of a checkpoint, as package view reads them, devices
// that package nbd can offer.
//
// Invariants:
//
//   - The repository is only read. What clients write goes into a scratch file
//     beside it ([Cow]), which knows the checkpoint that it belongs to.
//   - What a flush has saved is there when a server begins again with the same file. So is
//     what was only written, as long as the kernel lives that has it.
//   - A file is told as complete ([Filler]) when all of it is proven or a guest's own, and
//     durable; what a guest has written is never written over.
package serve
