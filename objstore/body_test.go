// SPDX-License-Identifier: Apache-2.0

package objstore_test

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/objstore"
)

func TestConcat(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOf(rapid.SliceOf(rapid.Byte())).Draw(t, "parts")
		var bodies []objstore.Body
		for _, p := range parts {
			bodies = append(bodies, bytes.NewReader(p))
		}
		want := bytes.Join(parts, nil)
		body := objstore.Concat(bodies...)
		if body.Size() != int64(len(want)) {
			t.Fatalf("size %d, want %d", body.Size(), len(want))
		}
		if err := iotest.TestReader(io.NewSectionReader(body, 0, body.Size()), want); err != nil {
			t.Fatal(err)
		}
		off := rapid.Int64Range(0, int64(len(want))+3).Draw(t, "offset")
		p := make([]byte, rapid.IntRange(0, len(want)+3).Draw(t, "length"))
		n, err := body.ReadAt(p, off)
		wantN, wantErr := bytes.NewReader(want).ReadAt(p, off)
		if n != wantN || err != wantErr && len(p) > 0 {
			t.Fatalf("ReadAt(%d, %d): %d, %v; want %d, %v", len(p), off, n, err, wantN, wantErr)
		}
	})
}

func TestConcatOfShortPart(t *testing.T) {
	t.Parallel()
	short := shortBody{strings.NewReader("abc")}
	body := objstore.Concat(short, strings.NewReader("def"))
	if n, err := body.ReadAt(make([]byte, 7), 0); n != 3 || err != io.ErrUnexpectedEOF {
		t.Errorf("a part that is shorter than it says: %d, %v", n, err)
	}
}

// shortBody claims one byte more than it has.
type shortBody struct{ *strings.Reader }

func (s shortBody) Size() int64 { return s.Reader.Size() + 1 }

func FuzzCheckKey(f *testing.F) {
	seeds := []string{"a", "packs/ab/abcd.zst", "../a", "a/../b", "a\x00", "tmp/x", "domains/a%2Fb/checkpoints/1.json"}
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if objstore.CheckKey(key) != nil {
			return
		}
		if key == "" || strings.HasPrefix(key, "/") || strings.ContainsAny(key, "\x00\\ \n") || len(key) > objstore.MaxKeyLength {
			t.Fatalf("key %q is valid", key)
		}
		for part := range strings.SplitSeq(key, "/") {
			if part == ".." || part == "." || part == "" {
				t.Fatalf("key %q is valid", key)
			}
		}
	})
}
