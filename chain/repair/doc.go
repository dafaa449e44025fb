// SPDX-License-Identifier: Apache-2.0

// Package repair mends a repository: what is damaged or missing is fetched from other
// repositories, or made anew of what is left and of images whose bytes still are what they
// were; and what nobody has any more is recorded as lost.
//
// A repair is a plan first, which writes nothing, and then the deed. Every byte that it
// stores is proven by its digest. Nothing damaged is removed before what takes its place
// stands: an object that is named by its digest is replaced by proven bytes, and a pack of
// which only some chunks can be had stays, for a prune to remove, while new maps, and the
// next revisions of the manifests that name them, do without it. So it may be cut off at any
// moment, and be run again.
package repair
