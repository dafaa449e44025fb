// SPDX-License-Identifier: Apache-2.0

// Package files looks at the files in archived disks, as their guest has them: it lists,
// reads and takes them out, and compares two checkpoints. Nothing is restored for that: the
// disks are served over NBD to an appliance of libguestfs (package guestfs).
//
// Invariants:
//
//   - Whatever a guest has put into its file systems is text from outside: names are bytes,
//     and nothing is made outside of the folder that files are taken out to, whatever they
//     or the symbolic links beside them are called.
//   - Nothing grows with the number of files: they pass through.
//   - What a read of the repository has failed with is told, whatever the appliance made of
//     it: damage, an outage, a checkpoint that was forgotten meanwhile.
//   - A file appears under its name complete, or not at all; nothing is replaced.
//   - Whatever ends a [Look]: its appliance, server and folders are gone afterwards.
package files
