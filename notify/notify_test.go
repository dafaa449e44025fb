// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/config"
)

const timeout = config.Duration(20 * time.Second)

func event(kind string) *Event {
	ended := time.Unix(1_800_000_100, 0).UTC()
	return &Event{
		Event: kind, Job: "nightly", Host: "h1", Run: "0f0e0d0c-0000-4000-8000-000000000000", Status: 3, Begun: time.Unix(1_800_000_000, 0).UTC(), Ended: &ended,
		Summary: "nightly: 1 step failed\r\nBcc: everybody@example.org", Problems: []string{"backup web: damage", "check: \"more\""}, Log: "/log",
	}
}

func sender(n config.Notice) *Sender {
	n.Timeout = timeout
	return &Sender{Notices: map[string]config.Notice{"x": n}, Getenv: func(string) string { return "" }, First: time.Millisecond, Tries: 4}
}

func inline(s string) config.Secret { return config.Secret{Value: config.Inline(s)} }

// receiver is a server that keeps what it was sent, and answers as it is told.
type receiver struct {
	*httptest.Server
	mu      sync.Mutex
	seen    []string // method, path and body
	headers []http.Header
}

// got is what it was sent so far.
func (r *receiver) got() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.seen)
}

func (r *receiver) header(i int) http.Header {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.headers[i]
}

func newReceiver(t *testing.T, answer func(n int, w http.ResponseWriter)) *receiver {
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Error(err)
		}
		r.mu.Lock()
		r.seen, r.headers = append(r.seen, req.Method+" "+req.URL.Path+" "+string(body)), append(r.headers, req.Header)
		n := len(r.seen)
		r.mu.Unlock()
		answer(n, w)
	}))
	t.Cleanup(r.Close)
	return r
}

func TestWebhook(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, func(n int, w http.ResponseWriter) {
		if n < 3 {
			w.WriteHeader(503)
		}
	})
	s := sender(config.Notice{On: []string{Failure}, Webhook: &config.Webhook{
		URL: inline(r.URL + "/hook"), Headers: map[string]config.Setting{"Authorization": {Secret: &config.Secret{Value: "Bearer abc"}}},
	}})
	if err := s.Send(context.Background(), "x", event(Failure)); err != nil {
		t.Fatal(err)
	}
	if len(r.got()) != 3 || r.header(2).Get("Authorization") != "Bearer abc" {
		t.Fatalf("got %v", r.got())
	}
	var got Event
	if err := json.Unmarshal([]byte(strings.TrimPrefix(r.got()[2], "POST /hook ")), &got); err != nil || got.Job != "nightly" || len(got.Problems) != 2 {
		t.Errorf("%v: %s", err, r.got()[2])
	}
	if err := s.Send(context.Background(), "x", event(Success)); err != nil || len(r.got()) != 3 {
		t.Errorf("who wants failures was told of a success: %v, %v", err, r.got())
	}
}

func TestTemplate(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, func(int, http.ResponseWriter) {})
	s := sender(config.Notice{On: []string{Failure}, Webhook: &config.Webhook{URL: inline(r.URL), Template: `{"text": {{json .Summary}}, "n": {{len .Problems}}}`}})
	if err := s.Send(context.Background(), "x", event(Failure)); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Text string
		N    int
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(r.got()[0], "POST / ")), &got); err != nil || got.N != 2 || !strings.Contains(got.Text, "failed") {
		t.Errorf("%v: %s", err, r.got()[0])
	}
	s.Notices["x"].Webhook.Template = "{{.Nothing}}"
	if err := s.Send(context.Background(), "x", event(Failure)); err == nil || len(r.got()) != 1 {
		t.Errorf("a wrong template: %v, sent %d", err, len(r.got()))
	}
}

func TestPing(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, func(int, http.ResponseWriter) {})
	s := sender(config.Notice{Ping: &config.Ping{URL: inline(r.URL + "/p")}})
	for _, kind := range []string{Start, Success, Recovery, Failure, Overdue} {
		if err := s.Send(context.Background(), "x", event(kind)); err != nil {
			t.Fatal(err)
		}
	}
	var paths []string
	for _, line := range r.got() {
		paths = append(paths, strings.Fields(line)[1])
	}
	if got := strings.Join(paths, " "); got != "/p/start /p /p /p/fail" {
		t.Errorf("got %s", got)
	}
}

// Receivers that are away, refuse, lie, or don't answer: an error, soon enough, without
// the secret in it.
func TestBadReceivers(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t"
	other := newReceiver(t, func(int, http.ResponseWriter) {})
	for what, c := range map[string]struct {
		answer func(n int, w http.ResponseWriter)
		tries  int
		want   string
	}{
		"refuses":   {func(_ int, w http.ResponseWriter) { w.WriteHeader(403) }, 1, "it answered 403"},
		"is broken": {func(_ int, w http.ResponseWriter) { w.WriteHeader(500) }, 4, "it answered 500"},
		"sends on": {func(_ int, w http.ResponseWriter) {
			w.Header().Set("Location", other.URL)
			w.WriteHeader(307)
		}, 1, "it answered 307"},
		"cuts off": {func(_ int, w http.ResponseWriter) { panic(http.ErrAbortHandler) }, 4, "EOF"},
	} {
		r := newReceiver(t, c.answer)
		s := sender(config.Notice{On: []string{Failure}, Webhook: &config.Webhook{URL: inline(r.URL + "/" + secret)}})
		err := s.Send(context.Background(), "x", event(Failure))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), secret) || len(r.got()) != c.tries {
			t.Errorf("one that %s: %v after %d tries; want %s after %d", what, err, len(r.got()), c.want, c.tries)
		}
	}
	if len(other.got()) != 0 {
		t.Errorf("what was sent went on to %v", other.got())
	}

	endless := newReceiver(t, func(_ int, w http.ResponseWriter) {
		for {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	})
	s := sender(config.Notice{Ping: &config.Ping{URL: inline(endless.URL)}})
	if err := s.Send(context.Background(), "x", event(Success)); err != nil {
		t.Errorf("an endless answer: %v", err)
	}

	s = sender(config.Notice{Ping: &config.Ping{URL: inline("http://127.0.0.1:1/" + secret)}})
	if err := s.Send(context.Background(), "x", event(Success)); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("nobody there: %v", err)
	}
	s = sender(config.Notice{Ping: &config.Ping{URL: inline("http://[" + secret)}})
	if err := s.Send(context.Background(), "x", event(Success)); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("no URL: %v", err)
	}

	held := make(chan struct{})
	slow := newReceiver(t, func(int, http.ResponseWriter) { <-held })
	defer close(held)
	s = sender(config.Notice{Ping: &config.Ping{URL: inline(slow.URL)}})
	n := s.Notices["x"]
	n.Timeout = config.Duration(10 * time.Millisecond)
	s.Notices["x"] = n
	if err := s.Send(context.Background(), "x", event(Success)); err == nil || !strings.Contains(err.Error(), "did not answer within") {
		t.Errorf("a slow one: %v", err)
	}
}

func TestCommand(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "got")
	s := sender(config.Notice{On: []string{Failure}, Command: []string{"sh", "-c", `echo "$IMGBACKUP_EVENT $IMGBACKUP_JOB" >"$0"; cat >>"$0"`, path}})
	if err := s.Send(context.Background(), "x", event(Failure)); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || !strings.HasPrefix(string(text), "failure nightly\n{\"event\":\"failure\"") {
		t.Errorf("%v: %s", err, text)
	}
	s.Notices["x"].Command[2] = "exit 3"
	if err := s.Send(context.Background(), "x", event(Failure)); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
}

// aSMTPServer is another's server: it wants STARTTLS and a password, and prints each mail.
const aSMTPServer = `
import asyncio, ssl, sys
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, SMTP
class Handler:
    async def handle_DATA(self, server, session, envelope):
        if b"refused" in envelope.content: return "550 not wanted"
        print("MAIL", envelope.mail_from, *envelope.rcpt_tos, flush=True)
        for line in envelope.content.decode().splitlines(): print("  " + line, flush=True)
        print("END", flush=True)
        return "250 OK"
def auth(server, session, envelope, mechanism, data):
    good = (data.login, data.password) == (b"backup", b"s3cr3t")
    return AuthResult(success=good, handled=good)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
port = int(sys.argv[3])
c = Controller(Handler(), hostname="127.0.0.1", port=port, tls_context=context, require_starttls=True, authenticator=auth, auth_required=True)
c.start()
print("READY", flush=True)
sys.stdin.read()
c.stop()
`

func TestMail(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := certificate(t, dir)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/python3", "-c", aSMTPServer, cert, key, fmt.Sprint(port))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	lines := bufio.NewScanner(out)
	read := func(until string) (text string) {
		for lines.Scan() && lines.Text() != until {
			text += lines.Text() + "\n"
		}
		return text
	}
	read("READY")

	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("s3cr3t\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := &config.Email{
		Server: fmt.Sprintf("127.0.0.1:%d", port), TLS: "starttls", CAFile: cert, User: "backup", Password: &config.Secret{File: password},
		From: "backup@example.org", To: []string{"ops@example.org", "night@example.org"},
	}
	s := sender(config.Notice{On: []string{Failure}, Email: m})
	if err := s.Send(context.Background(), "x", event(Failure)); err != nil {
		t.Fatal(err)
	}
	text := read("END")
	for _, want := range []string{
		"MAIL backup@example.org ops@example.org night@example.org\n", "  Subject: imgbackup: nightly: 1 step failed  Bcc: everybody@example.org\n",
		"  - backup web: damage\n", "  Auto-Submitted: auto-generated\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
	if head, _, _ := strings.Cut(text, "\n  \n"); strings.Contains(head, "\n  Bcc:") {
		t.Errorf("a header came in by the text:\n%s", text)
	}

	wrong := *m
	wrong.Password = &config.Secret{Value: "w0rd"}
	if err := sender(config.Notice{On: []string{Failure}, Email: &wrong}).Send(context.Background(), "x", event(Failure)); err == nil ||
		strings.Contains(err.Error(), "w0rd") || !strings.Contains(err.Error(), "535") {
		t.Errorf("a wrong password: %v", err)
	}
	strangers := *m
	strangers.CAFile = ""
	if err := sender(config.Notice{On: []string{Failure}, Email: &strangers}).Send(context.Background(), "x", event(Failure)); err == nil ||
		!strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate of nobody: %v", err)
	}
}

// certificate makes one for 127.0.0.1.
func certificate(t *testing.T, dir string) (cert, key string) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	about := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, about, about, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}
