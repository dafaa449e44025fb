// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/seal"
)

type sealed struct {
	Name  string          `json:"name"`
	Count int64           `json:"count"`
	List  []string        `json:"list"`
	Info  json.RawMessage `json:"info,omitempty"`
}

func TestSealIsReadable(t *testing.T) {
	t.Parallel()
	got, err := Seal(sealed{Name: "a <b> & c", Count: 7, List: []string{"x"}})
	if err != nil {
		t.Fatal(err)
	}
	body := "{\n  \"name\": \"a <b> & c\",\n  \"count\": 7,\n  \"list\": [\n    \"x\"\n  ],\n"
	want := body + `"sha256":"` + archive.Sum([]byte(body)).String() + "\"}\n"
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if !json.Valid(got) {
		t.Error("it is not JSON")
	}
}

func TestSealRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		in := sealed{Name: rapid.String().Draw(t, "name"), Count: rapid.Int64().Draw(t, "count"), List: rapid.SliceOf(rapid.String()).Draw(t, "list")}
		data, err := Seal(in)
		if err != nil {
			t.Fatal(err)
		}
		var out sealed
		if err := unseal(data, "key", &out); err != nil {
			t.Fatal(err)
		}
		if in.Name != out.Name || in.Count != out.Count || len(in.List) != len(out.List) || len(in.List) > 0 && !reflect.DeepEqual(in.List, out.List) {
			t.Fatalf("%+v became %+v", in, out)
		}
	})
}

func TestSealRefusesWhatIsNoObject(t *testing.T) {
	t.Parallel()
	for _, v := range []any{7, "x", nil, []int{1, 2}, struct{}{}, map[string]int{}, func() {}} {
		if got, err := Seal(v); err == nil {
			t.Errorf("%T was sealed: %s", v, got)
		}
	}
}

// TestFlipEveryBit flips every bit of a manifest, its last line and newline
// included, and cuts it at every byte.
func TestFlipEveryBit(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	m := r.sample("web", "one")
	commit(t, r, m)
	data := get(t, r.Store, ManifestKey("web", "one"))
	if _, err := r.parseManifest(data, "web", "one"); err != nil {
		t.Fatal(err)
	}
	wantDamage := func(data []byte, what string, at int) {
		t.Helper()
		_, err := r.parseManifest(data, "web", "one")
		if !archive.IsDamage(err) {
			t.Fatalf("%s at %d: %v, want damage", what, at, err)
		}
	}
	for bit := range len(data) * 8 {
		data[bit/8] ^= 1 << (bit % 8)
		wantDamage(data, "flipped bit", bit)
		data[bit/8] ^= 1 << (bit % 8)
	}
	for n := range len(data) {
		wantDamage(data[:n], "cut", n)
		wantDamage(append(bytes.Clone(data[:n]), data[min(n+1, len(data)):]...), "byte left out", n)
	}
	for _, more := range []string{"\n", " ", "{}", "\x00"} {
		wantDamage(append(bytes.Clone(data), more...), "more", len(data))
	}
}

// unseal proves and decodes an object of any format.
func unseal(data []byte, key string, v any) error {
	plain, err := unsealed(data)
	if err == nil {
		err = decodeStrict(plain, v)
	}
	if err != nil {
		return archive.Damaged(key, err)
	}
	return nil
}

// reseal seals a text that Seal would not write.
func reseal(body string) []byte {
	body += ",\n"
	return []byte(body + seal.Line([]byte(body)))
}

func TestUnsealIsStrict(t *testing.T) {
	t.Parallel()
	good := "{\n\"name\": \"x\""
	var out sealed
	if err := unseal(reseal(good), "key", &out); err != nil || out.Name != "x" {
		t.Fatalf("%+v, %v", out, err)
	}
	if err := unseal(reseal(good+`, "info": {"Free": {"b":1}, "a": [2]}`), "key", &out); err != nil {
		t.Errorf("free info: %v", err)
	}
	for name, body := range map[string]string{
		"unknown field":            good + `, "other": 1`,
		"field in other case":      good + `, "Count": 1`,
		"field with a kelvin sign": good + ", \"\u212aey\": 1",
		"repeated field":           good + `, "name": "y"`,
		"repeated in info":         good + `, "info": {"a": 1, "a": 2}`,
		"second digest":            good + `, "sha256": "00"`,
		"wrong type":               good + `, "count": "7"`,
		"too large a number":       good + `, "count": 9223372036854775808`,
		"fraction":                 good + `, "count": 1.5`,
		"two values":               good + `} {"count": 1`,
		"no JSON":                  good + `, count`,
		"not closed":               good + `, "list": [`,
		"array":                    "[1",
		"empty":                    "",
	} {
		var out sealed
		err := unseal(reseal(body), "some/key", &out)
		if !archive.IsDamage(err) || !strings.Contains(err.Error(), "some/key") {
			t.Errorf("%s: %v, want damage of some/key", name, err)
		}
	}
}

func FuzzManifest(f *testing.F) {
	r := &Repository{Config: Config{ID: "7b0f8f1e-6a2c-4a52-9a53-0a3a4a4a4a4a"}}
	data, err := Seal(sample("web", "one"))
	if err != nil {
		f.Fatal(err)
	}
	plain, err := unsealed(data)
	if err != nil {
		f.Fatal(err)
	}
	body := strings.TrimSuffix(string(plain), "\n}")
	if _, err := r.parseManifest(reseal(body), "web", "one"); err != nil {
		f.Fatal("the seed is not valid: ", err)
	}
	f.Add(body)
	f.Add(`{"format": "imgbackup-manifest", "version": 2, "requires": ["x"]`)
	f.Add("")
	f.Fuzz(func(t *testing.T, body string) {
		// The raw bytes, and the same with a digest that is right.
		if m, err := r.parseManifest([]byte(body), "web", "one"); err == nil && m.Validate() != nil {
			t.Fatal("an invalid manifest was read")
		}
		m, err := r.parseManifest(reseal(body), "web", "one")
		if err != nil {
			if !unusable(err) {
				t.Fatalf("%v is neither damage nor newer", err)
			}
			return
		}
		stored, err := m.mapTexts(escapeText)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Seal(stored)
		if err != nil {
			t.Fatal(err)
		}
		m2, err := r.parseManifest(again, "web", "one")
		if err != nil {
			t.Fatalf("what was read can't be read again: %v", err)
		}
		m.Info, m2.Info = nil, nil // may be indented anew
		if !reflect.DeepEqual(normal(m), normal(m2)) {
			t.Fatalf("%+v became %+v", m, m2)
		}
	})
}

// normal makes empty and absent lists equal.
func normal(m *Manifest) *Manifest {
	c := *m
	c.Requires = nil
	c.Disks = append([]Disk(nil), c.Disks...)
	for i := range c.Disks {
		d := &c.Disks[i]
		d.Backing = append([]Layer(nil), d.Backing...)
		d.Snapshots = append([]Snapshot(nil), d.Snapshots...)
		d.Maps = append([]archive.MapRef(nil), d.Maps...)
		d.Witnesses = append([]BitmapRecord(nil), d.Witnesses...)
	}
	return &c
}

func FuzzUnseal(f *testing.F) {
	seed, err := Seal(sealed{Name: "a", List: []string{"b"}})
	if err != nil || unseal(seed, "key", &sealed{}) != nil {
		f.Fatal("the seed is not valid")
	}
	f.Add(seed)
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		var v sealed
		if err := unseal(data, "key", &v); err != nil {
			if !archive.IsDamage(err) {
				t.Fatalf("%v is not damage", err)
			}
			return
		}
		if again, err := Seal(v); err != nil || unseal(again, "key", &v) != nil {
			t.Fatalf("what was read can't be stored: %v", err)
		}
	})
}
