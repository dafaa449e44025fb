// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/sync/semaphore"
)

// conn is a connection in its transmission phase. One goroutine reads requests;
// each piece of work is a goroutine of its own, bounded in number and memory.
type conn struct {
	s          *Server
	nc         net.Conn
	in         *bufio.Reader
	e          *Export
	w          Writer // nil: read-only
	structured bool
	contexts   []Context

	requests *semaphore.Weighted
	memory   *semaphore.Weighted
	buf      *buffers
	work     sync.WaitGroup

	out    sync.Mutex // held while a reply is written
	outErr error      // the first error of writing; nothing is written after it
	broken context.CancelCauseFunc
}

func newConn(s *Server, nc net.Conn, in *bufio.Reader, e *Export) *conn {
	return &conn{
		s: s, nc: nc, in: in, e: e, w: e.writer(),
		requests: semaphore.NewWeighted(maxRequests),
		memory:   semaphore.NewWeighted(connectionMemory(s.o.Memory, s.o.Connections)),
		buf:      &s.buf,
	}
}

// flags are the transmission flags.
func (c *conn) flags() uint16 {
	// What a device has written is seen and flushed through every connection.
	f := uint16(flagHasFlags | flagSendFlush | flagSendFUA | flagCanMultiConn)
	if c.structured {
		f |= flagSendDF
	}
	if c.w == nil {
		return f | flagReadOnly
	}
	return f | flagSendTrim | flagSendWriteZeroes
}

// request is the head of a client's request.
type request struct {
	flags, cmd uint16
	cookie     uint64
	offset     int64
	length     int64 // less than 4 GiB
}

func (r *request) end() int64 { return r.offset + r.length }

// run serves requests until the client leaves, something breaks or ctx ends.
func (c *conn) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.broken = cancel
	err := c.serve(ctx)
	if err != nil && !isDeadline(err) {
		// The client is gone or cannot be trusted: nobody waits for the replies.
		cancel(err)
		_ = c.nc.SetWriteDeadline(past)
	}
	c.work.Wait()
	c.out.Lock()
	defer c.out.Unlock()
	if c.outErr != nil && (err == nil || isDeadline(err)) {
		err = c.outErr
	}
	if t, ok := c.nc.(*tls.Conn); ok && err == nil {
		_ = t.CloseWrite() // TLS's own farewell; the client has left in any case
	}
	return left(err)
}

func isDeadline(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// serve reads requests; nil: the client has said good-bye.
func (c *conn) serve(ctx context.Context) error {
	for {
		var head [requestLen]byte
		if _, err := io.ReadFull(c.in, head[:]); err != nil {
			return err
		}
		if magic := binary.BigEndian.Uint32(head[:]); magic != magicRequest {
			return breach("a request begins with %#x", magic)
		}
		r := &request{
			flags:  binary.BigEndian.Uint16(head[4:]),
			cmd:    binary.BigEndian.Uint16(head[6:]),
			cookie: binary.BigEndian.Uint64(head[8:]),
			length: int64(binary.BigEndian.Uint32(head[24:])),
		}
		offset := binary.BigEndian.Uint64(head[16:])
		if r.cmd == cmdDisc {
			return nil
		}
		if err := c.requests.Acquire(ctx, 1); err != nil {
			return err
		}
		if err := c.begin(ctx, r, offset); err != nil {
			return err
		}
	}
}

// refusal is a request that is answered with an error without asking the device.
type refusal struct {
	code uint32
	why  string
}

// check judges a request; nil: it is one that can be done.
func (c *conn) check(r *request, offset uint64) *refusal {
	known := uint16(cmdFlagFUA) // clients set it on all commands
	writes := false
	switch r.cmd {
	case cmdRead:
		if c.structured {
			known |= cmdFlagDF
		}
	case cmdWrite, cmdTrim:
		writes = true
	case cmdWriteZeroes:
		known |= cmdFlagNoHole
		writes = true
	case cmdFlush:
		return nil // its range is reserved
	case cmdBlockStatus:
		known |= cmdFlagReqOne
	default:
		return &refusal{errnoInval, "unknown command"}
	}
	size := uint64(c.e.Size)
	switch beyond := offset > size || uint64(r.length) > size-offset; {
	case writes && c.w == nil:
		return &refusal{errnoPerm, "the export is read-only"}
	case r.flags&^known != 0:
		return &refusal{errnoInval, "unknown command flags"}
	case beyond && (r.cmd == cmdWrite || r.cmd == cmdWriteZeroes):
		return &refusal{errnoNoSpc, "beyond the end of the export"}
	case beyond:
		return &refusal{errnoInval, "beyond the end of the export"}
	case r.length > maxPayload && (r.cmd == cmdRead || r.cmd == cmdWrite):
		return &refusal{errnoInval, "larger than the largest payload"}
	case r.cmd == cmdBlockStatus && len(c.contexts) == 0:
		return &refusal{errnoInval, "no context has been selected"}
	case r.cmd == cmdBlockStatus && r.length == 0:
		return &refusal{errnoInval, "a block status of no bytes"}
	}
	return nil
}

// begin takes a request on, for which one of c.requests is held. An error ends the
// connection.
func (c *conn) begin(ctx context.Context, r *request, offset uint64) error {
	if no := c.check(r, offset); no != nil {
		if r.cmd == cmdWrite {
			// Its payload has to be passed over to find the next request.
			if r.length > 2*maxPayload {
				return breach("a write of %d bytes", r.length)
			}
			if _, err := c.in.Discard(int(r.length)); err != nil {
				return err
			}
		}
		defer c.requests.Release(1)
		return c.replyError(r, no.code, no.why)
	}
	r.offset = int64(offset)
	switch r.cmd {
	case cmdRead:
		return c.beginRead(ctx, r)
	case cmdWrite:
		return c.beginWrite(ctx, r)
	}
	c.work.Go(func() {
		defer c.requests.Release(1)
		switch r.cmd {
		case cmdBlockStatus:
			c.blockStatus(ctx, r)
		default:
			c.finish(r, c.change(ctx, r))
		}
	})
	return nil
}

// change does a request that changes the device and has no payload.
func (c *conn) change(ctx context.Context, r *request) error {
	if c.w == nil {
		return nil // a flush
	}
	var err error
	what := "flush"
	switch r.cmd {
	case cmdTrim:
		what = "trim"
		err = c.w.Trim(ctx, r.offset, r.length)
	case cmdWriteZeroes:
		what = "write of zeros"
		err = c.w.WriteZeroes(ctx, r.offset, r.length, r.flags&cmdFlagNoHole == 0)
	}
	if err == nil && (r.cmd == cmdFlush || r.flags&cmdFlagFUA != 0) {
		what = "flush"
		err = c.w.Flush(ctx)
	}
	if err != nil {
		return c.failed(ctx, what, r.offset, r.length, err)
	}
	return nil
}

// failed tells of a device's error, unless it comes of our own end.
func (c *conn) failed(ctx context.Context, what string, offset, length int64, err error) error {
	if ctx.Err() != nil {
		return errShutdown
	}
	e := &DeviceError{Export: c.e.Name, What: what, Offset: offset, Length: length, Err: err}
	c.s.notify(e)
	return e
}

// beginWrite reads a write's payload piece by piece and hands the pieces on.
func (c *conn) beginWrite(ctx context.Context, r *request) error {
	job := newJob(c, r)
	for pos := r.offset; pos < r.end(); {
		n := pieceAt(pos, r.end())
		if err := c.memory.Acquire(ctx, bufferSize(n)); err != nil {
			return err // the request gets no reply
		}
		p := c.buf.get(n)
		data := (*p)[:n]
		free := func() {
			c.buf.put(p)
			c.memory.Release(bufferSize(n))
		}
		if _, err := io.ReadFull(c.in, data); err != nil {
			free()
			return unexpected(err)
		}
		at := pos
		job.add()
		c.work.Go(func() {
			err := c.w.WriteAt(ctx, data, at)
			free()
			if err != nil {
				err = c.failed(ctx, "write", at, int64(n), err)
			}
			job.done(ctx, err)
		})
		pos += int64(n)
	}
	job.done(ctx, nil)
	return nil
}

// unexpected is err for a connection that ends where it must not.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the connection ended in the middle of a message: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// pieceAt is the length of the piece at pos of a request that goes to end.
func pieceAt(pos, end int64) int {
	return int(min(pieceSize-pos%pieceSize, end-pos))
}

// job is a write whose pieces are at work.
type job struct {
	c    *conn
	r    *request
	mu   sync.Mutex
	left int
	err  error
}

func newJob(c *conn, r *request) *job { return &job{c: c, r: r, left: 1} }

func (j *job) add() {
	j.mu.Lock()
	j.left++
	j.mu.Unlock()
}

// done ends one piece; with the last of them, the request.
func (j *job) done(ctx context.Context, err error) {
	j.mu.Lock()
	j.left--
	if j.err == nil {
		j.err = err
	}
	last, err := j.left == 0, j.err
	j.mu.Unlock()
	if !last {
		return
	}
	defer j.c.requests.Release(1)
	if err == nil && j.r.flags&cmdFlagFUA != 0 {
		if err = j.c.w.Flush(ctx); err != nil {
			err = j.c.failed(ctx, "flush", j.r.offset, j.r.length, err)
		}
	}
	j.c.finish(j.r, err)
}
