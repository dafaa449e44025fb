// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"

	"github.com/imgbackup/imgbackup/internal/zero"
)

// beginRead takes a read on. With structured replies each piece is a goroutine and
// a chunk of its own; a reply that must be in one part is read as one piece, or, if
// it is too long for that, streamed.
func (c *conn) beginRead(ctx context.Context, r *request) error {
	whole := !c.structured || r.flags&cmdFlagDF != 0
	switch {
	case r.length == 0:
		defer c.requests.Release(1)
		c.finish(r, nil)
		return nil
	case whole && r.length > pieceSize:
		if err := c.memory.Acquire(ctx, pieceSize); err != nil {
			return err
		}
		c.work.Go(func() {
			defer c.requests.Release(1)
			defer c.memory.Release(pieceSize)
			c.stream(ctx, r)
		})
		return nil
	}
	job := &readJob{c: c, r: r, left: 1}
	if !whole {
		first := (pieceSize - r.offset%pieceSize)
		job.left += int(max(r.length-first, 0)+pieceSize-1) / pieceSize
	}
	for pos := r.offset; pos < r.end(); {
		n := int(r.length)
		if !whole {
			n = pieceAt(pos, r.end())
		}
		if err := c.memory.Acquire(ctx, bufferSize(n)); err != nil {
			return err
		}
		at := pos
		c.work.Go(func() { job.piece(ctx, at, n) })
		pos += int64(n)
	}
	return nil
}

// readJob is a read whose pieces are at work.
type readJob struct {
	c    *conn
	r    *request
	mu   sync.Mutex // held around counting and sending, so that the last chunk sent is the one that says so
	left int
}

// piece reads and sends n bytes at off, for which memory has been acquired.
func (j *readJob) piece(ctx context.Context, off int64, n int) {
	c := j.c
	defer c.memory.Release(bufferSize(n))
	data, giveBack, err := c.bytes(ctx, off, n)
	defer giveBack()
	if err != nil {
		err = c.failed(ctx, "read", off, int64(n), err)
	}
	zeros := err == nil && !slices.ContainsFunc(data, func(part []byte) bool { return !zero.Is(part) })
	j.mu.Lock()
	defer j.mu.Unlock()
	flags := uint16(0)
	if j.left--; j.left == 0 {
		flags = replyFlagDone
		defer c.requests.Release(1)
	}
	switch {
	case !c.structured && err != nil:
		c.send(simpleReply(j.r, errnoOf(err)))
	case !c.structured:
		c.send(slices.Insert(data, 0, simpleReply(j.r, 0))...)
	case err != nil:
		c.send(errorChunk(j.r, flags, errnoOf(err), err.Error(), off))
	case zeros && j.r.flags&cmdFlagDF == 0:
		b := binary.BigEndian.AppendUint64(chunkHead(j.r, flags, replyOffsetHole, 12), uint64(off))
		c.send(binary.BigEndian.AppendUint32(b, uint32(n)))
	default:
		c.send(slices.Insert(data, 0, binary.BigEndian.AppendUint64(chunkHead(j.r, flags, replyOffsetData, 8+n), uint64(off)))...)
	}
}

// bytes are what n bytes at off read as: lent by the device, or copied into a buffer.
func (c *conn) bytes(ctx context.Context, off int64, n int) (data [][]byte, giveBack func(), err error) {
	if c.e.Lend != nil {
		switch data, giveBack = c.e.Lend(ctx, off, n); {
		case data == nil:
		case lengthOf(data) == n:
			return data, giveBack, nil
		default: // what follows would be taken for something else
			giveBack()
		}
	}
	p := c.buf.get(n)
	part := (*p)[:n]
	return [][]byte{part}, func() { c.buf.put(p) }, c.e.Device.ReadAt(ctx, part, off)
}

func lengthOf(parts [][]byte) (n int) {
	for _, part := range parts {
		n += len(part)
	}
	return n
}

// stream answers a read longer than a piece with one part. While it goes on, the
// connection's other replies wait.
func (c *conn) stream(ctx context.Context, r *request) {
	p := c.buf.get(pieceSize)
	defer c.buf.put(p)
	read := func(pos int64) ([]byte, error) {
		data := (*p)[:pieceAt(pos, r.end())]
		if err := c.e.Device.ReadAt(ctx, data, pos); err != nil {
			return data, c.failed(ctx, "read", pos, int64(len(data)), err)
		}
		return data, nil
	}
	if !c.structured {
		// A simple reply cannot take success back: what would fail is known first.
		for pos := r.offset; pos < r.end(); {
			data, err := read(pos)
			if err != nil {
				c.finish(r, err)
				return
			}
			pos += int64(len(data))
		}
	}
	c.out.Lock()
	defer c.out.Unlock()
	if c.structured {
		c.sendLocked(binary.BigEndian.AppendUint64(chunkHead(r, 0, replyOffsetData, 8+int(r.length)), uint64(r.offset)))
	} else {
		c.sendLocked(simpleReply(r, 0))
	}
	var failed error
	for pos := r.offset; pos < r.end() && c.outErr == nil; {
		data, err := read(pos)
		switch {
		case err != nil && !c.structured:
			c.outErr = err // what the protocol asks for: no further byte
			c.broken(err)
			_ = c.nc.SetReadDeadline(past)
			return
		case err != nil:
			clear(data)
			if failed == nil {
				failed = err
			}
		}
		c.sendLocked(data)
		pos += int64(len(data))
	}
	switch {
	case !c.structured:
	case failed != nil:
		c.sendLocked(errorChunk(r, replyFlagDone, errnoOf(failed), failed.Error(), -1))
	default:
		c.sendLocked(chunkHead(r, replyFlagDone, replyNone, 0))
	}
}
