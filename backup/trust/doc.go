// SPDX-License-Identifier: Apache-2.0

// Package trust judges whether what a dirty bitmap says may be believed.
//
// The qcow2 format gives a bitmap no generation number, so a bitmap that looks
// perfect may have missed writes: it may have been cleared, disabled for a
// while, made anew under its old name, cut by a shrinking disk, or left behind
// in an image whose backing file was exchanged. So every witness there is gets
// asked before an increment rests on one: the image's own state, the bitmaps as
// earlier checkpoints recorded them, and the archived data.
//
// Its invariants:
//
//   - Doubt is a [Verdict] or an [Objection], never an error; an error is a
//     failure to find out, such as an outage, and says nothing about bitmaps.
//   - Ranges that are called dirty may be too many, never too few, unless every
//     witness is deceived.
//   - Nothing is written, and no more is asked than [Image], the recorded
//     [chain.States] and [Archive].
//
// Read [Judge.Verdict] first, and then the list of questions in witness.go. Each is
// a file: locate, bitmap, older, later and archive; and so is what the archive is
// asked for: end, regrown and samples.
package trust
