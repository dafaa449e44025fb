// SPDX-License-Identifier: Apache-2.0

// Package drill rehearses restores: it takes checkpoints through steps, each of which
// passes, fails, or is skipped with its reason, and makes the record that proves it.
//
// Invariants:
//
//   - A drill changes nothing but its own folders and, at the end, one new object in the
//     repository. It holds no lease: as any reader it goes on where a prune has repacked
//     what it reads, and says so where a checkpoint was forgotten meanwhile.
//   - A step that could not be done is skipped, never passed. An outage is no failure of
//     the backup, and damage no outage.
//   - A chunk is fetched and proven once in a run, however many checkpoints have it.
//   - Whatever ends a drill: its folders, sockets and processes are gone afterwards.
package drill
