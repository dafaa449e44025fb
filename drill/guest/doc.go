// SPDX-License-Identifier: Apache-2.0

// Package guest is the steps of a drill that look at a checkpoint as its guest would: its
// file systems are checked, files are compared with what is expected of them, and the
// guest is booted.
//
// Invariants:
//
//   - What is in the disks is looked at in virtual machines alone: libguestfs's appliance
//     (package guestfs), and one like the guest's own (package machine).
//   - One appliance does for a checkpoint: files are looked at by the step that checks
//     file systems, where there is one.
//   - What was not found out is skipped; damage of the repository is told as that, and is
//     not the guest's.
package guest
