// SPDX-License-Identifier: Apache-2.0

// Package seal is the form that a repository's JSON has: a last line with the SHA-256 of all
// before it, and, where it is signed, two lines above that say who did and prove it.
// docs/format.md ("Sealed JSON") is its specification.
package seal

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

const (
	lineBegin = `"sha256":"`
	lineEnd   = "\"}\n"
	// LineLength is the length of the last line of a sealed object, bytes.
	LineLength = len(lineBegin) + 2*sha256.Size + len(lineEnd)

	// Max bounds a sealed object, bytes.
	Max = 64 << 20
)

// Seal writes v, which must encode to a JSON object with at least one field, as
// indented JSON whose last line is exactly
//
//	"sha256":"<64 lower-case hex digits>"}
//
// and a newline. The digest covers all bytes before that line. Unless sign is nil it is
// asked to sign, for the lines before; see [Signer].
func Seal(v any, key string, sign Signer) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	body, ok := bytes.CutSuffix(b.Bytes(), []byte("\n}\n"))
	if !ok || body[0] != '{' {
		return nil, fmt.Errorf("encode: %T is no JSON object with a field", v)
	}
	body = append(body, ",\n"...)
	if sign != nil {
		var err error
		if body, err = appendSignature(body, key, sign); err != nil {
			return nil, err
		}
	}
	body = append(body, Line(body)...)
	if len(body) > Max {
		return nil, fmt.Errorf("encode: %d bytes are more than the %d that are allowed", len(body), Max)
	}
	return body, nil
}

// Line is the last line of an object that has body before it.
func Line(body []byte) string {
	sum := sha256.Sum256(body)
	return lineBegin + hex.EncodeToString(sum[:]) + lineEnd
}

// Digest is the digest in the last line of a sealed object, which [Open] has proven.
func Digest(data []byte) string {
	at := len(data) - LineLength + len(lineBegin)
	return string(data[at : at+2*sha256.Size])
}

// Open proves the digest of data and returns the JSON without it, and without the lines of a
// signature, which is not proven yet; nil: there is none.
func Open(data []byte) (plain []byte, signature *Signature, err error) {
	at := len(data) - LineLength
	if at < 0 || len(data) > Max || !bytes.HasSuffix(data[:at], []byte(",\n")) {
		return nil, nil, errors.New("it does not end with the line of its SHA-256")
	}
	if string(data[at:]) != Line(data[:at]) {
		return nil, nil, errors.New("the SHA-256 in its last line is not that of its content")
	}
	body, signature, err := cutSignature(data[:at])
	if err != nil {
		return nil, nil, err
	}
	plain = make([]byte, len(body)) // as long: "\n}" takes the place of ",\n"
	copy(plain, body)
	copy(plain[len(plain)-2:], "\n}")
	return plain, signature, nil
}
