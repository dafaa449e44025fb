// SPDX-License-Identifier: Apache-2.0

package crypt

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

func generation(t *testing.T, n int, hybrid bool) Generation {
	t.Helper()
	g, err := Generate(n, hybrid)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func keys(t *testing.T, g ...Generation) *Keys {
	t.Helper()
	k, err := New(g...)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// What is stored under a generation is read after the next one, and not under the other
// half, nor by who has only public halves: which is told from damage.
func TestOpen(t *testing.T) {
	t.Parallel()
	for _, hybrid := range []bool{false, true} {
		one, two := generation(t, 1, hybrid), generation(t, 2, hybrid)
		content := bytes.Repeat([]byte("guest"), 20_000)
		file, err := keys(t, one).Append([]byte("before"), Data, content[:70_000], content[70_000:])
		if err != nil {
			t.Fatal(err)
		}
		file, ok := bytes.CutPrefix(file, []byte("before"))
		if !ok || bytes.Contains(file, []byte("guestguest")) {
			t.Fatal("what stood before the file is gone, or its content shows")
		}
		got, err := keys(t, one, two).Open(nil, Data, file)
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("opened by a newer generation: %d bytes, %v", len(got), err)
		}
		var ke *KeyError
		if _, err := keys(t, one).Open(nil, Metadata, file); err == nil || errors.As(err, &ke) {
			t.Errorf("opened under the other half: %v, not damage", err)
		}
		one.Data.Identity = nil
		if _, err := keys(t, one).Open(nil, Data, file); !errors.As(err, &ke) || ke.Half != Data {
			t.Errorf("opened without an identity: %v, not a KeyError", err)
		}
	}
}

func TestWrongIdentity(t *testing.T) {
	t.Parallel()
	a, b := generation(t, 1, false), generation(t, 1, false)
	a.Metadata.Identity = b.Metadata.Identity
	var ke *KeyError
	if _, err := New(a); !errors.As(err, &ke) || ke.Half != Metadata {
		t.Errorf("an identity of another key: %v", err)
	}
	if _, err := New(b, b); err == nil {
		t.Error("a generation twice is accepted")
	}
}

// Every flipped bit, every cut and every byte behind is damage, and never a wrong key.
func TestDamage(t *testing.T) {
	t.Parallel()
	k := keys(t, generation(t, 1, false))
	file, err := k.Append(nil, Data, []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	damaged := func(what string, file []byte) {
		t.Helper()
		var ke *KeyError
		if _, err := k.Open(nil, Data, file); err == nil || errors.As(err, &ke) {
			t.Fatalf("%s: %v, not damage", what, err)
		}
	}
	for i := range file {
		for bit := range 8 {
			file[i] ^= 1 << bit
			damaged(fmt.Sprintf("bit %d of byte %d", bit, i), file)
			file[i] ^= 1 << bit
		}
		damaged(fmt.Sprintf("cut at %d", i), file[:i])
	}
	damaged("a byte behind", append(bytes.Clone(file), 0))
	damaged("many recipients", []byte("age-encryption.org/v1\n"+strings.Repeat("-> X25519 a\nb\n", 1000)+"--- x\n"))
}

// An error of the store under a stream stays what it is.
func TestReaderStoreFails(t *testing.T) {
	t.Parallel()
	k := keys(t, generation(t, 1, false))
	file, err := k.Append(nil, Data, make([]byte, 100_000))
	if err != nil {
		t.Fatal(err)
	}
	outage := errors.New("outage")
	for _, n := range []int{0, 100, 5000} {
		r, err := k.Reader(Data, io.MultiReader(bytes.NewReader(file[:n]), iotest.ErrReader(outage)))
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if !errors.Is(err, outage) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

// A chunk's digest is of all its parts and its length, under a key of its own.
func TestDigests(t *testing.T) {
	t.Parallel()
	a, b := keys(t, generation(t, 1, false)).Digests(), keys(t, generation(t, 1, false)).Digests()
	chunk := make([]byte, 3*PartSize+5)
	_, _ = rand.Read(chunk)
	parts := a.Parts(nil, chunk)
	if len(parts) != 4 || parts[3] != a.Part(chunk[3*PartSize:]) {
		t.Fatalf("%d parts", len(parts))
	}
	sum := a.Chunk(len(chunk), parts)
	if sum == b.Chunk(len(chunk), b.Parts(nil, chunk)) {
		t.Error("two secrets give the same digest")
	}
	if sum == a.Chunk(len(chunk)+1, parts) {
		t.Error("the length is not in the digest")
	}
	h := a.Content()
	_, _ = h.Write([]byte("x"))
	if name := a.Name("x"); bytes.Equal(h.Sum(nil), name[:]) {
		t.Error("kinds of digests share a key")
	}
}

func TestPadded(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]int{0: 0, 1: 1, 8: 8, 9: 10, 1023: 1024, 1 << 20: 1 << 20, 1<<20 + 1: 1<<20 + 1<<15} {
		if got := Padded(n); got != want {
			t.Errorf("Padded(%d) is %d, want %d", n, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 4<<20).Draw(t, "n")
		p := Padded(n)
		if p < n || p > n+n/8 || Padded(p) != p {
			t.Fatalf("Padded(%d) is %d, again %d", n, p, Padded(p))
		}
	})
}

// Keys do not show in what is printed of them.
func TestPrint(t *testing.T) {
	t.Parallel()
	g := generation(t, 1, false)
	if text := fmt.Sprintf("%v %+v %#v %s", keys(t, g), keys(t, g), keys(t, g), keys(t, g).Digests()); strings.Contains(text, fmt.Sprint(g.Secret[0], " ", g.Secret[1])) || strings.Contains(text, "AGE") {
		t.Errorf("printed as %s", text)
	}
}
