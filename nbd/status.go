// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
)

// statusExtents is the most descriptors that we put into one chunk: the client asks
// again from where it ends.
const statusExtents = 8 << 10

// blockStatus answers NBD_CMD_BLOCK_STATUS: one chunk for each selected context.
func (c *conn) blockStatus(ctx context.Context, r *request) {
	limit := statusExtents
	if r.flags&cmdFlagReqOne != 0 {
		limit = 1
	}
	if err := c.memory.Acquire(ctx, smallSize); err != nil {
		return // the connection has ended
	}
	defer c.memory.Release(smallSize)
	for i, m := range c.contexts {
		s := status{limit: limit, pos: r.offset, end: r.end()}
		if err := s.collect(ctx, m); err != nil {
			err = c.failed(ctx, "block status "+m.Name, r.offset, r.length, err)
			c.send(errorChunk(r, replyFlagDone, errnoOf(err), err.Error(), -1))
			return
		}
		flags := uint16(0)
		if i == len(c.contexts)-1 {
			flags = replyFlagDone
		}
		head := chunkHead(r, flags, replyBlockStatus, 4+len(s.b))
		c.send(binary.BigEndian.AppendUint32(head, contextID(i)), s.b)
	}
}

// status collects the descriptors of one chunk.
type status struct {
	limit    int
	pos, end int64 // what is still to be described
	b        []byte
	flags    uint32 // of the last descriptor
}

// add describes what follows up to to; false: no more fits.
func (s *status) add(to int64, flags uint32) bool {
	to = min(to, s.end)
	if to <= s.pos {
		return true
	}
	n := uint32(to - s.pos)
	if len(s.b) > 0 && s.flags == flags {
		last := s.b[len(s.b)-8:]
		binary.BigEndian.PutUint32(last, binary.BigEndian.Uint32(last)+n)
	} else {
		if len(s.b) == 8*s.limit {
			return false
		}
		s.b = binary.BigEndian.AppendUint32(s.b, n)
		s.b = binary.BigEndian.AppendUint32(s.b, flags)
	}
	s.flags, s.pos = flags, to
	return true
}

func (s *status) collect(ctx context.Context, m Context) error {
	last := s.pos
	for e, err := range m.Extents(ctx, s.pos, s.end) {
		if err != nil {
			if len(s.b) > 0 {
				return nil // what is described is right; the client meets the error when it asks on
			}
			return err
		}
		if e.Start >= s.end {
			break
		}
		if e.End <= e.Start || e.Start < last && len(s.b) > 0 {
			return fmt.Errorf("context %s: an extent from %d to %d after %d", m.Name, e.Start, e.End, last)
		}
		last = e.End
		// What lies between two extents has no flag.
		if !s.add(e.Start, 0) || !s.add(e.End, e.Flags) {
			return nil
		}
		if s.pos >= s.end {
			return nil
		}
	}
	s.add(s.end, 0)
	return nil
}
