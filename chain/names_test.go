// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/objstore"
)

func TestCheckName(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"a", "-", "_", "web-1.example_com", "2026-11-21T074900Z", "a..b", "A.", strings.Repeat("x", 200), "tmp"} {
		if err := CheckName(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
		if err := objstore.CheckKey(ManifestKey(s, s)); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", ".", "..", ".x", "a/b", "a b", "ä", "a\x00", "a\n", "a%20", "a:b", "a,b", strings.Repeat("x", 201)} {
		if CheckName(s) == nil {
			t.Errorf("%q is valid", s)
		}
	}
}

func TestCheckDomain(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"a", "-", "Windows 10", "büro", "a%20b", "a,b:c", "100%", strings.Repeat("x", 200), strings.Repeat("ü", 42), "日本"} {
		if err := CheckDomain(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
		if err := objstore.CheckKey(ManifestKey(s, "c1")); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", ".", "..", ".x", "a/b", "a\x00", "a\n", "a\tb", "\x7f", "\xff", "\u2028", "\u202e", strings.Repeat("x", 201), strings.Repeat("ü", 43)} {
		if CheckDomain(s) == nil {
			t.Errorf("%q is valid", s)
		}
	}
}

func TestEncodeDomain(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"web-1.a_b": "web-1.a_b", "..": "%2E.", ".x": "%2Ex", "a/b": "a%2Fb", "a b": "a%20b", "ü": "%C3%BC", "100%": "100%25", "a\x00": "a%00",
	} {
		if got := EncodeDomain(in); got != want {
			t.Errorf("EncodeDomain(%q) = %q, want %q", in, got, want)
		}
	}
	for _, bad := range []string{"", "a%2", "a%", "%2f", "%41", "a%2E", "a b", "ü", "a/b", ".", "..", "%zz"} {
		if got, err := DecodeDomain(bad); err == nil {
			t.Errorf("DecodeDomain(%q) = %q", bad, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		in := string(rapid.SliceOfN(rapid.Byte(), 1, 80).Draw(t, "domain"))
		part := EncodeDomain(in)
		if err := objstore.CheckKey("domains/" + part); err != nil {
			t.Fatal(err)
		}
		if out, err := DecodeDomain(part); err != nil || out != in {
			t.Fatalf("%q → %q → %q, %v", in, part, out, err)
		}
	})
}

func TestBitmapName(t *testing.T) {
	t.Parallel()
	if got := BitmapName("cp", "01234567-89ab-cdef-0123-456789abcdef"); got != "cp.0123456789abcdef" {
		t.Error(got)
	}
}

func TestTextRoundTrip(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"/images/web.qcow2": "/images/web.qcow2", "ünï\uFFFDcode": "ünï\uFFFDcode", "a\xffb": `a\xffb`, "a\\x41": `a\x5cx41`, "a\nb\x7f": `a\x0ab\x7f`, "": "",
	} {
		if got, _ := escapeText(in); got != want {
			t.Errorf("escapeText(%q) = %q, want %q", in, got, want)
		}
	}
	for _, bad := range []string{`\`, `\x`, `\x4`, `\x41`, `\xFF`, `\n`, "a\nb", "\xff", `\x+f`, `\xc3\xbc`} {
		if got, err := unescapeText(bad); err == nil {
			t.Errorf("unescapeText(%q) = %q", bad, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		in := string(rapid.SliceOf(rapid.Byte()).Draw(t, "text"))
		s, err := escapeText(in)
		if err != nil || !utf8.ValidString(s) {
			t.Fatalf("%q, %v", s, err)
		}
		if out, err := unescapeText(s); err != nil || out != in {
			t.Fatalf("%q → %q → %q, %v", in, s, out, err)
		}
	})
}

func TestReadable(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"abc": "abc", "a\xffb": "a\uFFFDb", "0123456789": "0123456789", "0123456789a": "0123456…", "012345üü678": "012345…"} {
		if got := readable(in, 10); got != want {
			t.Errorf("readable(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzKeys(f *testing.F) {
	id := "7b0f8f1e-6a2c-4a52-9a53-0a3a4a4a4a4a"
	seeds := map[string]KeyKind{
		ConfigKey: KeyConfig, ManifestKey("a/b", "cp"): KeyManifest, intentKey("web", id): KeyIntent, leaseKey("host", id): KeyLease,
		strikeKey("host", id): KeyStrike, "leases/host/strikes/" + id: KeyUnknown,
		forgottenKey("a/b"): KeyForgotten, "domains/web/other.json": KeyUnknown, "domains/%61/forgotten.json": KeyUnknown,
		"packs/ab/" + strings.Repeat("ab", 32) + ".zst": KeyData, "domains/web/checkpoints/.json": KeyUnknown, "domains/%61/checkpoints/a.json": KeyUnknown,
		"index/host_1.a-b/ab/" + strings.Repeat("ab", 32) + ".zst": KeyData, "index/ab/" + strings.Repeat("ab", 32) + ".zst": KeyUnknown,
		"index/.host/ab/" + strings.Repeat("ab", 32) + ".zst": KeyUnknown, "index/%41/ab/" + strings.Repeat("ab", 32) + ".zst": KeyUnknown,
		"index//ab/" + strings.Repeat("ab", 32) + ".zst": KeyUnknown, "index/a/b/ab/" + strings.Repeat("ab", 32) + ".zst": KeyUnknown,
		"leases/" + strings.ToUpper(id) + ".json": KeyUnknown, "domains/../checkpoints/a.json": KeyUnknown,
	}
	for key, kind := range seeds {
		if got := ParseKey(key); got.Kind != kind {
			f.Fatalf("ParseKey(%s) = %+v, want kind %d", key, got, kind)
		}
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		k := ParseKey(key)
		var again string
		switch k.Kind {
		case KeyManifest:
			again = ManifestKey(k.Domain, k.Name)
		case KeyIntent:
			again = intentKey(k.Domain, k.Name)
		case KeyLease:
			again = leaseKey(k.Host, k.Name)
		case KeyStrike:
			again = strikeKey(k.Host, k.Name)
		case KeyForgotten:
			again = forgottenKey(k.Domain)
		default:
			return
		}
		if again != key {
			t.Fatalf("%q and %q are the same %+v", key, again, k)
		}
	})
}
