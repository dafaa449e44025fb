// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/seal"
	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/objstore"
)

// ringAuthority is a keyring as the program hands it over.
type ringAuthority struct{ *keys.Keyring }

func (a ringAuthority) Check(key, seal string, s *seal.Signature) (Author, error) {
	m, err := a.Verify(key, seal, s)
	if err != nil {
		return nil, err
	}
	return ringAuthor{m}, nil
}

func (a ringAuthority) Self() Author { return ringAuthor{&a.Member} }

type ringAuthor struct{ *keys.Member }

func (a ringAuthor) AuthorName() string { return a.Name }
func (a ringAuthor) Manages() bool      { return a.Role.Manages() }
func (a ringAuthor) Rehearses() bool    { return a.Role.Rehearses() }

// signedWorld is a repository with an admin, and as a host has it that may store web*.
func signedWorld(t *testing.T) (admin, host *Repository) {
	t.Helper()
	return signedWorldIn(t, objstore.NewMem(), InitOptions{})
}

func signedWorldIn(t *testing.T, store objstore.Store, o InitOptions) (admin, host *Repository) {
	t.Helper()
	var ring *keys.Keyring
	var place keys.Place
	o.Encrypt = func(ctx context.Context, s objstore.Store, id string) (*Encryption, *Access, error) {
		var err error
		ring, _, err = keys.Make(ctx, s, id, keys.Features{}, []keys.Joining{{Name: "alice", Role: keys.Admin}})
		if err != nil {
			return nil, nil, err
		}
		place = keys.Place{Store: s, Repository: id, RosterKey: ring.RosterKey()}
		return &Encryption{Scheme: EncryptionScheme, RosterKey: ring.RosterKey()}, &Access{Keys: ring.Keys, Authority: ringAuthority{ring}}, nil
	}
	admin, err := Init(t.Context(), store, o)
	if err != nil {
		t.Fatal(err)
	}
	joined, err := ring.Add(t.Context(), keys.Joining{Name: "h", Role: keys.Host, Domains: []string{"web*"}})
	if err != nil {
		t.Fatal(err)
	}
	host, err = OpenWith(t.Context(), store, func(ctx context.Context, _ objstore.Store, c *Config) (*Access, error) {
		ids, err := keys.ParseIdentities([]byte(ring.Pin("h").String()+joined[0].Identity), "h.key", keys.Ways{})
		if err != nil {
			return nil, err
		}
		k, err := keys.Open(ctx, place, ids)
		if err != nil {
			return nil, err
		}
		return &Access{Keys: k.Keys, Authority: ringAuthority{k}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return admin, host
}

// What one member signs another reads; what is unsigned, moved, or of who may not store
// there is damage, also where it is encrypted rightly.
func TestSignedObjects(t *testing.T) {
	t.Parallel()
	admin, host := signedWorld(t)
	commit(t, host, host.sample("web1", "one"))
	m, err := admin.Manifest(t.Context(), "web1", "one")
	if err != nil || m.Checkpoint != "one" {
		t.Fatal(err)
	}
	if _, err := admin.Retag(t.Context(), "web1", "one", []string{"keep"}, nil); err != nil {
		t.Fatal(err)
	}
	if m, err = host.Manifest(t.Context(), "web1", "one"); err != nil || m.Revision != 2 {
		t.Fatal(err)
	}
	stored := get(t, host.Store, ManifestKey("web1", "one"))

	wantUntrusted := func(what, domain, name string, data []byte, text string) {
		t.Helper()
		put(t, host.Store, ManifestKey(domain, name), data)
		if _, err := admin.Manifest(t.Context(), domain, name); !archive.IsDamage(err) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want damage with %q", what, err, text)
		}
		if err := host.Store.Delete(t.Context(), ManifestKey(domain, name)); err != nil {
			t.Fatal(err)
		}
	}
	wantUntrusted("another name", "web1", "two", stored, "for another place")
	data, err := Seal(host.sample("web1", "three"))
	if err != nil {
		t.Fatal(err)
	}
	data, err = host.encrypt(crypt.Metadata, data) // the metadata key, which all have
	if err != nil {
		t.Fatal(err)
	}
	wantUntrusted("unsigned", "web1", "three", data, "it is not signed")
	var not *NotYoursError
	if _, err = host.sealManifest(host.sample("db", "one")); !errors.As(err, &not) || not.Domain != "db" {
		t.Errorf("a domain that is not its own: %v", err)
	}
	sign, err := host.signer()
	if err != nil {
		t.Fatal(err)
	}
	if data, err = seal.Seal(host.sample("db", "one"), ManifestKey("db", "one"), sign); err == nil {
		data, err = host.encrypt(crypt.Metadata, data)
	}
	if err != nil {
		t.Fatal(err)
	}
	wantUntrusted("not its domain", "db", "one", data, "signed by h, who may not store domain db")

	stands := make(map[string]string)
	untrusted, err := admin.Standing(t.Context(), func(key, seal string) { stands[key] = seal })
	if err != nil || len(untrusted) > 0 || len(stands) != 1 || len(stands[ManifestKey("web1", "one")]) != 64 {
		t.Errorf("%v, %v, %v", stands, untrusted, err)
	}
}
