// SPDX-License-Identifier: Apache-2.0

// Package prune removes from a repository what no checkpoint needs, beside everything
// else that goes on there: backups from any host, copies, restores, another prune.
//
// The order makes it safe, and no clock, and no listing alone, is ever believed:
//
//   - What is needed is found out from all manifests and all maps. What can't be read,
//     or is missing, ends the prune.
//   - Packs that are partly unused are repacked before anything is marked: by a writer
//     as a backup is one. Manifests get their next revision, by conditional replaces.
//   - What is unneeded is marked, in the one mark of the repository. Writers count it as
//     absent, or strike it from the mark. Then the leases are listed; nothing is deleted
//     before each of these has ended, and then the manifests are read once more.
//   - Only then the mark is made one that deletes, and its list is fixed. Whoever finds
//     a mark whose owner has ended goes on with it.
//   - Before each batch of deletes the mark is looked at.
//
// Where a prune would have to wait for a backup it does not: it leaves its mark, and the
// next one goes on.
package prune
