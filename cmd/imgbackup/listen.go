// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/nbd"
)

// nbdPort is the port that NBD is registered for.
const nbdPort = "10809"

// listenHelp says where a command listens.
const listenHelp = `The server listens on a Unix socket that only its owner can connect to (--socket), on a TCP address
(--listen), where anyone who can reach it can read the disks unless TLS with --tls-ca keeps them
out, or on sockets that systemd or nbdcopy [ … ] hands over. Without TLS it listens beyond this
machine only if --insecure says so; --http is for clients that know no NBD. SIGINT and SIGTERM end it, with status 0.`

// listenFlags say where a command offers disks over NBD.
type listenFlags struct {
	socket  string
	address string
	http    string
	token   string // a file
	cert    string
	key     string
	ca      string
	pidFile string
	once    bool
	// insecure lets it listen where others can reach it without TLS.
	insecure bool
	most     int  // connections at once; 0: as many as the disks ask for
	limited  bool // most was given
}

// given learns which of the flags were given.
func (f *listenFlags) given(flags *pflag.FlagSet) { f.limited = flags.Changed("connections") }

func (f *listenFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.socket, "socket", "", "listen on a Unix socket at this `PATH`")
	flags.StringVar(&f.address, "listen", "", "listen on this TCP `ADDRESS`, as localhost:10809 or [::1]")
	flags.StringVar(&f.http, "http", "", "offer the disks over HTTP instead, at this TCP `ADDRESS`, as localhost:8080")
	flags.StringVar(&f.token, "http-token", "", "clients over HTTP need the bearer token that is in this `FILE`")
	flags.StringVar(&f.cert, "tls-cert", "", "insist on TLS with the certificate in this PEM `FILE`")
	flags.StringVar(&f.key, "tls-key", "", "the certificate's key is in this PEM `FILE`")
	flags.StringVar(&f.ca, "tls-ca", "", "clients need a certificate of an authority in this PEM `FILE`")
	flags.BoolVar(&f.insecure, "insecure", false, "listen beyond this machine without TLS: whoever can reach it reads the disks")
	flags.StringVar(&f.pidFile, "pid-file", "", "write the process's id to this `FILE` as soon as clients can connect")
	flags.IntVar(&f.most, "connections", 0, "serve at most this `NUMBER` of connections at once (default: 16, or two for each disk)")
	flags.BoolVar(&f.once, "once", false, "end when the last client has gone, after at least one")
	section(flags, whereHeard, "socket", "listen", "http", "http-token", "tls-cert", "tls-key", "tls-ca", "insecure", "pid-file", "once")
}

// nbdService is where clients can connect to already, and wait to be served.
type nbdService struct {
	a         *app
	listeners []net.Listener
	uris      []string // how clients find it, up to the export's name, and what follows it
	after     []string
	tls       *tls.Config
	pidFile   string
	socket    string // its path, where it is ours to remove
	once      bool
	insecure  bool
	most      int // connections at once

	http     bool   // and not NBD
	token    string // that clients need over HTTP; empty: they need none
	name     string // of this machine, as it was given for HTTP
	folder   string // of the disks' paths over HTTP, with a slash at its end
	latest   string // another such folder; empty: none
	identity string // of what all disks hold, over HTTP

	// inherited sockets are known to whoever made them, and what the program prints
	// may be mixed with what that one prints.
	inherited bool
}

// listenNBD opens the sockets. They are open before anything else is done, so
// that nothing is done in vain where they cannot be.
func (a *app) listenNBD(ctx context.Context, f listenFlags) (*nbdService, error) {
	s := &nbdService{a: a, pidFile: f.pidFile, socket: f.socket, once: f.once, insecure: f.insecure, most: f.most}
	if f.limited && (f.most < 1 || f.most > nbd.MaxConnections) {
		return nil, usage.Errorf("--connections %d: 1 to %d are possible", f.most, nbd.MaxConnections)
	}
	if err := s.loadTLS(f); err != nil {
		return nil, err
	}
	if err := f.checkOutside(a); err != nil {
		return nil, err
	}
	if err := s.listen(ctx, f); err != nil {
		s.hangUp()
		return nil, err
	}
	return s, nil
}

// listen opens what the flags name, or takes over what was inherited.
func (s *nbdService) listen(ctx context.Context, f listenFlags) error {
	switch {
	case f.socket != "" && f.address != "", f.http != "" && (f.socket != "" || f.address != ""):
		return usage.Errorf("--socket, --listen and --http exclude each other")
	case f.http != "":
		return s.listenHTTP(f)
	case f.token != "":
		return usage.Errorf("--http-token needs --http")
	case f.socket != "":
		l, err := nbd.ListenUnix(ctx, f.socket)
		if err != nil {
			return err
		}
		return s.add(l, "")
	case f.address != "":
		return s.listenTCP("--listen", f.address, nbdPort)
	}
	return s.inherit()
}

// listenTCP listens at an address that may lack its port.
func (s *nbdService) listenTCP(flag, address, usualPort string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil { // no port
		host, port = strings.TrimSuffix(strings.TrimPrefix(address, "["), "]"), usualPort
	}
	if _, nerr := strconv.ParseUint(address, 10, 16); nerr == nil {
		return usage.Errorf("%s %s: that is a port alone: localhost:%s, or :%s for all networks", flag, address, address, address)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return fmt.Errorf("%s %s: %w", flag, address, err)
	}
	return s.add(l, host)
}

// inherit takes over the sockets of who has started us.
func (s *nbdService) inherit() error {
	all, err := nbd.Inherited()
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return usage.Errorf("no address to listen on: give --socket PATH, --listen ADDRESS or --http ADDRESS")
	}
	s.inherited = true
	for _, l := range all {
		err = errors.Join(err, s.add(l, ""))
	}
	return err
}

// needs adds what it takes to give the sockets up.
func (s *nbdService) needs(self confine.Self) confine.Self {
	if s.pidFile != "" {
		self.Read = append(self.Read, s.pidFile)
		self.Clear = append(self.Clear, filepath.Dir(s.pidFile))
	}
	if s.socket != "" {
		self.Clear = append(self.Clear, filepath.Dir(s.socket))
	}
	return self
}

// announce tells those who wait for it that clients are served from now on: by the pid
// file, and by print, unless whoever handed the sockets over prints, too. restrict is called
// between: what comes after it opens no new files.
func (s *nbdService) announce(restrict, print func() error) error {
	if s.pidFile != "" {
		if err := writePIDFile(s.pidFile); err != nil {
			return fmt.Errorf("--pid-file: %w", err)
		}
	}
	if err := restrict(); err != nil {
		return err
	}
	s.a.serving.Store(true)
	if s.inherited {
		return nil
	}
	return print()
}

// checkOutside refuses files in the repository's folder, and a pid file that is none.
func (f listenFlags) checkOutside(a *app) error {
	if f.socket != "" {
		if err := a.checkOutside("--socket", f.socket); err != nil {
			return err
		}
	}
	if f.pidFile == "" {
		return nil
	}
	if _, err := readPIDFile(f.pidFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("--pid-file: %w", err)
	}
	return a.checkOutside("--pid-file", f.pidFile)
}

func (s *nbdService) loadTLS(f listenFlags) (err error) {
	switch {
	case f.cert == "" && f.key == "" && f.ca == "":
		return nil
	case f.cert == "" || f.key == "":
		return usage.Errorf("TLS needs both --tls-cert and --tls-key")
	}
	s.tls, err = nbd.ServerTLS(f.cert, f.key, f.ca)
	return err
}

// add takes a listener over, if others than this machine can't reach it, or only by TLS, or
// are meant to. host is what its address was given as.
func (s *nbdService) add(l net.Listener, host string) error {
	s.listeners = append(s.listeners, l)
	scheme := "nbd"
	if s.http {
		scheme = "http"
	}
	if s.tls != nil {
		scheme += "s"
	}
	switch at := l.Addr().(type) {
	case *net.UnixAddr:
		path := at.Name
		if abs, err := filepath.Abs(path); err == nil && path != "" && path[0] != '@' {
			path = abs
		}
		s.uris, s.after = append(s.uris, scheme+"+unix:///"), append(s.after, "?socket="+escapeURI(path))
	case *net.TCPAddr:
		if host == "" && at.IP.IsUnspecified() {
			host = "localhost"
		} else if host == "" {
			host = at.IP.String()
		}
		if strings.Contains(host, ":") {
			host = "[" + strings.ReplaceAll(host, "%", "%25") + "]"
		}
		s.uris, s.after = append(s.uris, fmt.Sprintf("%s://%s:%d/", scheme, host, at.Port)), append(s.after, "")
		switch {
		case s.tls != nil || at.IP.IsLoopback():
		case s.insecure:
			s.a.note(fmt.Sprintf("anyone who can reach %s can read the disks: there is no TLS", at))
		default:
			return usage.Errorf("anyone who can reach %s could read the disks: give --tls-cert, --tls-key and --tls-ca, or listen on localhost or a --socket; "+
				"--insecure says that it is meant", at)
		}
	}
	return nil
}

// uri is where clients find an export.
func (s *nbdService) uri(export string) string {
	if len(s.uris) == 0 {
		return "" // sockets of a kind that has no address
	}
	return s.uris[0] + escapeURI(s.folder+export) + s.after[0]
}

// close gives the sockets up; clients that were not served are sent away.
func (s *nbdService) close() {
	s.hangUp()
	if s.pidFile != "" {
		removePIDFile(s.pidFile)
	}
}

func (s *nbdService) hangUp() {
	for _, l := range s.listeners {
		_ = l.Close() // nothing is lost with it
	}
}

// serve serves exports until a signal comes or, with --once, the last client has
// gone: that is success, unless a read of a client has failed. Any other end of
// ctx is its cause.
func (s *nbdService) serve(ctx context.Context, exports []nbd.Export) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	failures := requestFailures{told: make(map[string]bool)}
	notify := func(err error) { s.tell(err, &failures) }
	var err error
	if s.http {
		err = s.serveHTTP(ctx, exports, notify)
	} else {
		err = s.serveNBD(ctx, exports, notify, func() { cancel(errServed) })
	}
	if err != nil {
		return err
	}
	if err := failures.err(); err != nil {
		return err
	}
	if cause := context.Cause(ctx); !errors.Is(cause, errInterrupted) && !errors.Is(cause, errServed) {
		return cause
	}
	return nil
}

func (s *nbdService) serveNBD(ctx context.Context, exports []nbd.Export, notify func(error), served func()) error {
	server, err := nbd.NewServer(exports, nbd.ServerOptions{
		TLS: s.tls, Connections: s.most, Memory: s.a.memory.Part(nbd.ServerMemory, 32<<20), Notify: notify,
		Clients: func(n int) {
			if n == 0 && s.once {
				served()
			}
		},
	})
	if err != nil {
		return err
	}
	return server.Serve(ctx, s.listeners...)
}

// tell tells a person of a client's trouble, the first time that it comes.
func (s *nbdService) tell(err error, failures *requestFailures) {
	var failed *nbd.DeviceError
	if errors.As(err, &failed) {
		if failures.add(err) { // whoever wants no notes is told of failures
			fmt.Fprintf(s.a.err, "imgbackup: %s\n", oneLine(err.Error()))
		}
		return
	}
	switch {
	case !failures.tell(err):
	case errors.Is(err, nbd.ErrBusy):
		s.a.note(oneLine(err.Error()) + "; --connections allows more")
	default:
		s.a.note(oneLine(err.Error()))
	}
}

var errServed = errors.New("all clients have gone")

// requestFailures are the requests that clients could not be served.
type requestFailures struct {
	mu    sync.Mutex
	n     int
	first error // of damage in an archive, or else of all
	told  map[string]bool
}

// maxTold bounds the messages that are remembered.
const maxTold = 1000

// add counts a failure. It reports whether a person should be told of it.
func (f *requestFailures) add(err error) (tell bool) {
	if errors.Is(err, errInterrupted) {
		return false // a client that was at work when the server was told to end
	}
	f.mu.Lock()
	if f.n++; f.n == 1 || notWhole(err) && !notWhole(f.first) {
		f.first = err
	}
	f.mu.Unlock()
	return f.tell(err)
}

// tell reports whether a person should be told of err, which may be another trouble than a
// failure: clients ask again.
func (f *requestFailures) tell(err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	msg := err.Error()
	if errors.Is(err, errInterrupted) || f.told[msg] || len(f.told) >= maxTold {
		return false
	}
	f.told[msg] = true
	return true
}

func (f *requestFailures) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n == 0 {
		return nil
	}
	return fmt.Errorf("%s of clients failed: %w", count(f.n, "request"), f.first)
}

// escapeURI percent-encodes all that has a meaning in a URI, except slashes.
func escapeURI(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~/", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
