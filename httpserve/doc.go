// SPDX-License-Identifier: Apache-2.0

// Package httpserve offers disks over HTTP: the same exports as package nbd does, for
// programs that have no NBD client.
//
//	GET     /                               the disks there are, as JSON
//	GET     /DOMAIN/CHECKPOINT/vda          its bytes, raw; Range, HEAD, ETag
//	GET     /DOMAIN/CHECKPOINT/vda/extents  what is zero, or dirty (?context=dirty)
//	OPTIONS                                 what can be done
//
// Extents have the form of oVirt's imageio.
//
// Invariants:
//
//   - A disk is only read, and never changes under its ETag.
//   - What can't be read ends the answer before its length, and is told to
//     [Options.Notify]: no client takes it for whole.
//   - Memory is bounded by the number of connections, and that is.
package httpserve
