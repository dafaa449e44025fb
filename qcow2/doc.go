// SPDX-License-Identifier: Apache-2.0

// Package qcow2 reads disk images that no virtual machine is using: qcow2
// version 2 and 3 with all their backing files, and raw images.
//
// [Open] opens an image read-only together with its backing chain. A
// [Image] gives the guest's data ([Image.ReadAt]), tells where in the chain it
// comes from ([Image.Extents]), and holds what else the images record about
// themselves: headers, internal snapshots, persistent dirty bitmaps.
//
// Invariants:
//
//   - An image is taken for what its caller, or the image above it, says it
//     is. Formats are never probed; names in images are followed only within
//     the folders that [OpenOptions] allow; see [PolicyError].
//   - Numbers in an image are checked before they are used, and memory is
//     bounded by constants, not by what an image claims.
//   - What an image records but its file does not hold is damage
//     ([DamageError]), never zeros.
//   - Nothing is ever written to an image that is open in a Chain.
//
// The format is QEMU's docs/interop/qcow2.rst; where QEMU is stricter or more
// lenient than that text, what QEMU reads is what counts.
package qcow2
