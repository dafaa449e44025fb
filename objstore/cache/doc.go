// SPDX-License-Identifier: Apache-2.0

// Package cache remembers, in a folder of this machine, what a store that is far away
// has told or was given.
//
// Invariants:
//
//   - Nothing in the folder is believed: an object that is named by its SHA-256 counts
//     once its bytes have it, any other only if a listing of the store has just shown the
//     entity tag that it was read with. What does not hold is removed, and asked of the
//     store; it is never an error, nor damage of the repository.
//   - Stat, List and every write go to the store. What is remembered of listings says only
//     where to divide the next one, and that it may begin early. [objstore.Direct] is the store that is
//     asked where it is to be proven what it holds.
//   - The folder may be removed at any moment, in whole or in part; any number of
//     programs may use it at once. Files appear complete, are never written to again, and
//     have the mode 0600. What can't be kept isn't: that the disk is full, say, costs the
//     memory, and nothing else.
//   - It holds no more than its limit, but for what programs write at this moment. What
//     was not used for longest goes first.
package cache
