// SPDX-License-Identifier: Apache-2.0

// Package inherit takes what somebody else has left of a domain as checkpoints: a point in time
// after the other, each by the pipeline of package backup, so that the chain is like any other.
//
// Invariants:
//
//   - Nothing is written to what is imported; where it changes while it is read, that point is
//     not imported.
//   - Points become checkpoints in the order of their time, behind all that the domain has. What
//     is older than its newest checkpoint is refused: the newest would be an older state then.
//   - A point that was imported before is known by its files (disk, path, size and time of
//     modification of each), and is not imported again.
//   - What is refused is told before anything is written.
package inherit
