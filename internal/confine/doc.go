// SPDX-License-Identifier: Apache-2.0

// Package confine keeps programs apart that deal with what a guest has written: as a user
// that nobody else is, if we are root, in namespaces of their own, and with limits.
//
// Invariants:
//
//   - What is possible is tried from the tightest on; what was possible is told.
//   - A program inherits no descriptor that it was not given, and of the environment
//     what it was given.
//   - It ends with us: the kernel kills it when we die.
package confine
