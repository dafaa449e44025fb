// SPDX-License-Identifier: Apache-2.0

// Package recovery brings a domain of a repository back at once: it runs from the archive, over
// NBD, while its disks are copied into files of a folder; when they are complete its definition
// names them, from the next shutdown on, and nothing of this is needed any more.
//
// [Open] looks at everything and touches nothing but the folder, which it makes and locks; then
// [Recovery.Run] goes through the stages, each of which is recorded in the folder before the next begins.
// A run that was killed, or ended, anywhere is taken up by the next one of the same folder.
//
// Who recovers several domains opens all of them first, each with a folder of its own: so every one
// was looked at (names, UUIDs, files, and [Recovery.Data] for the room) before anything is written.
// Then all run side by side; [Request.Cache] bounds the memory of each.
//
// Invariants:
//
//   - A domain that libvirt has, and a file that is there, are never touched, unless the folder's
//     record says that they are of this recovery.
//   - The definition names a file only when all of it is proven, or the guest's own, and durable.
//   - The server and a guest of the files never have them open at once: the first ends when the
//     domain that it serves is off.
//   - A guest whose server was killed is stopped at its next request, and goes on from it; where
//     what it had written may be lost it is reset instead.
package recovery
