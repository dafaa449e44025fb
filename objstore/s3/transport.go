// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/imgbackup/imgbackup/objstore/pace"
)

const (
	dialTimeout = 20 * time.Second
	// stallTimeout is how long a connection may stand still, in either direction.
	stallTimeout = 60 * time.Second
	// idleTimeout is how long an unused connection is kept.
	idleTimeout = 45 * time.Second
	maxIdle     = pace.Max // connections
	wireBuffer  = 128 << 10
	// continueFrom is the size from which on a body is sent only when the
	// server asks for it, which it does not if the object exists already.
	continueFrom    = 128 << 10
	continueTimeout = 2 * time.Second
)

// newTransport returns the transport of one store. caFile, a PEM file, may be "".
func newTransport(caFile string, stall time.Duration) (*http.Transport, error) {
	t := &http.Transport{
		DialContext:           stallDialer(stall),
		MaxIdleConns:          maxIdle,
		MaxIdleConnsPerHost:   maxIdle,
		IdleConnTimeout:       idleTimeout,
		TLSHandshakeTimeout:   dialTimeout,
		ExpectContinueTimeout: continueTimeout,
		WriteBufferSize:       wireBuffer,
		ReadBufferSize:        wireBuffer,
		DisableCompression:    true,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if caFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("certificates of the S3 store: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a system without any
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("certificates of the S3 store: %s holds no certificate in PEM form", caFile)
	}
	t.TLSClientConfig.RootCAs = pool
	return t, nil
}

// stallDialer dials connections on which nothing may stand still for longer
// than stall: a server that hangs is a failed request, and not a wait for ever.
func stallDialer(stall time.Duration) func(ctx context.Context, network, addr string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &stallConn{Conn: c, stall: stall}, nil
	}
}

// stallConn moves its deadline whenever something moves. One deadline is for
// both directions: while a body goes out, nothing comes in.
type stallConn struct {
	net.Conn
	stall time.Duration
	moved atomic.Int64 // when the deadline was moved last, Unix nanoseconds
}

func (c *stallConn) touch() error {
	now := time.Now()
	if last := c.moved.Load(); now.UnixNano()-last < int64(c.stall/16) {
		return nil
	}
	c.moved.Store(now.UnixNano())
	return c.SetDeadline(now.Add(c.stall))
}

func (c *stallConn) Read(p []byte) (int, error) {
	if err := c.touch(); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *stallConn) Write(p []byte) (n int, err error) {
	for n < len(p) {
		if err := c.touch(); err != nil {
			return n, err
		}
		m, err := c.Conn.Write(p[n:min(len(p), n+wireBuffer)])
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// s3Round is the round tripper of a store. It sends large bodies only when the
// server wants them, and lets no answer pass that is not an S3 server's.
type s3Round struct {
	next  http.RoundTripper
	clock *clock
	// unasked: something on the way can't ask the server whether it wants a body.
	unasked atomic.Bool
}

// errUnasked says that the server was not asked whether it wants the body, which was
// not stored. The next one is sent unasked.
var errUnasked = errors.New("something on the way can't ask the server whether it wants the object (417 to Expect: 100-continue)")

func (t *s3Round) RoundTrip(req *http.Request) (*http.Response, error) {
	ask := req.Method == http.MethodPut && req.ContentLength >= continueFrom && !t.unasked.Load()
	if ask {
		// Not signed: proxies may take it away.
		req = req.Clone(req.Context())
		req.Header.Set("Expect", "100-continue")
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	t.clock.note(resp)
	if ask && resp.StatusCode == http.StatusExpectationFailed {
		_ = resp.Body.Close() // nothing in it matters
		t.unasked.Store(true)
		return nil, errUnasked
	}
	return judge(req, resp)
}
