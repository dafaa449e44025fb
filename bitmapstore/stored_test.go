// SPDX-License-Identifier: Apache-2.0

package bitmapstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"
)

func opener(stored []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(stored)), nil }
}

func compress(t testing.TB, text string) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	return z.EncodeAll([]byte(text), nil)
}

func line(start, length int64) string { return fmt.Sprintf("%19d %19d\n", start, length) }

const head = "imgbackup-bitmap 1\nname cp.0123\ngranularity 65536\nsize 1000000\n"

func TestStoredRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		shift := rapid.IntRange(0, 31).Draw(t, "granularity bits")
		h := Header{
			Name:        string(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "name")),
			Granularity: 1 << shift,
			Size:        rapid.Int64Range(0, 200<<shift).Draw(t, "size"),
		}
		var runs []Run
		for range rapid.IntRange(0, 30).Draw(t, "runs") {
			start := rapid.Int64Range(0, 200<<shift).Draw(t, "start")
			runs = append(runs, Run{start, start + rapid.Int64Range(1, 20<<shift).Draw(t, "length")})
		}
		set := Of(runs...).Round(h.Granularity, h.Size)
		want, err := set.Collect()
		if err != nil {
			t.Fatal(err)
		}
		var stored, again bytes.Buffer
		n, dirty, err := Encode(&stored, h, set)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := Encode(&again, h, set); err != nil || !bytes.Equal(stored.Bytes(), again.Bytes()) {
			t.Fatalf("the second encoding differs (%v)", err)
		}
		got, decoded, err := Decode(opener(stored.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		h.DirtyBytes = dirty
		if sum, _ := set.Bytes(); got != h || dirty != sum || n != int64(len(want)) {
			t.Fatalf("header %+v, %d runs, want %+v, %d runs, %d bytes", got, n, h, len(want), sum)
		}
		for range 2 {
			if runs, err := decoded.Collect(); err != nil || !slices.Equal(runs, want) {
				t.Fatalf("runs %v, %v, want %v", runs, err, want)
			}
		}
	})
}

// The stored form is text that zstd and awk can read.
func TestStoredTextWithZstd(t *testing.T) {
	t.Parallel()
	var stored bytes.Buffer
	set := Of(Run{0, 65536}, Run{131072, 262144}, Run{983040, 1000000})
	if _, _, err := Encode(&stored, Header{Name: "a b/ü", Granularity: 65536, Size: 1000000}, set); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("zstd", "-dc")
	cmd.Stdin = &stored
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("zstd: %v", err)
	}
	want := "imgbackup-bitmap 1\nname a%20b%2F%C3%BC\ngranularity 65536\nsize 1000000\n" +
		line(0, 65536) + line(131072, 131072) + line(983040, 16960) + "end 3 213568\n"
	if string(out) != want {
		t.Fatalf("text:\n%s\nwant:\n%s", out, want)
	}
}

func TestEncodeRefuses(t *testing.T) {
	t.Parallel()
	good := Header{Name: "n", Granularity: 65536, Size: 1000000}
	for name, c := range map[string]struct {
		h   Header
		set Runs
	}{
		"granularity":  {Header{Granularity: 3, Size: 10}, Of()},
		"size":         {Header{Granularity: 1, Size: -1}, Of()},
		"name":         {Header{Name: strings.Repeat("x", maxLine), Granularity: 1}, Of()},
		"beyond":       {good, Of(Run{983040, 1000001})},
		"unaligned":    {good, Of(Run{1, 65536})},
		"unaligned to": {good, Of(Run{0, 65537})},
		"order": {good, func(yield func(Run, error) bool) {
			_ = yield(Run{65536, 131072}, nil) && yield(Run{0, 65536}, nil)
		}},
		"touching": {good, func(yield func(Run, error) bool) {
			_ = yield(Run{0, 65536}, nil) && yield(Run{65536, 131072}, nil)
		}},
		"empty run": {good, func(yield func(Run, error) bool) { yield(Run{65536, 65536}, nil) }},
		"source":    {good, broken(Run{0, 65536})},
	} {
		if _, _, err := Encode(io.Discard, c.h, c.set); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, _, err := Encode(failingWriter{}, good, Of()); !errors.Is(err, errTest) {
		t.Errorf("failing writer: %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errTest }

func TestDecodeFindsDamage(t *testing.T) {
	t.Parallel()
	whole := head + line(0, 65536) + line(131072, 65536) + "end 2 131072\n"
	if _, _, err := Decode(opener(compress(t, whole))); err != nil {
		t.Fatalf("the good text: %v", err)
	}
	replace := func(old, new string) string { return strings.Replace(whole, old, new, 1) }
	for name, text := range map[string]string{
		"nothing":              "",
		"magic":                replace("imgbackup-bitmap 1", "imgbackup-bitmap 2"),
		"no name":              replace("name cp.0123\n", ""),
		"name not escaped":     replace("cp.0123", "cp 0123"),
		"name escaped less":    replace("cp.0123", "cp%2"),
		"name escaped more":    replace("cp.0123", "cp%2E0123"),
		"name in lower case":   replace("cp.0123", "cp%2f0123"),
		"name with a sign":     replace("cp.0123", "cp%+F0123"),
		"granularity 3":        replace("granularity 65536", "granularity 3"),
		"granularity 0":        replace("granularity 65536", "granularity 0"),
		"granularity 01":       replace("granularity 65536", "granularity 065536"),
		"granularity too big":  replace("granularity 65536", "granularity 99999999999999999999"),
		"size negative":        replace("size 1000000", "size -1"),
		"size with sign":       replace("size 1000000", "size +1000000"),
		"size too small":       replace("size 1000000", "size 196607"),
		"run gone":             replace(line(0, 65536), ""),
		"run twice":            replace(line(0, 65536), line(0, 65536)+line(0, 65536)),
		"run touches":          replace(line(131072, 65536), line(65536, 65536)),
		"run empty":            replace(line(0, 65536), line(0, 0)),
		"run unaligned":        replace(line(0, 65536), line(1, 65535)),
		"run end unaligned":    replace(line(0, 65536), line(0, 65535)),
		"run overflows":        replace(line(0, 65536), line(0, 65536)+line(9223372036854775807, 9223372036854775807)),
		"run with zeros":       replace(line(0, 65536), fmt.Sprintf("%019d %019d\n", 0, 65536)),
		"run too narrow":       replace(line(0, 65536), "0 65536\n"),
		"run with a letter":    replace(line(0, 65536), line(0, 65536)[:18]+"x"+line(0, 65536)[19:]),
		"run number too big":   replace(line(0, 65536), "                  0 9999999999999999999\n"),
		"other line feed":      replace("65536\nsize", "65536\r\nsize"),
		"last line gone":       replace("end 2 131072\n", ""),
		"last line cut":        replace("131072\n", "131072")[:len(whole)-1],
		"last line's runs":     replace("end 2", "end 3"),
		"last line's bytes":    replace("end 2 131072", "end 2 131073"),
		"text behind":          whole + "x",
		"second bitmap behind": whole + whole,
		"endless line":         head + strings.Repeat("x", 1<<20),
	} {
		_, _, err := Decode(opener(compress(t, text)))
		var damage *DamageError
		if !errors.As(err, &damage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Every flipped bit and every cut of the compressed form is found.
func TestDecodeFindsFlippedBits(t *testing.T) {
	t.Parallel()
	var stored bytes.Buffer
	h := Header{Name: "x", Granularity: 512, Size: 1 << 40}
	if _, _, err := Encode(&stored, h, Of(Run{512, 4096}, Run{1 << 20, 1 << 21}, Run{1 << 30, 1 << 31})); err != nil {
		t.Fatal(err)
	}
	want, set, err := Decode(opener(stored.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for bit := range stored.Len() * 8 {
		flipped := bytes.Clone(stored.Bytes())
		flipped[bit/8] ^= 1 << (bit % 8)
		got, runs, err := Decode(opener(flipped))
		var damage *DamageError
		if errors.As(err, &damage) {
			found++
			continue
		}
		// Some bits of a zstd frame header mean nothing; then the content is the same.
		same := err == nil
		if same {
			same, err = Equal(set, runs)
		}
		if !same || got != want {
			t.Fatalf("bit %d: %+v, %v", bit, got, err)
		}
	}
	if found < stored.Len()*8*9/10 {
		t.Fatalf("only %d flips of %d were found", found, stored.Len()*8)
	}
	for n := range stored.Len() {
		var damage *DamageError
		if _, _, err := Decode(opener(stored.Bytes()[:n])); !errors.As(err, &damage) {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
	}
}

// What changes between two iterations is noticed.
func TestDecodeAgainAfterChange(t *testing.T) {
	t.Parallel()
	current := compress(t, head+line(0, 65536)+"end 1 65536\n")
	closed := 0
	_, set, err := Decode(func() (io.ReadCloser, error) {
		return closeCounter{bytes.NewReader(current), &closed}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for range set { // stopped in the middle
		break
	}
	current = compress(t, strings.Replace(head, "1000000", "1000001", 1)+line(0, 65536)+"end 1 65536\n")
	var damage *DamageError
	if _, err := set.Collect(); !errors.As(err, &damage) {
		t.Fatalf("changed header: %v", err)
	}
	if closed != 3 {
		t.Fatalf("%d of 3 readers were closed", closed)
	}
}

type closeCounter struct {
	io.Reader
	closed *int
}

func (c closeCounter) Close() error { *c.closed++; return nil }

// An outage is not damage.
func TestDecodeOutage(t *testing.T) {
	t.Parallel()
	stored := compress(t, head+line(0, 65536)+"end 1 65536\n")
	for name, open := range map[string]func() (io.ReadCloser, error){
		"open": func() (io.ReadCloser, error) { return nil, errTest },
		"read": func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(stored[:20]), failingReader{})), nil
		},
		"close": func() (io.ReadCloser, error) { return failingCloser{bytes.NewReader(stored)}, nil },
	} {
		_, _, err := Decode(open)
		var damage *DamageError
		if !errors.Is(err, errTest) || errors.As(err, &damage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errTest }

type failingCloser struct{ io.Reader }

func (failingCloser) Close() error { return errTest }

func fuzzSeeds() []string {
	return []string{
		"", head, head + "end 0 0\n",
		head + line(0, 65536) + line(131072, 65536) + "end 2 131072\n",
		head + line(983040, 16960) + "end 1 16960\n",
		"imgbackup-bitmap 1\nname %00%FF\ngranularity 1\nsize 0\nend 0 0\n",
	}
}

// FuzzDecodeText: what is accepted is exactly what Encode writes.
func FuzzDecodeText(f *testing.F) {
	accepted := 0
	for _, s := range fuzzSeeds() {
		f.Add(s)
		if _, _, err := Decode(opener(compress(f, s))); err == nil {
			accepted++
		}
	}
	if accepted < 4 {
		f.Fatalf("only %d seeds are good bitmaps", accepted)
	}
	f.Fuzz(func(t *testing.T, text string) {
		h, set, err := Decode(opener(compress(t, text)))
		if err != nil {
			var damage *DamageError
			if !errors.As(err, &damage) {
				t.Fatalf("not called damage: %v", err)
			}
			return
		}
		var stored bytes.Buffer
		if _, _, err := Encode(&stored, h, set); err != nil {
			t.Fatal(err)
		}
		z, err := zstd.NewReader(&stored)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		if again, err := io.ReadAll(z); err != nil || string(again) != text {
			t.Fatalf("%q became %q (%v)", text, again, err)
		}
	})
}

// FuzzDecode: any bytes are refused or give a set that keeps its promises.
func FuzzDecode(f *testing.F) {
	seeds := 0
	for _, s := range fuzzSeeds() {
		f.Add(compress(f, s))
		seeds++
	}
	if seeds == 0 {
		f.Fatal("no seeds")
	}
	f.Fuzz(func(t *testing.T, stored []byte) {
		h, set, err := Decode(opener(stored))
		if err != nil {
			return
		}
		c := runChecker{h: h}
		for r, err := range set {
			if err == nil {
				err = c.add(r)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if c.dirty != h.DirtyBytes {
			t.Fatalf("%d dirty bytes, the header says %d", c.dirty, h.DirtyBytes)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	w := &countingWriter{}
	if _, _, err := Encode(w, Header{Granularity: 65536, Size: 1 << 60}, alternating(int64(b.N))); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(w.n)/float64(b.N), "B/run")
}

func BenchmarkDecode(b *testing.B) {
	var stored bytes.Buffer
	if _, _, err := Encode(&stored, Header{Granularity: 65536, Size: 1 << 60}, alternating(int64(b.N))); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	if _, _, err := Decode(opener(stored.Bytes())); err != nil {
		b.Fatal(err)
	}
}

type countingWriter struct{ n int64 }

func (c *countingWriter) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }
