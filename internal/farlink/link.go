// SPDX-License-Identifier: Apache-2.0

// Package farlink puts distance between a client and a server on this machine: a delay,
// a rate for each connection, and a server that works on no more than some requests at
// once. It is for benchmarks and tests.
package farlink

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Options are what a link is like; the zero value is a link as any other.
type Options struct {
	Delay time.Duration // there and back
	Rate  int64         // of each connection, in each direction, bytes a second; 0: any
	// Busy: requests of HTTP are counted, and where Most is not 0 all above so many at once
	// are answered 503 SlowDown.
	Busy bool
	Most int
}

// Link takes connections and passes them on.
type Link struct {
	o        Options
	target   string
	listener net.Listener
	busy     *busy // nil: requests are not counted
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
	now   int
	most  int
	ended bool

	fetched atomic.Int64
}

// Stats are what a link has seen.
type Stats struct {
	Connections int // at once, at most
	Requests    int // at work in the server at once, at most; of a link that is Busy
	Served      int
	Refused     int   // with 503
	Fetched     int64 // bytes that came from the server, with the headers
}

// Listen makes a link from an address to another.
func Listen(address, target string, o Options) (*Link, error) {
	l := &Link{o: o, target: target, conns: make(map[net.Conn]bool)}
	if o.Busy {
		var err error
		if l.busy, err = newBusy(target, o.Most); err != nil {
			return nil, err
		}
		l.target = l.busy.address()
	}
	var err error
	if l.listener, err = net.Listen("tcp", address); err != nil {
		l.Close()
		return nil, err
	}
	l.wg.Go(l.accept)
	return l, nil
}

// Address is where the link takes connections.
func (l *Link) Address() string { return l.listener.Addr().String() }

// Stats says what was seen until now.
func (l *Link) Stats() Stats {
	var s Stats
	if l.busy != nil {
		s = l.busy.stats()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.Connections, s.Fetched = l.most, l.fetched.Load()
	return s
}

// Close breaks all connections, and waits until nothing of the link runs.
func (l *Link) Close() {
	if l.listener != nil {
		_ = l.listener.Close() // nobody comes any more
	}
	l.mu.Lock()
	l.ended = true
	for c := range l.conns {
		_ = c.Close() // it is to break
	}
	l.mu.Unlock()
	l.wg.Wait()
	if l.busy != nil {
		l.busy.close()
	}
}

func (l *Link) accept() {
	for {
		c, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.wg.Go(func() { l.pass(c) })
	}
}

// add notes a connection that Close must break.
func (l *Link) add(c net.Conn, client int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.conns[c] = true
	l.now += client
	l.most = max(l.most, l.now)
	return true
}

func (l *Link) remove(c net.Conn, client int) {
	_ = c.Close() // both ends have been told
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	l.now -= client
}

// pass joins a client to the server. That it is far away shows from the first byte on: a
// connection takes a round trip to be made.
func (l *Link) pass(client net.Conn) {
	if !l.add(client, 1) {
		_ = client.Close() // the link has ended
		return
	}
	defer l.remove(client, 1)
	server, err := net.Dial("tcp", l.target)
	if err != nil || !l.add(server, 0) {
		return
	}
	defer l.remove(server, 0)
	var both sync.WaitGroup
	both.Go(func() { l.carry(server, client, l.o.Delay, new(atomic.Int64)) })
	both.Go(func() { l.carry(client, server, 0, &l.fetched) })
	both.Wait()
}

// piece is some bytes on their way.
type piece struct {
	data []byte
	at   time.Time // when they arrive
}

// pieceSize is how much is carried at once, bytes.
const pieceSize = 64 << 10

// carry brings bytes from one end to the other, and counts them; the first are late by more.
func (l *Link) carry(to, from net.Conn, late time.Duration, count *atomic.Int64) {
	// As many are on their way as a line of this delay and rate holds, and some.
	length := 8 + int(float64(l.o.Rate)*l.o.Delay.Seconds())/pieceSize
	way := make(chan piece, length)
	buffers := sync.Pool{New: func() any { return new([pieceSize]byte) }}
	var arriving sync.WaitGroup
	arriving.Go(func() {
		for p := range way {
			if wait := time.Until(p.at); wait > 0 {
				time.Sleep(wait)
			}
			if _, err := to.Write(p.data); err != nil {
				_ = from.Close() // so that it ends
			}
			buffers.Put((*[pieceSize]byte)(p.data[:pieceSize]))
		}
		if half, ok := to.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite() // that there is no more is all it says
		}
	})
	free := time.Now().Add(late) // when the line can take the next byte
	for {
		buf := buffers.Get().(*[pieceSize]byte)
		n, err := from.Read(buf[:])
		if n > 0 {
			count.Add(int64(n))
			if now := time.Now(); free.Before(now) {
				free = now
			}
			if l.o.Rate > 0 {
				free = free.Add(time.Duration(float64(n) / float64(l.o.Rate) * float64(time.Second)))
			}
			way <- piece{buf[:n], free.Add(l.o.Delay / 2)}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				_ = to.Close() // it broke, and so does the other end
			}
			break
		}
	}
	close(way)
	arriving.Wait()
}
