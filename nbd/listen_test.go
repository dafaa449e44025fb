// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/testkit"
)

func TestListenUnix(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), strings.Repeat("long", 50))} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "s")
		first, err := ListenUnix(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode() != os.ModeSocket|0o600 {
			t.Fatalf("the socket: %v, %v", fi.Mode(), err)
		}
		if _, err := ListenUnix(t.Context(), path); !errors.Is(err, ErrSocketInUse) {
			t.Errorf("a second server: %v", err)
		}
		// A server that died leaves its socket.
		first.(*unixListener).UnixListener.Close()
		second, err := ListenUnix(t.Context(), path)
		if err != nil {
			t.Fatalf("after a dead server: %v", err)
		}
		first.Close() // not its socket any more
		if _, err := os.Stat(path); err != nil {
			t.Errorf("the first server has removed the second's socket: %v", err)
		}
		second.Close()
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("left in the folder: %v, %v", left, err)
		}
		if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ListenUnix(t.Context(), path); err == nil || errors.Is(err, ErrSocketInUse) {
			t.Errorf("on a file: %v", err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "mine" {
			t.Errorf("the file: %q, %v", b, err)
		}
	}
}

// Waiting for who has locked the folder ends with the context; what a server that was
// killed has left is removed.
func TestListenUnixInALockedFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	left := filepath.Join(dir, privateName())
	if err := os.Mkdir(left, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(left, "s"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := sys.TryLock(other); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := ListenUnix(ctx, filepath.Join(dir, "s"))
		ended <- err
	}()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := ListenUnix(t.Context(), filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	if names := testkit.Names(t, dir); len(names) != 1 {
		t.Errorf("beside the socket: %q", names)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// certificates writes an authority's certificate and two that it has signed, as
// libnbd wants them named, and returns their folder.
func certificates(t *testing.T, key func() (crypto.Signer, error)) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) {
		b := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	serial := int64(0)
	sign := func(name string, parent *x509.Certificate, signer crypto.Signer) (*x509.Certificate, crypto.Signer) {
		serial++
		k, err := key()
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if parent == nil {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
			parent, signer = c, k
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, k.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		pk, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		write(name+"-cert.pem", "CERTIFICATE", der)
		write(name+"-key.pem", "PRIVATE KEY", pk)
		return c, k
	}
	ca, cakey := sign("ca", nil, nil)
	sign("server", ca, cakey)
	sign("client", ca, cakey)
	return dir
}

func ecdsaKey() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func rsaKey() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) }

// Clients that use GnuTLS must find their RSA certificates fit for the server.
func TestTLSWithRSA(t *testing.T) {
	t.Parallel()
	dir := certificates(t, rsaKey)
	at := func(name string) string { return filepath.Join(dir, name) }
	config, err := ServerTLS(at("server-cert.pem"), at("server-key.pem"), at("ca-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	w := serveIn(t, ServerOptions{TLS: config})
	testkit.Tool(t, "qemu-img", "info", "--object", "tls-creds-x509,id=t,endpoint=client,dir="+dir, "--image-opts",
		"driver=nbd,server.type=unix,server.path="+w.socket+",export=vdb,tls-creds=t,tls-hostname=localhost")
	// One of another authority, of the same name, does not do.
	other := certificates(t, ecdsaKey)
	trust, err := authorities(at("ca-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for name, good := range map[string]bool{dir: true, other: false} {
		cert, err := tls.LoadX509KeyPair(filepath.Join(name, "client-cert.pem"), filepath.Join(name, "client-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		c, err := Dial(context.Background(), "unix", w.socket, ClientOptions{
			Export: "vda", TLS: &tls.Config{RootCAs: trust, ServerName: "localhost", Certificates: []tls.Certificate{cert}},
		})
		if err == nil {
			c.Close()
		}
		if good != (err == nil) {
			t.Errorf("a certificate of the authority (%v): %v", good, err)
		}
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	dir := certificates(t, ecdsaKey)
	at := func(name string) string { return filepath.Join(dir, name) }
	config, err := ServerTLS(at("server-cert.pem"), at("server-key.pem"), at("ca-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	w := serveIn(t, ServerOptions{TLS: config})
	s, err := NewServer(exports(w.a, w.b), ServerOptions{TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	run(t, s, l)
	uri := "nbds://" + strings.Replace(l.Addr().String(), "127.0.0.1", "localhost", 1) + "/vdb?tls-certificates=" + dir
	if got := testkit.Tool(t, "nbdinfo", "--json", uri); !strings.Contains(got, `"TLS": true`) {
		t.Errorf("nbdinfo: %s", got)
	}
	out := filepath.Join(t.TempDir(), "out")
	testkit.Tool(t, "nbdcopy", uri, out)
	sameFile(t, out, w.b.content())
	testkit.Tool(t, "qemu-img", "compare", "--object", "tls-creds-x509,id=t,endpoint=client,dir="+dir, "--image-opts",
		"driver=nbd,server.type=unix,server.path="+w.socket+",export=vdb,tls-creds=t,tls-hostname=localhost", "driver=file,filename="+out)

	// Without TLS nothing is told, whatever the client asks for.
	fails(t, "nbdinfo", w.uri("vda"))
	fails(t, "nbdinfo", "--list", w.uri(""))
	if _, err := Dial(context.Background(), "unix", w.socket, ClientOptions{Export: "vda"}); !refusedBy(err, repErrTLSReqd) {
		t.Errorf("our client without TLS: %v", err)
	}
	trust, err := authorities(at("ca-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	// A client that has no certificate.
	c, err := Dial(context.Background(), "unix", w.socket, ClientOptions{Export: "vda", TLS: &tls.Config{RootCAs: trust, ServerName: "localhost"}})
	if err == nil {
		c.Close()
		t.Error("a client without a certificate was served")
	}
	cert, err := tls.LoadX509KeyPair(at("client-cert.pem"), at("client-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	good := &tls.Config{RootCAs: trust, ServerName: "localhost", Certificates: []tls.Certificate{cert}}
	c = dial(t, w, ClientOptions{Export: "vdb", TLS: good})
	p := make([]byte, 3<<20)
	if err := c.ReadAt(context.Background(), p, 0); err != nil || string(p) != string(w.b.content()) {
		t.Errorf("our client: %v", err)
	}
	// A server that has none must not do for a client that insists.
	plain := serveIn(t, ServerOptions{})
	if _, err := Dial(context.Background(), "unix", plain.socket, ClientOptions{Export: "vdb", TLS: good}); !refusedBy(err, repErrPolicy) {
		t.Errorf("a server without TLS: %v", err)
	}
}
