// SPDX-License-Identifier: Apache-2.0

// Package domain reads and writes libvirt's XML of domains, backups and
// checkpoints, as values: no libvirtd is asked, and no image is opened.
//
// Of a domain's definition it takes what a backup needs: name, UUID, disks with
// their formats and backing chains, firmware. A domainbackup and a
// domaincheckpoint are read whole, by the rules of libvirt's schemas
// (domainbackup.rng, domaincheckpoint.rng) and of the code behind them;
// [Backup.Align] and [Checkpoint.Align] fill in what libvirt fills in, and
// Format writes what libvirt writes.
//
// Its invariants:
//
//   - What libvirt refuses is refused, in the same cases; every error says in
//     which line of the text, or of which disk.
//   - Formatting what was parsed, and parsing that again, changes nothing.
//   - What is written is valid by libvirt's schemas.
//   - XML comes from outside. Its size, depth and number of elements are
//     bounded before anything is built from it, and it can define no entities.
//
// The package imports nothing of ours.
package domain
