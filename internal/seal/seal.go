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
	"io"
	"slices"
)

const (
	lineBegin = `"sha256":"`
	lineEnd   = "\"}\n"
	// LineLength is the length of the last line of a sealed object, bytes.
	LineLength = len(lineBegin) + 2*sha256.Size + len(lineEnd)

	// Max bounds a sealed object, bytes.
	Max = 64 << 20
	// maxDepth bounds the nesting of a sealed object.
	maxDepth = 32
	// infoField is the field whose content is free.
	infoField = "info"
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
	return append(slices.Clip(body[:len(body)-2]), "\n}"...), signature, nil
}

// Decode decodes exactly one JSON object, strictly: unknown fields, and such that occur
// twice, are errors.
func Decode(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if err := checkValue(d, 0, false); err != nil {
		return fmt.Errorf("its JSON is not valid: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("its JSON is not valid: there is more than one value")
	}
	d = json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("its JSON is not valid: %w", err)
	}
	return nil
}

// checkValue reads one value and refuses what encoding/json lets pass: repeated
// fields, and names that differ from ours in case only. Where names are free,
// only repetition is refused.
func checkValue(d *json.Decoder, depth int, free bool) error {
	t, err := d.Token()
	if err != nil {
		return noEOF(err)
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	if depth >= maxDepth {
		return fmt.Errorf("more than %d levels", maxDepth)
	}
	seen := make(map[string]struct{})
	for d.More() {
		inner := free
		if open == '{' {
			t, err := d.Token()
			if err != nil {
				return noEOF(err)
			}
			name, _ := t.(string)
			if _, twice := seen[name]; twice {
				return fmt.Errorf("field %.80q occurs twice", name)
			}
			seen[name] = struct{}{}
			if !free && !plainName(name) {
				return fmt.Errorf("unknown field %.80q", name)
			}
			inner = free || depth == 0 && name == infoField
		}
		if err := checkValue(d, depth+1, inner); err != nil {
			return err
		}
	}
	_, err = d.Token() // the closing delimiter
	return noEOF(err)
}

// noEOF: an end is unexpected wherever checkValue meets it.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// plainName reports whether a field's name has only bytes that ours have.
func plainName(name string) bool {
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return name != ""
}
