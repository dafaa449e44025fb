// SPDX-License-Identifier: Apache-2.0

// Package foreign reads images that are not read natively through qemu-nbd: LUKS,
// also within qcow2, vmdk, vhdx, vdi and qed.
//
// Invariants:
//
//   - Only images that consist of one file are opened: what would make QEMU follow a
//     name in an image (a backing file, the extents of a vmdk) is refused before
//     QEMU sees it, and QEMU is told the format and that there is no backing file.
//   - qemu-nbd opens the image read-only, and listens on a socket in a folder of
//     mode 0700, which is gone as soon as we are connected.
//   - It ends when the image is closed, when the context of [Open] ends, when our
//     connection ends, and when we die, however we do.
//   - Secrets are read by qemu-nbd itself, out of a file: they are never in an
//     argument or in the environment.
//   - What qemu-nbd says on stderr is part of the error of what it could not do.
package foreign
