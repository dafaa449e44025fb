// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"context"
	"net"
	"sync"
	"testing"
)

// lender is a device that lends what it has, in pieces, or refuses to.
type lender struct {
	*memory
	refuse, short bool
	told          chan struct{} // of each loan, if it is not nil

	mu        sync.Mutex
	out, lent int // now, and ever
	refused   int
}

func (l *lender) lend(_ context.Context, off int64, length int) ([][]byte, func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse {
		l.refused++
		return nil, nil
	}
	whole := l.b[off:][:length]
	if l.short {
		whole = whole[:length-1]
	}
	l.out++
	l.lent++
	if l.told != nil {
		l.told <- struct{}{}
	}
	given := [][]byte{whole[:length/3], whole[length/3 : length/2], whole[length/2:]}
	return given, sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.out--
	})
}

func (l *lender) counts() (out, lent, refused int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out, l.lent, l.refused
}

// serveLender serves a lender over a pair of connections, of which the client's end comes back;
// ended is closed when the other has ended.
func serveLender(t *testing.T, l *lender) (client net.Conn, ended chan struct{}) {
	t.Helper()
	s, err := NewServer([]Export{{Name: "vdb", Size: int64(len(l.b)), Device: l.memory, ReadOnly: true, Lend: l.lend}}, ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	client, theirs := net.Pipe()
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.ServeConn(context.Background(), theirs) // how the client leaves is its business
	}()
	return client, ended
}

// What a device lends is sent as it is, and given back once it has been sent; what it does
// not lend, or not all of, is read.
func TestLend(t *testing.T) {
	t.Parallel()
	for name, l := range map[string]*lender{
		"lends": {}, "refuses": {refuse: true}, "lends too little": {short: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l.memory = &memory{b: pattern(9 << 20)}
			conn, ended := serveLender(t, l)
			c, err := NewClient(t.Context(), conn, ClientOptions{Export: "vdb"})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range [][2]int{{0, 9 << 20}, {5, 4096}, {3<<20 - 100, 300 << 10}, {9<<20 - 1, 1}} {
				got := make([]byte, r[1])
				if err := c.ReadAt(t.Context(), got, int64(r[0])); err != nil || !bytes.Equal(got, l.b[r[0]:][:r[1]]) {
					t.Errorf("%v: %v", r, err)
				}
			}
			_ = c.Close()
			<-ended
			if out, lent, refused := l.counts(); out != 0 || lent == 0 && !l.refuse || refused == 0 && l.refuse {
				t.Errorf("lent %d times, refused %d, and %d are out", lent, refused, out)
			}
		})
	}
}

// deaf is a client's connection on which, from some moment on, nothing more is read.
type deaf struct {
	net.Conn
	from, closed chan struct{}
}

func (d *deaf) Read(p []byte) (int, error) {
	select {
	case <-d.from:
		<-d.closed
		return 0, net.ErrClosed
	default:
		return d.Conn.Read(p)
	}
}

// What was lent for a client that takes nothing stays lent, and is given back when it has gone.
func TestLentToWhoNeverReads(t *testing.T) {
	t.Parallel()
	l := &lender{memory: &memory{b: pattern(9 << 20)}, told: make(chan struct{}, 4)}
	ours, ended := serveLender(t, l)
	d := &deaf{Conn: ours, from: make(chan struct{}), closed: make(chan struct{})}
	c, err := NewClient(t.Context(), d, ClientOptions{Export: "vdb"})
	if err != nil {
		t.Fatal(err)
	}
	close(d.from)
	var reads sync.WaitGroup
	for i := range int64(4) {
		reads.Go(func() {
			if c.ReadAt(t.Context(), make([]byte, 64<<10), i<<20) == nil {
				t.Error("a read from a server that was not listened to")
			}
		})
	}
	for range 4 {
		<-l.told
	}
	if out, _, _ := l.counts(); out != 4 {
		t.Errorf("%d of 4 are lent", out)
	}
	close(d.closed)
	_ = c.Close()
	reads.Wait()
	<-ended
	if out, _, _ := l.counts(); out != 0 {
		t.Errorf("%d were not given back", out)
	}
}
