// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"bytes"
	"crypto/ed25519"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"crypto/x509"
	"encoding/pem"
)

type object struct {
	Name  string `json:"name"`
	Count int    `json:"count"`
}

type signer struct{ key ed25519.PrivateKey }

func (s signer) States(key string) Statement {
	return Statement{By: "alice <a>", Generation: 3, Repository: "r", Key: key}
}

func (s signer) Sign(signed []byte) ([]byte, error) { return ed25519.Sign(s.key, signed), nil }

func newSigner(t testing.TB) (signer, ed25519.PublicKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return signer{private}, public
}

func TestSigned(t *testing.T) {
	t.Parallel()
	s, public := newSigner(t)
	_, other := newSigner(t)
	data, err := Seal(object{"x", 7}, "domains/web/x.json", s)
	if err != nil {
		t.Fatal(err)
	}
	plain, sig, err := Open(data)
	if err != nil || sig == nil {
		t.Fatalf("%v, %v", sig, err)
	}
	var got object
	if err := Decode(plain, &got); err != nil || got != (object{"x", 7}) {
		t.Errorf("%+v, %v", got, err)
	}
	if sig.Statement != s.States("domains/web/x.json") || !sig.ProvenBy(public) || sig.ProvenBy(other) {
		t.Errorf("it is signed wrongly: %+v", sig.Statement)
	}
	// Any byte that is another one is seen, also by who seals it anew.
	body := data[:len(data)-LineLength]
	for i := range body {
		forged := bytes.Clone(body)
		forged[i] ^= 4
		_, sig, err := Open(append(forged, Line(forged)...))
		if err == nil && sig != nil && sig.ProvenBy(public) {
			t.Fatalf("a changed byte %d still is alice's", i)
		}
	}
	if data, err = Seal(object{"x", 7}, "", nil); err != nil {
		t.Fatal(err)
	}
	if _, sig, err := Open(data); sig != nil || err != nil {
		t.Errorf("what is not signed: %+v, %v", sig, err)
	}
}

// OpenSSL proves a signature, as docs/format.md says.
func TestSignatureByHand(t *testing.T) {
	t.Parallel()
	s, public := newSigner(t)
	data, err := Seal(object{"x", 7}, "some/key.json", s)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"object.json": data,
		"key.pem":     pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const byHand = `set -e
head -n -2 object.json >signed
tail -n 2 object.json | head -n 1 | cut -d '"' -f 4 | base64 -d >signature
openssl pkeyutl -verify -pubin -inkey key.pem -rawin -in signed -sigfile signature`
	run := func() error {
		cmd := exec.Command("sh", "-c", byHand)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		return err
	}
	if err := run(); err != nil {
		t.Errorf("openssl: %v", err)
	}
	forged := bytes.Replace(data, []byte(`"x"`), []byte(`"y"`), 1)
	if err := os.WriteFile(filepath.Join(dir, "object.json"), forged, 0o600); err != nil {
		t.Fatal(err)
	}
	if run() == nil {
		t.Error("openssl takes a forged object")
	}
}

// Whatever Open takes, it has proven, and it has one form only.
func FuzzOpen(f *testing.F) {
	s, _ := newSigner(f)
	for _, sign := range []Signer{nil, s} {
		data, err := Seal(object{"x", 7}, "k", sign)
		if err != nil {
			f.Fatal(err)
		}
		body := data[:len(data)-LineLength]
		if _, _, err := Open(data); err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		plain, sig, err := Open(append(bytes.Clone(body), Line(body)...))
		if err != nil {
			return
		}
		if sig != nil && (!bytes.HasPrefix(body, sig.Signed) || len(sig.Signed)+signatureLength != len(body)) {
			t.Errorf("signed is %q of %q", sig.Signed, body)
		}
		if sig == nil && !bytes.HasPrefix(body, plain[:len(plain)-2]) {
			t.Errorf("%q is not what was sealed", plain)
		}

		var v map[string]any
		_ = Decode(plain, &v)
	})
}
