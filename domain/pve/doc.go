// SPDX-License-Identifier: Apache-2.0

// Package pve reads what Proxmox VE writes of its virtual machines: the configuration of a VM
// (qm.conf(5)), and that of storages (storage.cfg), by which the volumes of the one are found
// in the other. It is taken as values: nothing is asked of Proxmox VE, and no image is opened.
//
// Its invariants:
//
//   - A volume leads to a place within its storage, or is refused: names in it are names.
//   - Where a storage can't be read as files or block devices of this host, the error says
//     which it is and what to do.
//   - Of a configuration only what a backup needs is looked at, so that those of newer versions
//     can be read; but a line that is none that Proxmox VE writes is an error, since it might
//     have been a disk.
//
// The package imports nothing of ours.
package pve
