// SPDX-License-Identifier: Apache-2.0

package httpserve

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/imgbackup/imgbackup/nbd"
)

// Disk is an export at a path.
type Disk struct {
	nbd.Export
	Path     string // without a slash at its beginning, as web/monday/vda
	Also     string // another path, which is not listed, as web/latest/vda; empty: none
	Identity string // of its bytes: others have another one; without quotes
}

// Options are the settings of a [Server]; the zero value is good.
type Options struct {
	// Token is what clients have to show (Authorization: Bearer …); empty: nobody has to.
	Token string
	TLS   *tls.Config // what clients have to speak; nil: not TLS
	// Name is what clients may call this machine, beside localhost and its addresses, where only they
	// can reach it and need no token: else any page in a browser here could read the disks, by a name
	// of its own that leads here (DNS rebinding).
	Name string
	// Connections at once, at most [nbd.MaxConnections]; one more is closed as soon as it
	// comes. 0: 16.
	Connections int
	Memory      int64 // of the buffers of all connections, bytes; 0: 128 MiB
	// Notify is told of each request that failed since a disk could not be read (a
	// [nbd.DeviceError]), and that a connection was refused ([nbd.ErrBusy]). It is called
	// from several goroutines at once; nil: nobody is told.
	Notify func(error)
}

// The bounds of what one client can make the server hold.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = time.Minute
	maxHeader     = 16 << 10
	maxPiece      = 1 << 20 // of which a connection has two
	minPiece      = 64 << 10
	grace         = 2 * time.Second // how long requests may go on when the server ends
)

// Server offers disks to clients.
type Server struct {
	o     Options
	disks []Disk
	paths map[string]*Disk
	token [sha256.Size]byte
	piece int          // bytes
	local bool         // only this machine reaches it, and needs no token
	work  sync.RWMutex // held for reading by who reads a disk
}

// New returns a server of disks, which have different paths.
func New(disks []Disk, o Options) (*Server, error) {
	if o.Connections == 0 {
		o.Connections = 16
	}
	if o.Connections < 0 || o.Connections > nbd.MaxConnections {
		return nil, fmt.Errorf("http: %d connections: 1 to %d are possible", o.Connections, nbd.MaxConnections)
	}
	if o.Memory <= 0 {
		o.Memory = nbd.ServerMemory
	}
	if o.Notify == nil {
		o.Notify = func(error) {}
	}
	s := &Server{
		o: o, disks: disks, paths: make(map[string]*Disk), token: sha256.Sum256([]byte(o.Token)),
		piece: int(min(max(o.Memory/int64(2*o.Connections), minPiece), maxPiece)),
	}
	for i := range disks {
		d := &disks[i]
		if s.paths[d.Path] != nil {
			return nil, fmt.Errorf("http: two disks are at /%s", d.Path)
		}
		s.paths[d.Path] = d
	}
	for i := range disks {
		if also := disks[i].Also; also != "" && s.paths[also] == nil {
			s.paths[also] = &disks[i]
		}
	}
	return s, nil
}

// Serve serves clients of a listener until ctx ends: then it lets requests at work go on for
// a short time, closes all connections and returns nil. A listener that fails ends it, too.
// No disk is read any more then.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	at, _ := l.Addr().(*net.TCPAddr)
	s.local = s.o.Token == "" && s.o.TLS == nil && at != nil && at.IP.IsLoopback()
	l = &limited{Listener: l, slots: make(chan struct{}, s.o.Connections), notify: s.o.Notify}
	if s.o.TLS != nil {
		l = tls.NewListener(l, s.o.TLS)
	}
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	h := &http.Server{
		Handler: s, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog:    log.New(io.Discard, "", 0), // of clients that don't speak HTTP
		BaseContext: func(net.Listener) context.Context { return work },
	}
	defer func() {
		cancel()
		_ = h.Close() // whoever still reads was cut off
		s.work.Lock()
		defer s.work.Unlock()
	}()
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("http: accept on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	rest, stop := context.WithTimeout(work, grace)
	defer stop()
	_ = h.Shutdown(rest) // who is not done by then is cut off
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("http: accept on %s: %w", l.Addr(), err)
	}
	return nil
}

const allowed = "GET, HEAD, OPTIONS"

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Server", "imgbackup")
	h.Set("X-Content-Type-Options", "nosniff")
	if !s.mayRead(r) {
		h.Set("WWW-Authenticate", `Bearer realm="imgbackup"`)
		http.Error(w, "a token is needed: Authorization: Bearer …", http.StatusUnauthorized)
		return
	}
	if s.local && !s.isOurs(r.Host) {
		http.Error(w, "no such host here: localhost is", http.StatusMisdirectedRequest)
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodOptions:
		h.Set("Allow", allowed)
		writeJSON(w, map[string]any{"features": []string{"extents"}})
		return
	default:
		h.Set("Allow", allowed)
		http.Error(w, "disks can only be read", http.StatusMethodNotAllowed)
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/")
	if path == "" {
		s.list(w)
		return
	}
	if d := s.paths[path]; d != nil {
		s.serveDisk(w, r, d)
		return
	}
	if d := s.paths[strings.TrimSuffix(path, "/extents")]; d != nil && strings.HasSuffix(path, "/extents") {
		s.serveExtents(w, r, d)
		return
	}
	http.Error(w, "404 page not found: / tells which disks there are", http.StatusNotFound)
}

// mayRead reports whether a client has shown the token. How long that takes tells nothing.
func (s *Server) mayRead(r *http.Request) bool {
	if s.o.Token == "" {
		return true
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	sum := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(sum[:], s.token[:]) == 1 && strings.EqualFold(scheme, "bearer")
}

// isOurs reports whether a client that reaches this machine only may call it so.
func (s *Server) isOurs(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(host, ".")
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "" || err == nil || strings.EqualFold(host, "localhost") || strings.EqualFold(host, s.o.Name)
}

// list tells which disks there are.
func (s *Server) list(w http.ResponseWriter) {
	type disk struct {
		Path     string   `json:"path"`
		Size     int64    `json:"size"` // bytes
		ETag     string   `json:"etag"`
		Contexts []string `json:"contexts"` // of extents
	}
	out := struct {
		Disks []disk `json:"disks"`
	}{Disks: []disk{}}
	for i := range s.disks {
		d := &s.disks[i]
		e := disk{Path: "/" + d.Path, Size: d.Size, ETag: d.etag(), Contexts: []string{contextZero}}
		if _, ok := d.dirty(""); ok {
			e.Contexts = append(e.Contexts, contextDirty)
		}
		out.Disks = append(out.Disks, e)
	}
	writeJSON(w, out)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a client that has gone misses nothing
}

func (d *Disk) etag() string { return `"` + d.Identity + `"` }

// limited closes connections that are too many.
type limited struct {
	net.Listener
	slots  chan struct{}
	notify func(error)
}

// Accept implements [net.Listener].
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &slotConn{Conn: c, free: func() { <-l.slots }}, nil
		default:
			l.notify(fmt.Errorf("http: client %s: %w", c.RemoteAddr(), nbd.ErrBusy))
			_ = c.Close()
		}
	}
}

// slotConn gives its slot back when it is closed.
type slotConn struct {
	net.Conn
	once sync.Once
	free func()
}

// Close implements [net.Conn].
func (c *slotConn) Close() error {
	defer c.once.Do(c.free)
	return c.Conn.Close()
}
