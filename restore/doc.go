// SPDX-License-Identifier: Apache-2.0

// Package restore writes the disks of a checkpoint out of a repository, and reads
// them back: raw and qcow2 itself, to files and block devices; other formats by
// qemu-img, to files; raw to stdout, in order. One engine ([Run]) has the rules for
// all of these, and a writer per way.
//
// Invariants:
//
//   - A file appears under its final name only when it is complete, durable
//     and, if asked for, read back; several disks get their names together,
//     after the last is done (internal/outfile).
//   - Any failure removes the partial files and leaves what stood under the
//     final names as it was. A block device has no such second copy: it is
//     written in place, after all files, and an error says that its content is
//     incomplete.
//   - Nothing that exists is overwritten without Force, and nothing at all
//     that is in use: QEMU's image locks, flock and, for devices, an exclusive
//     open are asked first and held until the end.
//   - Bytes are written only after the digest in the map has proven them.
//     Damage ends the restore with a [DamageError].
//   - A passphrase is never on a command line: qemu-img reads it from its file.
//   - What goes to stdout is the one thing that is seen before it is whole.
//   - Nothing is written into the repository's own folder.
//   - Names out of a manifest are validated before they become part of a path,
//     and the last part of a path is never followed as a symbolic link, except
//     to a block device.
//   - Memory does not grow with the disk: maps are merged as a stream, in
//     batches of a bounded number of runs.
package restore
