// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// MaxConnections is the largest number of connections that a server may have.
const MaxConnections = 256

// ServerMemory is how much the buffers of a server take, at most, where nothing is said,
// bytes.
const ServerMemory = 128 << 20

// ServerOptions are the settings of a [Server]; the zero value is good.
type ServerOptions struct {
	// TLS makes the server insist on TLS; see [ServerTLS].
	TLS *tls.Config
	// Connections at once, at most [MaxConnections]; one more is closed as soon as it
	// comes ([ErrBusy]). 0: 16, or two for each export if that is more. Each has its
	// equal part of Memory for the buffers of requests at work, so that a client harms
	// only itself: at most 8 MiB, and at least 2 MiB, so that more than 64 connections
	// take 2 MiB each.
	Connections int
	Memory      int64 // bytes; 0: 128 MiB
	// Notify is told of every request that a device has failed (a [DeviceError])
	// and of every connection that ended otherwise than by its client's wish. It
	// is called from several goroutines at once; nil: nobody is told.
	Notify func(error)
	// Clients is told how many clients are connected, each time that one has
	// negotiated and each time that such a one has gone. Its calls do not overlap.
	// nil: nobody is told.
	Clients func(connected int)

	handshakeTimeout time.Duration // of the negotiation as a whole, TLS included; 0: 10 s
	grace            time.Duration // how long requests may go on when the server ends; 0: 2 s
}

// The bounds of what one client, and all together, can make the server hold.
const (
	maxRequests         = 64 // of one connection, at work at once
	maxConnectionMemory = 8 << 20
	minConnectionMemory = 2 * pieceSize
)

// connectionMemory is each connection's part of the memory, bytes.
func connectionMemory(memory int64, connections int) int64 {
	return min(max(memory/int64(connections), minConnectionMemory), maxConnectionMemory)
}

const (
	maxExports  = 1024
	maxContexts = 256 // of one export
)

// Server offers exports to clients.
type Server struct {
	o       ServerOptions
	exports []*Export
	byName  map[string]*Export
	slots   chan struct{} // of connections
	buf     buffers

	mu        sync.Mutex // held while Clients is told
	connected int
}

// NewServer returns a server of exports, which must have different names. The
// exports must not be changed any more.
func NewServer(exports []Export, o ServerOptions) (*Server, error) {
	if o.Connections == 0 {
		o.Connections = min(max(16, 2*len(exports)), MaxConnections)
	}
	if o.Connections < 0 || o.Connections > MaxConnections {
		return nil, fmt.Errorf("nbd: %d connections: 1 to %d are possible", o.Connections, MaxConnections)
	}
	if o.Memory <= 0 {
		o.Memory = ServerMemory
	}
	if o.handshakeTimeout <= 0 {
		o.handshakeTimeout = 10 * time.Second
	}
	if o.grace <= 0 {
		o.grace = 2 * time.Second
	}
	if len(exports) > maxExports {
		return nil, fmt.Errorf("nbd: %d exports, and %d are possible", len(exports), maxExports)
	}
	s := &Server{o: o, byName: make(map[string]*Export), slots: make(chan struct{}, o.Connections)}
	for i := range exports {
		e := exports[i]
		if err := e.check(); err != nil {
			return nil, fmt.Errorf("nbd: %w", err)
		}
		if s.byName[e.Name] != nil {
			return nil, fmt.Errorf("nbd: two exports are named %q", e.Name)
		}
		s.byName[e.Name] = &e
		s.exports = append(s.exports, &e)
	}
	return s, nil
}

// export finds an export; the empty name means the only one, if there is no other.
func (s *Server) export(name string) *Export {
	if e := s.byName[name]; e != nil || name != "" || len(s.exports) != 1 {
		return e
	}
	return s.exports[0]
}

// Serve accepts clients on all listeners, and serves them, until ctx ends: then it
// closes the listeners, lets requests at work go on for the time of grace, closes
// all connections and returns nil. A listener that fails ends it the same way,
// with the listener's error.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	stop := context.AfterFunc(ctx, func() {
		for _, l := range listeners {
			_ = l.Close() // whatever it says, nothing more is accepted
		}
	})
	defer stop()
	for _, l := range listeners {
		wg.Go(func() {
			if err := s.accept(ctx, l, &wg); err != nil {
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	wg.Wait()
	var failed *acceptError
	if errors.As(context.Cause(ctx), &failed) {
		return failed
	}
	return nil
}

// acceptError is what a listener failed with.
type acceptError struct{ error }

func (e *acceptError) Unwrap() error { return e.error }

func (s *Server) accept(ctx context.Context, l net.Listener, wg *sync.WaitGroup) error {
	for wait := time.Millisecond; ; {
		nc, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = nc.Close()
			}
			return nil
		}
		if err != nil {
			// Out of file descriptors, or a client that went away too soon: the
			// listener itself is well. Any other error stays, however often it is tried.
			var temporary interface{ Temporary() bool }
			if !errors.As(err, &temporary) || !temporary.Temporary() {
				return &acceptError{fmt.Errorf("nbd: accept on %s: %w", l.Addr(), err)}
			}
			s.notify(fmt.Errorf("nbd: accept on %s: %w", l.Addr(), err))
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
			wait = min(2*wait, time.Second)
			continue
		}
		wait = time.Millisecond
		wg.Go(func() {
			if err := s.ServeConn(ctx, nc); err != nil {
				s.notify(fmt.Errorf("nbd: client %s: %w", nc.RemoteAddr(), err))
			}
		})
	}
}

func (s *Server) notify(err error) {
	if s.o.Notify != nil {
		s.o.Notify(err)
	}
}

// errShutdown ends what is at work when the server ends.
var errShutdown = errors.New("the server is shutting down")

// ErrBusy refuses a connection.
var ErrBusy = errors.New("refused: there are as many connections as the server may have")

// socketBuffer is how much of its replies a client on this host may have left
// unread, bytes, before sending waits.
const socketBuffer = 2 * pieceSize

// ServeConn serves one client until it leaves or ctx ends, and closes the
// connection. Its error says why the connection ended, when neither the client
// nor ctx wished it.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) error {
	defer func() { _ = nc.Close() }()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return ErrBusy
	}
	// Work goes on for the time of grace after ctx has ended.
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	if u, ok := nc.(*net.UnixConn); ok {
		// The kernel sees to TCP's buffers itself; one of a local socket holds less
		// than a piece, and the client and we would take turns.
		_ = u.SetWriteBuffer(socketBuffer) // it may allow less, which only costs time
	}
	h := &handshake{s: s, nc: nc}
	c, err := func() (*conn, error) {
		stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(past) })
		defer stop()
		// The deadline is set before the function above can run in vain.
		if err := nc.SetDeadline(time.Now().Add(s.o.handshakeTimeout)); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, nil
		}
		return h.run(work)
	}()
	if ctx.Err() != nil {
		return nil
	}
	if err != nil || c == nil {
		return err
	}
	if err := nc.SetDeadline(time.Time{}); err != nil {
		return err
	}
	s.count(1)
	defer s.count(-1)
	stop := context.AfterFunc(ctx, func() {
		_ = c.nc.SetReadDeadline(past)
		_ = c.nc.SetWriteDeadline(time.Now().Add(s.o.grace))
		time.AfterFunc(s.o.grace, func() { cancel(errShutdown) })
	})
	defer stop()
	if ctx.Err() != nil {
		return nil
	}
	err = c.run(work)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// count tells of a client that came or went.
func (s *Server) count(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connected += n
	if s.o.Clients != nil {
		s.o.Clients(s.connected)
	}
}

// past is a deadline that has passed.
var past = time.Unix(1, 0)
