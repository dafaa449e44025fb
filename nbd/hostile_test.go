// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// raw connects without a client of ours.
func (w *world) raw(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", w.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// healthy makes sure that a good client is served.
func (w *world) healthy(t *testing.T) {
	t.Helper()
	want := w.b.content()
	c := dial(t, w, ClientOptions{Export: "vdb"})
	got := make([]byte, len(want))
	if err := c.ReadAt(context.Background(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("a good client: %v", err)
	}
}

// Clients that send anything, break off anywhere or never read: a good client is
// served afterwards, and while they are there.
func TestHostileClients(t *testing.T) {
	t.Parallel()
	w := serveIn(t, ServerOptions{Connections: 64})
	r := rand.New(rand.NewPCG(1, 2))
	session := append(hello(), requests()...)
	var attacks [][]byte
	for i := range 120 {
		b := bytes.Clone(session)
		switch i % 4 {
		case 0: // nothing that makes sense
			b = make([]byte, r.IntN(4096))
			for i := range b {
				b[i] = byte(r.Uint32())
			}
		case 1: // cut off
			b = b[:r.IntN(len(b))]
		case 2: // some bytes changed, anywhere
			for range 1 + r.IntN(4) {
				b[r.IntN(len(b))] ^= byte(1 + r.IntN(255))
			}
		case 3: // a length or offset out of all proportion
			binary.BigEndian.PutUint32(b[r.IntN(len(b)-4):], []uint32{0, 0xffffffff, 0x7fffffff, 1 << 25}[r.IntN(4)])
		}
		attacks = append(attacks, b)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := i; j < len(attacks); j += 8 {
				c, err := net.Dial("unix", w.socket)
				if err != nil {
					t.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(20 * time.Second))
				c.Write(attacks[j])
				if j%3 > 0 { // others leave without a look at the answer
					c.(*net.UnixConn).CloseWrite()
					io.Copy(io.Discard, c)
				}
				c.Close()
			}
		})
	}
	wg.Wait()
	w.healthy(t)
	for _, err := range w.noted() {
		var device *DeviceError
		if errors.As(err, &device) {
			t.Errorf("an attack has reached the device: %v", err)
		}
	}
}

// A client that asks for much and takes nothing holds up nobody but itself, not even
// the end of the server.
func TestClientThatNeverReads(t *testing.T) {
	t.Parallel()
	w := serveIn(t, ServerOptions{grace: time.Millisecond})
	for range 3 {
		c := w.raw(t)
		c.Write(hello())
		c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		for i := range 2000 {
			if _, err := c.Write(clientRequestBytes(cmdRead, 0, uint64(i), 0, 2<<20)); err != nil {
				break // it takes no more of us
			}
		}
	}
	w.healthy(t)
}

func TestSilentClientIsCutOff(t *testing.T) {
	t.Parallel()
	w := serveIn(t, ServerOptions{handshakeTimeout: 20 * time.Millisecond})
	for _, said := range [][]byte{nil, {0, 0, 0, 3}, hello()[:40]} {
		c := w.raw(t)
		c.Write(said)
		c.SetDeadline(time.Now().Add(20 * time.Second))
		// What it said may have come too late to be read, which resets the connection.
		if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("after %d bytes: %v", len(said), err)
		}
	}
}

// What all clients together can make the server hold is bounded, and each can work.
func TestMemoryOfConnections(t *testing.T) {
	t.Parallel()
	for n := 1; n <= MaxConnections; n++ {
		each := connectionMemory(ServerMemory, n)
		if each < 2*pieceSize || each > 8<<20 || int64(n)*each > max(128<<20, int64(n)*2*pieceSize) {
			t.Errorf("%d connections: %d bytes each", n, each)
		}
	}
	for _, n := range []int{-1, MaxConnections + 1} {
		if _, err := NewServer(nil, ServerOptions{Connections: n}); err == nil {
			t.Errorf("%d connections", n)
		}
	}
}

func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	w := serveIn(t, ServerOptions{Connections: 2})
	a := dial(t, w, ClientOptions{Export: "vda"})
	dial(t, w, ClientOptions{Export: "vdb"})
	if _, err := Dial(context.Background(), "unix", w.socket, ClientOptions{Export: "vda"}); err == nil {
		t.Fatal("a third connection was taken")
	}
	if err := a.ReadAt(context.Background(), make([]byte, 512), 0); err != nil {
		t.Error(err)
	}
}

func TestRefusedOptions(t *testing.T) {
	t.Parallel()
	replies := func(said []byte) (kinds []uint32) {
		out := talk(t, said)[18:]
		for len(out) >= optReplyHeadLen && binary.BigEndian.Uint64(out) == magicOptReply {
			kinds = append(kinds, binary.BigEndian.Uint32(out[12:]))
			out = out[optReplyHeadLen+binary.BigEndian.Uint32(out[16:]):]
		}
		return kinds
	}
	long := strings.Repeat("x", maxString+1)
	for name, c := range map[string]struct {
		option []byte
		want   uint32
	}{
		"unknown":                {clientOption(77, []byte("abc")), repErrUnsup},
		"list with data":         {clientOption(optList, []byte("a")), repErrInvalid},
		"structured with data":   {clientOption(optStructuredReply, []byte("a")), repErrInvalid},
		"no TLS":                 {clientOption(optStartTLS, nil), repErrPolicy},
		"too long":               {clientOption(optList, make([]byte, maxOptionData+1)), repErrTooBig},
		"no such export":         {clientOption(optInfo, append(str("none"), 0, 0)), repErrUnknown},
		"name too long":          {clientOption(optInfo, append(str(long), 0, 0)), repErrInvalid},
		"length beyond the data": {clientOption(optInfo, []byte{0, 0, 0, 200, 0, 0}), repErrInvalid},
		"more wanted than there": {clientOption(optInfo, append(str("vda"), 0xff, 0xff)), repErrInvalid},
		"contexts too early":     {clientOption(optSetMetaContext, append(str("vda"), 0, 0, 0, 0)), repErrInvalid},
	} {
		if got := replies(append([]byte{0, 0, 0, 3}, c.option...)); len(got) != 1 || got[0] != c.want {
			t.Errorf("%s: %#x, want %#x", name, got, c.want)
		}
	}
	// More queries than there are bytes for.
	said := append([]byte{0, 0, 0, 3}, clientOption(optStructuredReply, nil)...)
	said = append(said, clientOption(optSetMetaContext, append(str("vda"), 0xff, 0xff, 0xff, 0xff))...)
	if got := replies(said); len(got) != 2 || got[1] != repErrInvalid {
		t.Errorf("queries without end: %#x", got)
	}
	// Wildcards list, and select nothing.
	for id, want := range map[uint32]int{optListMetaContext: 2, optSetMetaContext: 0} {
		said := append([]byte{0, 0, 0, 3}, clientOption(optStructuredReply, nil)...)
		said = append(said, clientOption(id, append(append(str("vda"), 0, 0, 0, 1), str(DirtyBitmapPrefix)...))...)
		if got := replies(said); len(got) != want+2 {
			t.Errorf("option %d with a wildcard: %#x", id, got)
		}
	}
	many := []byte{0, 0, 0, 3}
	for range maxOptions + 10 {
		many = append(many, clientOption(77, nil)...)
	}
	if got := replies(many); len(got) != maxOptions {
		t.Errorf("%d options were answered", len(got))
	}
}

// When the server ends, what is at work is let go on, and nothing is left.
func TestShutdown(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := &slow{asked: make(chan struct{}), goOn: make(chan struct{})}
	s, err := NewServer([]Export{{Name: "vda", Size: 1 << 20, Device: d}}, ServerOptions{grace: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	l, err := ListenUnix(t.Context(), dir+"/s")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.Serve(ctx, l) }()
	c, err := Dial(context.Background(), "unix", dir+"/s", ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	read := make(chan error)
	go func() { read <- c.ReadAt(context.Background(), make([]byte, 512), 0) }()
	<-d.asked
	cancel()
	close(d.goOn)
	if err := <-read; err != nil {
		t.Errorf("what was at work: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the server: %v", err)
	}
	if err := c.ReadAt(context.Background(), make([]byte, 512), 0); err == nil {
		t.Error("a read after the end")
	}
	if _, err := net.Dial("unix", dir+"/s"); err == nil {
		t.Error("the socket is still there")
	}
}

// slow is a device that says when it is asked, and waits.
type slow struct{ asked, goOn chan struct{} }

func (s *slow) ReadAt(ctx context.Context, _ []byte, _ int64) error {
	s.asked <- struct{}{}
	select {
	case <-s.goOn:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
