// SPDX-License-Identifier: Apache-2.0

// Package chain keeps what a repository says about itself: which checkpoints of
// which domains it holds, how they descend from each other, and who is at work.
//
// Invariants:
//
//   - A checkpoint exists if and only if its manifest stands under its key. The
//     manifest is stored last, and only if nothing or a void stands there
//     ([Repository.Commit], [Slot]).
//   - A manifest stands alone: it lists every map that its disks need. Parent
//     links tell the history; reading a checkpoint never follows them.
//   - The configuration, manifests, intents and leases are JSON with a last line
//     that holds the SHA-256 of everything before it ([Seal]). What does not prove
//     itself so is an [archive.DamageError] and is never used.
//   - "Absent" is objstore.ErrNotFound and nothing else. A store that fails is
//     never damage, and never an empty repository; an empty listing alone proves
//     nothing ([ListingError]).
//   - What a checkpoint needs is told in one place ([Manifest.References],
//     [Repository.Needs]).
//   - A writer has ended only if that is certain ([Process.Fate]), or a person says so.
//   - What a newer version has written is refused by name ([NewerError]), never
//     guessed at.
//
// The keys and the JSON are specified in docs/format.md; version 1 of each stays
// readable.
package chain
