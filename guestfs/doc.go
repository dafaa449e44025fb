// SPDX-License-Identifier: Apache-2.0

// Package guestfs looks into disks as their guest would, in the appliance of libguestfs:
// a small virtual machine of its own, so that a hostile file system harms only that. A
// [Session] is one appliance, driven through the program guestfish, with disks that an
// NBD server on this host offers.
//
// Invariants:
//
//   - Disks are only read: what mounting and checking write (a journal that is replayed)
//     goes into scratch space of the appliance and ends with it. No device, volume group
//     or mount of the host is touched, whatever the disks' own are called.
//   - The appliance and what drives it are kept apart: without a network, new rights or
//     more than their limits; if we are root as a user that nobody else is, who sees no
//     folder in which people keep something. QEMU's seccomp filters are on.
//   - A key is in no argument, log or message.
//   - Nothing that the appliance says is believed to be more than text: answers are
//     bounded, and what marks their end is a random number that no guest knows.
//   - What the appliance could not do is an error; one that has died is [ErrEnded], and
//     no verdict on a disk.
//   - The session ends with its context, and with us: no process, socket or file of it
//     stays.
//
// It knows nothing of repositories.
package guestfs
