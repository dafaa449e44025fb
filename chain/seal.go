// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
)

const (
	sealBegin = `"sha256":"`
	sealEnd   = "\"}\n"
	// sealLength is the length of the last line of a sealed object, bytes.
	sealLength = len(sealBegin) + 64 + len(sealEnd)

	// maxSealed bounds a sealed object, bytes.
	maxSealed = 64 << 20
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
// and a newline. The digest covers all bytes before that line.
func Seal(v any) ([]byte, error) {
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
	sum := archive.Sum(body)
	body = append(body, sealLine(sum)...)
	if len(body) > maxSealed {
		return nil, fmt.Errorf("encode: %d bytes are more than the %d that are allowed", len(body), maxSealed)
	}
	return body, nil
}

func sealLine(sum archive.Digest) string { return sealBegin + sum.String() + sealEnd }

// unsealed proves data and returns the JSON without the digest.
func unsealed(data []byte) ([]byte, error) {
	at := len(data) - sealLength
	if at < 0 || len(data) > maxSealed || !bytes.HasSuffix(data[:at], []byte(",\n")) {
		return nil, errors.New("it does not end with the line of its SHA-256")
	}
	if string(data[at:]) != sealLine(archive.Sum(data[:at])) {
		return nil, errors.New("the SHA-256 in its last line is not that of its content")
	}
	return append(slices.Clip(data[:at-2]), "\n}"...), nil
}

// decodeStrict decodes exactly one JSON object.
func decodeStrict(data []byte, v any) error {
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

// withTexts is an object with texts, which are escaped where it is stored.
type withTexts[T any] interface {
	*T
	mapTexts(do func(string) (string, error)) (*T, error)
	Validate() error
}

// parseAs proves the bytes of an object under a key and that it belongs there, as belongs
// says, and takes the escapes out of its texts. The error is an archive.DamageError or a
// NewerError.
func parseAs[T any, P withTexts[T]](data []byte, key, format string, belongs func(P) error) (P, error) {
	var stored T
	if err := unsealAs(data, key, format, &stored); err != nil {
		return nil, err
	}
	v, err := P(&stored).mapTexts(unescapeText)
	if err == nil {
		err = P(v).Validate()
	}
	if err == nil {
		err = belongs(v)
	}
	if err != nil {
		return nil, archive.Damaged(key, err)
	}
	return v, nil
}
