// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"syscall"
	"unicode/utf8"
)

// The protocol's error values.
const (
	errnoPerm     = 1
	errnoIO       = 5
	errnoInval    = 22
	errnoNoSpc    = 28
	errnoShutdown = 108
)

// errnoOf is the protocol's value for a device's error.
func errnoOf(err error) uint32 {
	switch {
	case errors.Is(err, errShutdown), errors.Is(err, context.Canceled):
		return errnoShutdown
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return errnoNoSpc
	}
	return errnoIO
}

// send writes one message. An error stays: what has been cut off in the middle
// cannot be taken up again.
func (c *conn) send(parts ...[]byte) {
	c.out.Lock()
	defer c.out.Unlock()
	c.sendLocked(parts...)
}

func (c *conn) sendLocked(parts ...[]byte) {
	if c.outErr != nil {
		return
	}
	bufs := net.Buffers(parts)
	if _, err := bufs.WriteTo(c.nc); err != nil {
		c.outErr = err
		c.broken(err)
		_ = c.nc.SetReadDeadline(past) // no more requests
	}
}

// chunkHead is the head of a chunk of a structured reply, with room for more.
func chunkHead(r *request, flags, kind uint16, length int) []byte {
	b := make([]byte, 0, chunkHeadLen+12)
	b = binary.BigEndian.AppendUint32(b, magicStructured)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, r.cookie)
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

func simpleReply(r *request, errno uint32) []byte {
	b := make([]byte, 0, simpleReplyLen)
	b = binary.BigEndian.AppendUint32(b, magicSimple)
	b = binary.BigEndian.AppendUint32(b, errno)
	return binary.BigEndian.AppendUint64(b, r.cookie)
}

// finish answers a request that has no payload in its reply.
func (c *conn) finish(r *request, err error) {
	switch {
	case err != nil:
		_ = c.replyError(r, errnoOf(err), err.Error())
	case c.structured:
		c.send(chunkHead(r, replyFlagDone, replyNone, 0))
	default:
		c.send(simpleReply(r, 0))
	}
}

// replyError answers a request with nothing but an error. It always returns nil:
// what goes wrong with the connection is seen by whoever reads from it.
func (c *conn) replyError(r *request, errno uint32, why string) error {
	if c.structured {
		c.send(errorChunk(r, replyFlagDone, errno, why, -1))
	} else {
		c.send(simpleReply(r, errno))
	}
	return nil
}

// errorChunk is an error's chunk; offset < 0: of the request as a whole.
func errorChunk(r *request, flags uint16, errno uint32, why string, offset int64) []byte {
	why = message(why)
	kind, n := uint16(replyError), 6+len(why)
	if offset >= 0 {
		kind, n = replyErrorOffset, n+8
	}
	b := chunkHead(r, flags, kind, n)
	b = binary.BigEndian.AppendUint32(b, errno)
	b = binary.BigEndian.AppendUint16(b, uint16(len(why)))
	b = append(b, why...)
	if offset >= 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(offset))
	}
	return b
}

// message makes a text one that may stand in an error chunk.
func message(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "?"), "\x00", "?")
	if len(s) > maxString {
		s = s[:maxString]
		for !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
	}
	return s
}
