// SPDX-License-Identifier: Apache-2.0

// Package nbd speaks the NBD protocol: a [Server] that offers devices as exports,
// and a [Client] that reads from any server.
//
// It is written from the protocol's own text (doc/proto.md of the NBD project):
// fixed newstyle negotiation, structured replies, block status with several
// contexts, TLS. Names, constants and rules in this package are the text's; the
// contexts of dirty bitmaps are named as QEMU's docs/interop/nbd.rst does.
//
// Invariants:
//
//   - Nothing that the other side says is believed: every length is bounded
//     before memory is taken for it, and what it may keep us waiting for while it
//     negotiates is bounded in time.
//   - A client harms only itself: each connection has its own bounded number of
//     requests in flight and its own bounded memory ([ServerOptions]), and a
//     client that does not take its replies blocks nobody else.
//   - A reply is never success unless the device has answered without an error:
//     what a device could not read is not padded with zeros.
//   - The server ends with its context: when [Server.Serve] returns, all
//     connections are closed and no goroutine of it is left.
//   - The client accepts a read only when the server has given every byte of it
//     exactly once.
package nbd
