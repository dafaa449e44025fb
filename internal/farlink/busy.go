// SPDX-License-Identifier: Apache-2.0

package farlink

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"sync"
)

// busy stands before a server that speaks S3, and counts.
type busy struct {
	listener net.Listener
	server   *http.Server
	forward  *httputil.ReverseProxy
	limit    int // 0: none

	mu   sync.Mutex
	now  int
	seen Stats
}

func newBusy(target string, limit int) (*busy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &busy{listener: listener, limit: limit}
	silent := log.New(io.Discard, "", 0) // of what breaks when the link is closed
	b.forward = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", target
			r.Out.Host = r.In.Host // which is signed
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ErrorLog:     silent,
		Transport:    &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
	}
	b.server = &http.Server{Handler: b, ErrorLog: silent}
	go func() { _ = b.server.Serve(listener) }() // it ends when it is closed
	return b, nil
}

func (b *busy) address() string { return b.listener.Addr().String() }

func (b *busy) close() {
	_ = b.server.Close() // nothing of it is wanted
	b.forward.Transport.(*http.Transport).CloseIdleConnections()
}

func (b *busy) stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen
}

// begin reports whether the server takes one more.
func (b *busy) begin() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limit > 0 && b.now >= b.limit {
		b.seen.Refused++
		return false
	}
	b.now++
	b.seen.Served++
	b.seen.Requests = max(b.seen.Requests, b.now)
	return true
}

func (b *busy) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now--
}

const slowDown = `<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>`

// ServeHTTP implements http.Handler.
func (b *busy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if b.begin() {
		defer b.end()
		b.forward.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("Content-Length", strconv.Itoa(len(slowDown)))
	w.WriteHeader(http.StatusServiceUnavailable)
	if r.Method != http.MethodHead {
		_, _ = io.WriteString(w, slowDown) // who does not read it hears of it all the same
	}
}
