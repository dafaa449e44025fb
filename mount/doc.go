// SPDX-License-Identifier: Apache-2.0

// Package mount makes a repository a file system of the kernel's (FUSE), for any program
// that reads a raw disk image:
//
//	DOMAIN/CHECKPOINT/vda.raw
//	DOMAIN/latest              a link to the newest checkpoint with data
//
// Invariants:
//
//   - The repository is only read, and nothing can be written to the file system.
//   - A byte is handed out only after its digest has proven it, as package view does it.
//     What can't be had is EIO of the read that wants it, and of no other; it is told to
//     [Options.Failed], and no such file is taken for whole at the end.
//   - A file is of one checkpoint (its uuid) for as long as it is open. One that was forgotten
//     meanwhile is an error, never another one of the same name.
//   - The mount ends with the process, however that ends: see guard.
package mount
