// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
)

// Statement is what a signature says beside the object itself, so that an object that was
// moved to another key, or to another repository, does not prove itself there.
type Statement struct {
	By         string `json:"by"`         // the member of the roster who signs
	Generation int    `json:"generation"` // of the keys that it was written with, from 1
	Repository string `json:"repository"` // its id
	Key        string `json:"key"`        // where the object stands
}

// Signature is what stands in two lines of a signed object:
//
//	"signed":{"by":"…","generation":1,"repository":"…","key":"…"},
//	"signature":"<88 characters of base64>",
//
// It is Ed25519's, of all bytes before the second one.
type Signature struct {
	Statement
	Signed    []byte // the bytes that are signed
	Signature [ed25519.SignatureSize]byte
}

// Signer signs what one member of a repository's roster stores.
type Signer interface {
	// States is what it says of an object that it is to sign.
	States(key string) Statement
	// Sign signs bytes.
	Sign(signed []byte) ([]byte, error)
}

const (
	signedBegin    = `"signed":`
	signatureBegin = `"signature":"`
	signatureEnd   = "\",\n"
	// signatureLength is that of the line, bytes: 64 bytes are 88 characters.
	signatureLength = len(signatureBegin) + 88 + len(signatureEnd)
	// maxSignedLine bounds the other line, bytes: a key has at most 1,024.
	maxSignedLine = 4096
)

// appendSignature signs body, which ends with a line feed.
func appendSignature(body []byte, key string, sign Signer) ([]byte, error) {
	line, err := signedLine(sign.States(key))
	if err != nil {
		return nil, err
	}
	body = append(body, line...)
	sig, err := sign.Sign(body)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", key, err)
	}
	return append(body, signatureLine(sig)...), nil
}

func signedLine(s Statement) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(signedBegin)
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	line := append(bytes.TrimSuffix(b.Bytes(), []byte("\n")), ",\n"...)
	if len(line) > maxSignedLine {
		return nil, fmt.Errorf("encode: what is signed has %d bytes, at most %d are allowed", len(line), maxSignedLine)
	}
	return line, nil
}

func signatureLine(sig []byte) string {
	return signatureBegin + base64.StdEncoding.EncodeToString(sig) + signatureEnd
}

// cutSignature takes the lines of a signature from the end of body, where they are. They
// have exactly one form.
func cutSignature(body []byte) ([]byte, *Signature, error) {
	at := len(body) - signatureLength
	if at < 1 || !bytes.HasPrefix(body[at:], []byte(signatureBegin)) || body[at-1] != '\n' {
		return body, nil, nil
	}
	s := &Signature{Signed: body[:at:at]}
	text := body[at+len(signatureBegin) : len(body)-len(signatureEnd)]
	sig, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil || len(sig) != ed25519.SignatureSize || signatureLine(sig) != string(body[at:]) {
		return nil, nil, errors.New("the line of its signature is none")
	}
	copy(s.Signature[:], sig)
	from := bytes.LastIndexByte(body[:at-1], '\n') + 1
	if from < 2 || at-from > maxSignedLine || !bytes.HasPrefix(body[from:at], []byte(signedBegin)) {
		return nil, nil, errors.New("it is signed, but does not say by whom")
	}
	said := bytes.TrimSuffix(body[from+len(signedBegin):at], []byte(",\n"))
	if err := Decode(said, &s.Statement); err != nil {
		return nil, nil, err
	}
	if again, err := signedLine(s.Statement); err != nil || !bytes.Equal(again, body[from:at]) {
		return nil, nil, errors.New("what it says of its signature is not as it is written")
	}
	if !bytes.HasSuffix(body[:from], []byte(",\n")) {
		return nil, nil, errors.New("there is nothing that is signed")
	}
	return body[:from:from], s, nil
}

// ProvenBy reports whether the signature is that of a public key.
func (s *Signature) ProvenBy(public ed25519.PublicKey) bool {
	return len(public) == ed25519.PublicKeySize && ed25519.Verify(public, s.Signed, s.Signature[:])
}
