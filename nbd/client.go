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
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// ClientOptions are the settings of a [Client]; the zero value reads the default
// export without contexts.
type ClientOptions struct {
	Export   string
	Contexts []string // to be selected; those that the server does not have are left out
	// TLS, if not nil, is insisted on. Its ServerName must be set, unless it trusts
	// any server.
	TLS *tls.Config
}

// clientRequests is the number of requests in flight of one client, and
// clientRequest the largest of them, bytes.
const (
	clientRequests = 16
	clientRequest  = 2 << 20
)

// clientHandshakeTimeout bounds a client's negotiation.
const clientHandshakeTimeout = 30 * time.Second

// Client reads one export of a server. Its methods may be called from several
// goroutines at once; requests are pipelined.
type Client struct {
	nc         net.Conn
	in         *bufio.Reader
	size       int64
	flags      uint16
	structured bool
	minBlock   int64
	maxRequest int64
	contexts   []clientContext

	slots *semaphore.Weighted // of requests in flight

	out sync.Mutex // held while a request is written

	mu      sync.Mutex
	next    uint64
	pending map[uint64]*call
	err     error // why there is no connection any more

	ended chan struct{} // closed when nothing is received any more
}

// clientContext is a context that the server has selected.
type clientContext struct {
	id   uint32
	name string
}

// ErrClosed is the error of a client that has been closed.
var ErrClosed = errors.New("nbd: the connection is closed")

// ServerError is an error that the server has answered with.
type ServerError struct {
	Code uint32 // the protocol's error value, or the type of a reply to an option
	Text string // the server's words, if any
}

func (e *ServerError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("the NBD server answers with error %d", e.Code)
	}
	return fmt.Sprintf("the NBD server answers with error %d: %.500q", e.Code, e.Text)
}

// errServer marks a breach of the protocol by the server.
var errServer = errors.New("the NBD server breaks the protocol")

func serverBreach(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errServer, fmt.Sprintf(format, args...))
}

// Dial connects to a server (network "unix" or "tcp") and negotiates.
func Dial(ctx context.Context, network, address string, o ClientOptions) (*Client, error) {
	if network == "unix" {
		at, err := shortPath(address)
		if err != nil {
			return nil, fmt.Errorf("connect to the NBD server: %w", err)
		}
		defer at.close()
		address = at.name
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("connect to the NBD server: %w", err)
	}
	return NewClient(ctx, nc, o)
}

// NewClient negotiates over a connection, which it owns from then on.
func NewClient(ctx context.Context, nc net.Conn, o ClientOptions) (*Client, error) {
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(past) })
	c := &Client{
		nc: nc, in: bufio.NewReaderSize(nc, readBuffer), minBlock: 1, maxRequest: clientRequest,
		pending: make(map[uint64]*call), slots: semaphore.NewWeighted(clientRequests), ended: make(chan struct{}),
	}
	err := nc.SetDeadline(time.Now().Add(clientHandshakeTimeout))
	if err == nil && ctx.Err() == nil {
		err = c.negotiate(ctx, o)
	}
	if !stop() || ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = nc.SetDeadline(time.Time{})
	}
	if err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("negotiate with the NBD server: %w", unexpected(err))
	}
	go c.receive()
	return c, nil
}

// Size is the size of the export, bytes.
func (c *Client) Size() int64 { return c.size }

// ReadOnly reports whether the server lets nobody write to the export.
func (c *Client) ReadOnly() bool { return c.flags&flagReadOnly != 0 }

// Contexts are the names of the contexts that the server has selected.
func (c *Client) Contexts() []string {
	var names []string
	for _, m := range c.contexts {
		names = append(names, m.name)
	}
	return names
}

// Close ends the connection. Calls at work fail with [ErrClosed].
func (c *Client) Close() error {
	c.mu.Lock()
	idle := len(c.pending) == 0 && c.err == nil
	c.mu.Unlock()
	if idle {
		// A polite end; a server that does not take it is left anyway.
		_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
		c.out.Lock()
		_, _ = c.nc.Write(requestHead(&request{cmd: cmdDisc}, 0))
		c.out.Unlock()
	}
	c.fail(ErrClosed)
	<-c.ended
	return nil
}

// fail ends the connection for all calls; the first reason stays.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	_ = c.nc.Close()
}

// failure is why there is no connection.
func (c *Client) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func requestHead(r *request, offset int64) []byte {
	b := make([]byte, 0, requestLen)
	b = binary.BigEndian.AppendUint32(b, magicRequest)
	b = binary.BigEndian.AppendUint16(b, r.flags)
	b = binary.BigEndian.AppendUint16(b, r.cmd)
	b = binary.BigEndian.AppendUint64(b, r.cookie)
	b = binary.BigEndian.AppendUint64(b, uint64(offset))
	return binary.BigEndian.AppendUint32(b, uint32(r.length))
}

// do sends a request and waits for its reply. A ctx that ends while the reply is
// awaited ends the connection: the reply's bytes would go into a buffer that is no
// longer ours.
func (c *Client) do(ctx context.Context, k *call) error {
	if err := c.slots.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer c.slots.Release(1)
	k.done = make(chan struct{})
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	c.next++
	k.r.cookie = c.next
	c.pending[c.next] = k
	c.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { c.fail(context.Cause(ctx)) })
	defer stop()
	c.out.Lock()
	_, err := c.nc.Write(requestHead(&k.r, k.r.offset))
	c.out.Unlock()
	if err != nil {
		c.fail(err)
	}
	<-k.done
	return k.err
}

// ReadAt fills p with the bytes at off, which lie within the export, or fails. When
// ctx ends before the server has answered, the connection ends with it.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off < 0 || int64(len(p)) > c.size || off > c.size-int64(len(p)) {
		return fmt.Errorf("nbd: bytes %d to %d of an export of %d", off, off+int64(len(p))-1, c.size)
	}
	if len(p) == 0 {
		return nil
	}
	if int64(len(p)) <= c.maxRequest && off%c.minBlock == 0 && int64(len(p))%c.minBlock == 0 {
		return c.read(ctx, p, off)
	}
	// One that fails does not stop the others: to stop a request is to end the connection.
	var g errgroup.Group
	g.SetLimit(clientRequests)
	for pos := 0; pos < len(p); {
		// Requests after the first begin at multiples of their size.
		n := int(min(int64(len(p)-pos), c.maxRequest-(off+int64(pos))%c.maxRequest))
		part, at := p[pos:pos+n], off+int64(pos)
		g.Go(func() error { return c.read(ctx, part, at) })
		pos += n
	}
	return g.Wait()
}

// read is one request, made wider where the server's smallest block asks for it.
func (c *Client) read(ctx context.Context, p []byte, off int64) error {
	start := off - off%c.minBlock
	end := off + int64(len(p))
	if over := end % c.minBlock; over != 0 {
		end = min(end+c.minBlock-over, c.size)
	}
	buf := p
	if end-start != int64(len(p)) {
		buf = make([]byte, end-start)
	}
	k := &call{r: request{cmd: cmdRead, offset: start, length: end - start}, buf: buf}
	if err := c.do(ctx, k); err != nil {
		return fmt.Errorf("nbd: read bytes %d to %d: %w", start, end-1, err)
	}
	if len(buf) != len(p) {
		copy(p, buf[off-start:])
	}
	return nil
}

// isEOF reports whether a connection has ended.
func isEOF(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}
