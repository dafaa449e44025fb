// SPDX-License-Identifier: Apache-2.0

// Package outfile writes disks to files and block devices, so that files appear
// under their final names only complete, and all together.
//
// Invariants:
//
//   - A file is written under another name in its folder, locked (flock) so
//     that the next run tells a living one from what a killed run has left, and
//     removes the latter. [Publish] gives several files their names at once, or
//     none; [Retract] takes them back.
//   - What is written in place (block devices, and files that are to be reused)
//     has no such second copy.
//   - Nothing that exists is overwritten without Force or Reuse, and nothing at
//     all that is in use: QEMU's image locks, flock and, for devices, an
//     exclusive open are asked first and held until the end.
//   - The last part of a path is never followed as a symbolic link, except to a
//     block device.
//   - What was written leaves the page cache as soon as it is on the medium.
package outfile

import "errors"

// ErrExists says that a target is there already, and Force is not set. Nothing has
// been written when it is returned.
var ErrExists = errors.New("the target exists already (--force replaces it)")
