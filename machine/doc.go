// SPDX-License-Identifier: Apache-2.0

// Package machine starts a virtual machine that nobody trusts, and waits until its guest
// is up: the disks are NBD exports of ours, with whatever is written to them in scratch
// space, and the definition is followed as far as a guest notices it.
//
// Invariants:
//
//   - The guest can't leave it. QEMU has no network, no device and no folder of the host;
//     all that it is given are sockets that it inherits, and its firmware comes over them,
//     too. It runs with seccomp filters, in network and IPC namespaces of its own where
//     that may be, as an ordinary user if we are root, and with limits on memory, time and
//     the size of files.
//   - What the guest says is bounded: of a console its beginning and its end are kept.
//   - It is another machine than the one that was archived: another UUID, other MAC
//     addresses.
//   - The machine ends with its context, and with us: it is killed, waited for, and leaves
//     nothing.
//
// It knows nothing of repositories.
package machine
