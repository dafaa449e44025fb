// SPDX-License-Identifier: Apache-2.0

// Package known remembers which chunk lies where, for more chunks than memory should
// hold: in a [Table], a folder with what the indexes of a repository say, and in a
// [Spill], a file of what one session has learnt.
//
// Both are made of runs: files of records, sorted by the chunks' digests, which are
// written once and then only read. One in memory is the first digest of each block of
// records, so that a lookup costs a read of one block of each run (and none of a small
// run, which is in memory as a whole). New runs are merged with others that are not much
// larger, so that there are few.
//
// Invariants:
//
//   - What a table says is a promise: it keeps 8 bytes of each digest, and nobody has
//     looked whether the chunk is still there. Who finds that a promise was made up calls
//     [Table.Drop].
//   - A table is made from indexes alone, and never needed: what is missing, cut short or
//     of another form is nothing, and made again. A chunk counts only while an index
//     that named it is listed.
//   - One program at a time writes to a table (flock); the others use what is there.
//     Runs appear complete, and the list of them is replaced in one step.
//   - Memory: 8 bytes for each block of 204 records, 32 for each index, and 24 MiB for
//     what is being added.
package known
