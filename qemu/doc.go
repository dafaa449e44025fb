// SPDX-License-Identifier: Apache-2.0

// Package qemu is how this program lives beside QEMU: the locks that QEMU takes on
// images, who holds them, and its programs qemu-img and qemu-nbd.
//
// Invariants:
//
//   - A qemu-img that writes into an image is never interrupted: all bitmaps of the
//     image, others' as well, would stay marked in use and be lost. It runs in a
//     session of its own, which no Ctrl-C reaches, is never sent a signal, and is
//     waited for even when our own work is cancelled. It holds our flock on the
//     image as long as it runs.
//   - What only reads images, or writes new files, ends with its context, and with us.
//   - A program gets no input and no environment, and the kernel lets it open nothing but
//     what it was started for (package confine). Nothing in a path of an image is taken
//     for anything but a path; what an image's header names is not opened.
//   - Of what it says only the beginning is kept, and quoted.
//   - An image that another program has open is an [*InUseError], which names the
//     program where it can be seen; one that another run of ours works on a
//     [*BusyError]; a file system without locks a [*NoLockError].
//
// It knows nothing of what is in an image.
package qemu
