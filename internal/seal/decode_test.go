// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// many has a field of each kind that sealed objects have.
type many struct {
	head
	Time  time.Time       `json:"time"`
	Last  *time.Time      `json:"last,omitempty"`
	Unit  uint64          `json:"unit"`
	Good  bool            `json:"good,omitempty"`
	Sum   digest          `json:"sum"`
	List  []part          `json:"list"`
	Inner *part           `json:"inner,omitempty"`
	Info  json.RawMessage `json:"info,omitempty"`
}

// digest has a text, as digests of objects do.
type digest [32]byte

func (d digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

func (d *digest) UnmarshalText(text []byte) error {
	if len(text) != 64 {
		return errors.New("not a SHA-256")
	}
	if _, err := hex.Decode(d[:], text); err != nil || bytes.ContainsAny(text, "ABCDEF") {
		return errors.New("not a SHA-256")
	}
	return nil
}

type head struct {
	Name  string   `json:"name"`
	Count int64    `json:"count"`
	Words []string `json:"words,omitempty"`
}

type part struct {
	Name  string `json:"name"`
	Level int    `json:"level"`
}

// decode is how all sealed objects are read.
func decode(data []byte) (v many, err error) {
	if err = Decode(data, &v); err == nil {
		err = CheckFree(v.Info)
	}
	return v, err
}

// decodeTwice is the same by a decoder of another make, which is lenient where Decode is
// not, after a look for what it lets pass.
func decodeTwice(data []byte) (v many, err error) {
	d := json.NewDecoder(bytes.NewReader(data))
	if err := checkValue(d, 0, false); err != nil {
		return v, err
	}
	if _, err := d.Token(); err != io.EOF {
		return v, fmt.Errorf("more than one value: %w", err)
	}
	d = json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err = d.Decode(&v); err == nil && len(v.Info) > 0 && bytes.TrimSpace(v.Info)[0] != '{' {
		err = fmt.Errorf("info is %.80q", v.Info)
	}
	return v, err
}

// checkValue reads one value, and refuses repeated fields, those that are not in lower case,
// and what is too deep. Where names are free, only the last and the first count.
func checkValue(d *json.Decoder, depth int, free bool) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	if depth >= maxDepth {
		return fmt.Errorf("more than %d levels", maxDepth)
	}
	seen := make(map[string]bool)
	for d.More() {
		inner := free
		if open == '{' {
			t, err := d.Token()
			if err != nil {
				return err
			}
			name, _ := t.(string)
			if seen[name] || !free && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
				return fmt.Errorf("field %.80q", name)
			}
			seen[name] = true
			inner = free || depth == 0 && name == "info"
		}
		if err := checkValue(d, depth+1, inner); err != nil {
			return err
		}
	}
	_, err = d.Token() // the closing delimiter
	return err
}

// agree compares both ways to read. Where they differ, ours refuses what the other lets pass:
// text that is not Unicode, and times that are not as RFC 3339 has them.
func agree(t interface{ Errorf(string, ...any) }, data []byte) {
	got, err := decode(data)
	want, other := decodeTwice(data)
	if (err == nil) != (other == nil) {
		if err != nil && (notUnicode(data, want) || errors.As(err, new(*time.ParseError))) {
			return
		}
		t.Errorf("%q: %v, by the other decoder %v", data, err, other)
		return
	}
	if err == nil && !reflect.DeepEqual(got, want) {
		t.Errorf("%q is %+v, by the other decoder %+v", data, got, want)
	}
}

// notUnicode reports whether the other decoder put other characters in the place of what
// is none.
func notUnicode(data []byte, read many) bool {
	if !utf8.Valid(data) {
		return true
	}
	again, err := json.Marshal(read)
	return err != nil || bytes.ContainsRune(again, utf8.RuneError) || strings.Contains(strings.ToLower(string(read.Info)), `\ud`)
}

const good = `{"name": "x", "count": -5, "words": ["a", "\u00e9\n"], "time": "2026-11-28T10:00:00.5Z", "last": null, "unit": 18446744073709551615,
	"good": true, "sum": "00000000000000000000000000000000000000000000000000000000000000ff", "list": [{"name": "p", "level": 1}, {}],
	"inner": {"level": 2}, "info": {"Any": [{"deep": null}, 1.5, "x"]}}`

func TestDecodeIsStrict(t *testing.T) {
	t.Parallel()
	v, err := decode([]byte(good))
	if err != nil || v.Count != -5 || v.Unit != 1<<64-1 || v.Words[1] != "é\n" || v.Sum[31] != 0xff || len(v.List) != 2 || v.Inner.Level != 2 {
		t.Fatalf("%+v, %v", v, err)
	}
	nested := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for body, says := range map[string]string{
		`{"other": 1}`:                        `unknown field "other"`,
		`{"Count": 1}`:                        `unknown field "Count"`,
		"{\"\u212aey\": 1}":                   "unknown field",
		`{"list": [{"Name": "x"}]}`:           `unknown field "Name"`,
		`{"name": "x", "name": "y"}`:          `field "name" occurs twice`,
		`{"n\u0061me": "x", "name": "y"}`:     `field "name" occurs twice`,
		`{"list": [{"name":"","name":""}]}`:   `field "name" occurs twice`,
		`{"info": {"a": 1, "a": 2}}`:          `field "a" occurs twice`,
		`{"info": [{"a": 1}]}`:                "not a JSON object",
		`{"info": null}`:                      "not a JSON object",
		`{"info": {"a": ` + nested(31) + `}}`: "more than 32 levels",
		`{"list": ` + nested(40) + `}`:        `"/list/0" is a [`,
		`{"count": "7"}`:                      `"/count" is a string`,
		`{"count": 9223372036854775808}`:      `"/count": value out of range`,
		`{"count": 1.5}`:                      `"/count": invalid syntax`,
		`{"count": 1e2}`:                      `"/count": invalid syntax`,
		`{"unit": -1}`:                        `"/unit": invalid syntax`,
		`{"time": "yesterday"}`:               `"/time": parsing time`,
		`{"sum": "xyz"}`:                      `"/sum": not a SHA-256`,
		"{\"name\": \"\xff\"}":                "invalid UTF-8",
		`{"name": "\ud800"}`:                  "invalid surrogate pair",
		`{} {}`:                               "after top-level value",
		`{"count": 1}]`:                       "after top-level value",
		`{"count"}`:                           "at byte 8",
		`{"words": [`:                         "unexpected EOF",
		`{"words": ["a",]}`:                   "at byte 14: invalid character ','",
		`[1]`:                                 "is a [",
		``:                                    "unexpected EOF",
	} {
		if v, err := decode([]byte(body)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %+v, %v; want an error with %q", body, v, err, says)
		}
		agree(t, []byte(body))
	}
	for _, body := range []string{good, `{}`, `{"info": {"a": ` + nested(30) + `}}`} {
		if _, err := decode([]byte(body)); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		agree(t, []byte(body))
	}
}

// Made objects are read alike by both decoders.
func TestDecodersAgree(t *testing.T) {
	t.Parallel()
	names := rapid.SampledFrom([]string{"name", "count", "words", "time", "last", "unit", "good", "sum", "list", "inner", "level", "info", "Name", "a", "", "n\\u0061me"})
	leaf := rapid.SampledFrom([]string{
		"null", "true", "0", "-0", "1", "-7", "1.0", "1e1", "01", "9223372036854775807", "9223372036854775808", "18446744073709551615", `""`, `"x"`, `"\ud83d\ude00"`, `"\udead"`, "\"\xc3\x28\"",
		`"2026-11-28T10:00:00Z"`, `"2026-11-28T10:00:00+00:00"`, `"2026-11-28T10:00:00,5Z"`, `"2026-11-28t10:00:00z"`, `"2026-11-28T24:00:00Z"`, `"2026-11-28T1:00:00Z"`, `"0000-01-01T00:00:00Z"`, `"10000-01-01T00:00:00Z"`, `"2026-11-28T10:00:00.1234567890Z"`,
		`"00000000000000000000000000000000000000000000000000000000000000ff"`, `"00000000000000000000000000000000000000000000000000000000000000FF"`, "x", "]", "{", "[1,]", `"`,
	})
	var value func(depth int) *rapid.Generator[string]
	object := func(depth int) *rapid.Generator[string] {
		return rapid.Custom(func(t *rapid.T) string {
			var fields []string
			for range rapid.IntRange(0, 4).Draw(t, "fields") {
				fields = append(fields, `"`+names.Draw(t, "name")+`":`+value(depth+1).Draw(t, "value"))
			}
			return "{" + strings.Join(fields, ", ") + "}"
		})
	}
	value = func(depth int) *rapid.Generator[string] {
		if depth > 3 {
			return leaf
		}
		list := rapid.Custom(func(t *rapid.T) string {
			return "[" + strings.Join(rapid.SliceOfN(value(depth+1), 0, 3).Draw(t, "list"), ",") + "]"
		})
		return rapid.OneOf(leaf, leaf, list, object(depth))
	}
	rapid.Check(t, func(t *rapid.T) { agree(t, []byte(object(0).Draw(t, "object"))) })
}

func FuzzDecode(f *testing.F) {
	if _, err := decode([]byte(good)); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(good))
	f.Add([]byte(`{"info": {"a": "b"}}`))
	f.Fuzz(func(t *testing.T, data []byte) { agree(t, data) })
}
