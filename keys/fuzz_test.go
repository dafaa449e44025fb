// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"crypto/ed25519"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/seal"
	"github.com/imgbackup/imgbackup/objstore"
)

func newPrivate(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return private
}

// Whatever a roster has, sealed rightly: damage, or one that proves itself.
func FuzzRoster(f *testing.F) {
	w := newWorld(f)
	w.add(f, "h", Host)
	good, err := objstore.ReadAll(f.Context(), w.store, rosterKey(2), maxRoster)
	if err != nil {
		f.Fatal(err)
	}
	body := good[:len(good)-seal.LineLength]
	if r, _, err := parseRoster(good, 2); err != nil || r.validate() != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Fuzz(func(t *testing.T, body []byte) {
		r, _, err := parseRoster(append(body[:len(body):len(body)], seal.Line(body)...), 2)
		switch {
		case err != nil && !archive.IsDamage(err) && !strings.Contains(err.Error(), "newer imgbackup"):
			t.Errorf("neither damage nor newer: %v", err)
		case err == nil && (r.validate() != nil || r.Revision != 2):
			t.Errorf("it is taken: %+v", r)
		}
	})
}

func FuzzIdentities(f *testing.F) {
	w := newWorld(f)
	file := w.add(f, "h", Host)
	if ids := parse(f, file); ids.Pin == nil || *ids.Pin != *w.ring.Pin("h") || len(ids.all) != 1 {
		f.Fatalf("%+v", ids.Pin)
	}
	f.Add([]byte(file))
	f.Add([]byte(w.admin.id.String()))
	f.Fuzz(func(t *testing.T, data []byte) {
		ids, err := ParseIdentities(data, "key", Ways{})
		if err == nil && len(ids.all) == 0 {
			t.Error("no identity, and no error")
		}
		if err == nil && ids.Pin != nil {
			if again, err := ParsePin([]byte(ids.Pin.String())); err != nil || *again != *ids.Pin {
				t.Errorf("%+v became %+v, %v", ids.Pin, again, err)
			}
		}
		if err != nil && strings.Contains(err.Error(), "SECRET-KEY-1"+"Q") {
			t.Errorf("the error has the key: %v", err)
		}
	})
}

func FuzzKeyFiles(f *testing.F) {
	w := newWorld(f)
	g := &w.ring.generations[0]
	text, err := metadataText(repository, g)
	if err != nil {
		f.Fatal(err)
	}
	public := &w.ring.Roster.Generations[0]
	if _, secret, err := parseMetadata([]byte(text), public); err != nil || secret != g.Secret {
		f.Fatal(err)
	}
	f.Add([]byte(text))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, secret, err := parseMetadata(data, public); err == nil && secret != g.Secret {
			t.Error("another secret is taken")
		}
		_, _ = parseSigning(data, &w.ring.Member)
		_ = readStanding(data, func(string) {})
	})
}

func FuzzStanding(f *testing.F) {
	x, y := digestOf([]byte("x")), digestOf([]byte("y"))
	for _, all := range [][]Stands{
		nil, {{"b", x}, {"a", x}},
		{{"d/a.json.json", y}, {"d/a.json", x}, {"d/a.json", y}, {"d/a.json.json", x}, {"d/a.jsonf", x}, {"d/a.json0", y}, {"d/a.json-", x}},
	} {
		data, err := writeStanding(all)
		if err != nil {
			f.Fatal(err)
		}
		n := 0
		if err := readStanding(data, func(string) { n++ }); err != nil || n != len(all) {
			f.Fatal(n, err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var last Stands
		_ = readStanding(data, func(line string) {
			s := Stands{Key: line[66:], Seal: line[:64]}
			if last.Seal != "" && s.compare(last) <= 0 {
				t.Errorf("%q after %q", s, last)
			}
			last = s
		})
	})
}

// A key is what it is taken for, and has one form.
func FuzzParseKey(f *testing.F) {
	for _, key := range []string{rosterKey(7), dataKey(&Generation{Number: 1}, "a"), metadataKey(&Generation{Number: 12, DataKey: "x"}, "b.c"), signingKey("x"), identityKey("y"), standingKey(digestOf(nil))} {
		if ParseKey(key).Kind == Unknown {
			f.Fatal(key)
		}
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		k := ParseKey(key)
		again := map[Kind]string{Unknown: key, RosterObject: rosterKey(k.Number), DataObject: dataPrefix + k.Folder + "/" + k.Name + ageSuffix,
			MetadataObject: metadataPrefix + k.Folder + "/" + k.Name + ageSuffix, SigningObject: signingKey(k.Name), IdentityObject: identityKey(k.Name)}
		if k.Kind == StandingObject {
			again[StandingObject] = standingKey(k.Name)
		}
		if again[k.Kind] != key {
			t.Errorf("%q is taken for %q", key, again[k.Kind])
		}
	})
}

func TestRecipients(t *testing.T) {
	t.Parallel()
	const ssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPGzbAHzUfNFFxWGEfhVmEIhRfMgvGNDOD3cqJIjYNO2"
	if r, err := ParseRecipient(ssh+" me@here\n", nil); err == nil && r.Text != ssh {
		t.Errorf("%q", r.Text)
	}
	for _, bad := range []string{"", "age1", "age1x", "AGE-SECRET-KEY-1QQQ", "ssh-dss AAAA", "x", "age1pq1", strings.Repeat("a", maxRecipient+1)} {
		if r, err := ParseRecipient(bad, nil); err == nil {
			t.Errorf("%q is taken: %+v", bad, r)
		} else if strings.Contains(err.Error(), "QQQ") {
			t.Errorf("the error has the key: %v", err)
		}
	}
}
