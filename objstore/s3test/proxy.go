// SPDX-License-Identifier: Apache-2.0

package s3test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/minio/minio-go/v7"

	"github.com/imgbackup/imgbackup/objstore/s3"
)

// How is how a request fails.
type How int

// The ways to fail.
const (
	Reset        How = iota // the connection is reset, before the server sees anything
	ResetUpload             // the connections break in the middle of the body that is sent
	Lost                    // the server does it, then the connection is reset
	Unavailable             // 503 SlowDown
	Cold                    // 403 InvalidObjectState, as of an object in an archive class
	Internal                // 500 InternalError
	Conflict                // 409 ConditionalRequestConflict
	Folder                  // 409 ExistingObjectIsDirectory, as of versitygw when a folder vanishes
	NotS3                   // 404 by something that is no S3 server
	Portal                  // 200 with a page to log in at
	PortalXML               // likewise, as XHTML
	ErrorOK                 // 200 with an error document
	Empty                   // 200 and nothing else
	NotModified             // 304, as of a cache
	Redirected              // 302 to a page to log in at
	Forbidden               // 403 by a proxy
	Unasked                 // 417 to Expect: 100-continue
	Precondition            // 412 by something that is no S3 server
	Skewed                  // 403 RequestTimeTooSkewed
	Cut                     // the answer's body ends after Bytes
	Stall                   // the answer's body stands still after Bytes
	Full                    // 507, as of a full disk
	Overwrite               // an object that stands there is removed before
	Early                   // whether an object is there is looked at only before the body comes
	Pretend                 // the server's words that it is done, and nothing is
	Late                    // the connection is reset, and the server gets it at Deliver
	Meanwhile               // none, but Do is called in the middle of it
)

// Fault says which requests fail, and how. Zero fields but How match all.
type Fault struct {
	How    How
	Method string // of HTTP; LIST for listings, which are no GET here
	Key    string // the object's key, or the listing's prefix, contains it
	Query  string // the query contains it
	After  int    // so many matching requests work before the first that fails
	Times  int    // how often it fails, 0 is always
	Bytes  int64  // of the body, for Cut and Stall
	Ranged bool   // only ranged requests

	// Do, if any, is called before the fault takes effect: with Lost and Late
	// when only the reset remains, with Cut, Stall and Meanwhile when Bytes of
	// the answer's body have been passed on, and with Meanwhile and a request
	// that has a body when half of that has.
	Do func()
}

// Proxy stands before a server and makes requests fail.
type Proxy struct {
	URL string

	server *Server
	conns  atomic.Int64

	mu     sync.Mutex
	faults []*fault
	counts map[string]int
	log    []string // methods of all requests, and
	keys   []string // what they were about
	late   []func() int
	stop   context.CancelFunc
}

type fault struct {
	Fault
	seen, hits int
}

// NewProxy starts a proxy before a server that does not speak TLS. At the end
// of the test each of the faults must have been hit, or the test fails.
func NewProxy(t testing.TB, server *Server, faults ...Fault) *Proxy {
	t.Helper()
	target, err := url.Parse(server.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	p := &Proxy{server: server, counts: make(map[string]int), stop: stop}
	for _, f := range faults {
		p.faults = append(p.faults, &fault{Fault: f})
	}
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host
			r.Out.Host = r.In.Host // which is signed
		},
		ErrorHandler:   func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ModifyResponse: spoil,
		ErrorLog:       log.New(io.Discard, "", 0),
		Transport:      &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.serve(ctx, forward, w, r)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // of connections broken on purpose
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			p.conns.Add(1)
		}
	}
	srv.Start()
	p.URL = srv.URL
	t.Cleanup(func() {
		stop()
		srv.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		for i, f := range p.faults {
			if f.hits == 0 {
				t.Errorf("fault %d (%d: %s %q after %d) was never hit: %d requests matched", i, f.How, f.Method, f.Key, f.After, f.seen)
			}
		}
	})
	return p
}

// Config is that of a store behind the proxy.
func (p *Proxy) Config(s *Server, bucket, prefix string) s3.Config {
	c := s.Config(bucket, prefix)
	c.Endpoint = p.URL
	return c
}

// Count returns how many requests of a method there were; LIST is a method.
func (p *Proxy) Count(method string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts[method]
}

// Methods returns the methods of all requests, in the order in which they came;
// LIST is a method.
func (p *Proxy) Methods() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.log)
}

// CountKeys returns how many requests of a method there were whose key, or prefix, has part in it.
func (p *Proxy) CountKeys(method, part string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, m := range p.log {
		if m == method && strings.Contains(p.keys[i], part) {
			n++
		}
	}
	return n
}

// Connections returns how many connections were made to the proxy.
func (p *Proxy) Connections() int { return int(p.conns.Load()) }

// broken is a body that breaks off.
type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// Requests are in path style.
func bucketOf(r *http.Request) string {
	bucket, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	return bucket
}

func keyOf(r *http.Request) string {
	_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	return key
}

func method(r *http.Request) string {
	if r.Method == http.MethodGet && r.URL.Query().Has("list-type") {
		return "LIST"
	}
	return r.Method
}

// hit counts a request, and returns the fault that it meets, if any.
func (p *Proxy) hit(r *http.Request) *Fault {
	m := method(r)
	key := r.URL.Path
	if m == "LIST" {
		key = r.URL.Query().Get("prefix")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts[m]++
	p.log, p.keys = append(p.log, m), append(p.keys, key)
	var met *Fault
	for _, f := range p.faults {
		if f.Method != "" && f.Method != m || !strings.Contains(key, f.Key) ||
			!strings.Contains(r.URL.RawQuery, f.Query) || f.Ranged && r.Header.Get("Range") == "" {
			continue
		}
		f.seen++
		if met != nil || f.seen <= f.After || f.Times > 0 && f.hits >= f.Times {
			continue
		}
		f.hits++
		met = &f.Fault
	}
	return met
}

func (p *Proxy) serve(ctx context.Context, forward http.Handler, w http.ResponseWriter, r *http.Request) {
	f := p.hit(r)
	if f == nil {
		forward.ServeHTTP(w, r)
		return
	}
	switch f.How {
	case Late:
		p.keep(forward, r)
	case Lost:
		forward.ServeHTTP(httptest.NewRecorder(), r)
	}
	inBody := f.How == Cut || f.How == Stall || f.How == Meanwhile
	if f.Do != nil && !inBody {
		f.Do()
	}
	switch f.How {
	case Reset, Late, Lost:
		reset(w)
	case ResetUpload:
		r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, r.ContentLength/2), broken{}))
		forward.ServeHTTP(w, r)
	case Early:
		if _, err := p.server.Client().StatObject(r.Context(), bucketOf(r), keyOf(r), minio.StatObjectOptions{}); err == nil {
			answer(w, r, http.StatusPreconditionFailed, "PreconditionFailed")
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		p.overwrite(forward, w, r)
	case Overwrite:
		p.overwrite(forward, w, r)
	case Pretend:
		_, _ = io.Copy(io.Discard, r.Body)
		if r.Method == http.MethodDelete {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.Header().Set("ETag", `"d41d8cd98f00b204e9800998ecf8427e"`)
		w.WriteHeader(http.StatusOK)
	case Unavailable:
		answer(w, r, http.StatusServiceUnavailable, "SlowDown")
	case Cold:
		answer(w, r, http.StatusForbidden, "InvalidObjectState")
	case Internal:
		answer(w, r, http.StatusInternalServerError, "InternalError")
	case Conflict:
		answer(w, r, http.StatusConflict, "ConditionalRequestConflict")
	case Folder:
		answer(w, r, http.StatusConflict, "ExistingObjectIsDirectory")
	case Skewed:
		answer(w, r, http.StatusForbidden, "RequestTimeTooSkewed")
	case Full:
		answer(w, r, http.StatusInsufficientStorage, "XMinioStorageFull")
	case Unasked:
		if r.Header.Get("Expect") == "" {
			forward.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Connection", "close") // the body was not sent
		w.WriteHeader(http.StatusExpectationFailed)
	case NotS3:
		page(w, r, http.StatusNotFound, "text/html", "<html><body>no backend</body></html>")
	case Precondition:
		page(w, r, http.StatusPreconditionFailed, "text/html", "<html><body>no backend</body></html>")
	case Forbidden:
		page(w, r, http.StatusForbidden, "text/html", "<html><body>not allowed here</body></html>")
	case Portal:
		page(w, r, http.StatusOK, "text/html; charset=utf-8", "<html><body>Please log in.</body></html>")
	case PortalXML:
		page(w, r, http.StatusOK, "application/xml", `<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><body>Please log in.</body></html>`)
	case ErrorOK:
		answer(w, r, http.StatusOK, "InternalError")
	case Empty:
		page(w, r, http.StatusOK, "application/octet-stream", "")
	case NotModified:
		page(w, r, http.StatusNotModified, "", "")
	case Redirected:
		w.Header().Set("Location", "http://portal.example.org/login")
		page(w, r, http.StatusFound, "text/html", "")
	case Meanwhile:
		if r.ContentLength > 0 {
			half := io.LimitReader(r.Body, r.ContentLength/2)
			r.Body = io.NopCloser(io.MultiReader(half, &doing{do: f.Do}, r.Body))
			forward.ServeHTTP(w, r)
			return
		}
		fallthrough
	case Cut, Stall:
		forward.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), spoiled{}, &spoiling{f, ctx})))
	}
}

// overwrite lets a request store its object whatever there is.
func (p *Proxy) overwrite(forward http.Handler, w http.ResponseWriter, r *http.Request) {
	if err := p.server.Client().RemoveObject(r.Context(), bucketOf(r), keyOf(r), minio.RemoveObjectOptions{}); err != nil {
		panic(http.ErrAbortHandler)
	}
	forward.ServeHTTP(w, r)
}

// keep takes a whole request in, to be delivered later.
func (p *Proxy) keep(forward http.Handler, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	late := r.Clone(context.Background())
	late.Body = io.NopCloser(bytes.NewReader(body))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.late = append(p.late, func() int {
		rec := httptest.NewRecorder()
		forward.ServeHTTP(rec, late)
		return rec.Code
	})
}

// Deliver lets the server have the requests that are late, and returns the
// statuses that it answers them with.
func (p *Proxy) Deliver() []int {
	p.mu.Lock()
	late := p.late
	p.late = nil
	p.mu.Unlock()
	var statuses []int
	for _, deliver := range late {
		statuses = append(statuses, deliver())
	}
	return statuses
}

// doing is an empty body that does something when it is read.
type doing struct{ do func() }

func (d *doing) Read([]byte) (int, error) {
	d.do()
	return 0, io.EOF
}

// reset makes the client see a connection that is reset.
func reset(w http.ResponseWriter) {
	c, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

func answer(w http.ResponseWriter, r *http.Request, status int, code string) {
	page(w, r, status, "application/xml", fmt.Sprintf("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code><Message>injected</Message></Error>", code))
}

// page answers with a text; kind is its media type.
func page(w http.ResponseWriter, r *http.Request, status int, kind, text string) {
	_, _ = io.Copy(io.Discard, r.Body)
	if status != http.StatusNotModified {
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = io.WriteString(w, text)
	}
}

type spoiled struct{}

type spoiling struct {
	*Fault
	end context.Context // of the proxy
}

// spoil makes the body of an answer end too early.
func spoil(resp *http.Response) error {
	s, ok := resp.Request.Context().Value(spoiled{}).(*spoiling)
	if ok {
		resp.Body = &spoiledBody{ReadCloser: resp.Body, left: s.Bytes, s: s, ctx: resp.Request.Context()}
	}
	return nil
}

type spoiledBody struct {
	io.ReadCloser
	left int64
	done bool // Do was called
	s    *spoiling
	ctx  context.Context
}

func (b *spoiledBody) Read(p []byte) (int, error) {
	if b.left == 0 && !b.done {
		b.done = true
		if b.s.Do != nil {
			b.s.Do()
		}
	}
	if b.left == 0 && b.s.How == Meanwhile {
		return b.ReadCloser.Read(p)
	}
	if b.left == 0 {
		if b.s.How == Stall {
			select {
			case <-b.ctx.Done():
			case <-b.s.end.Done():
			}
		}
		return 0, io.ErrUnexpectedEOF // which makes the proxy break off
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
