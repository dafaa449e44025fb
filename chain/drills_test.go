// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/objstore"
)

// joins is the repository as somebody has it who joins.
func joins(t *testing.T, admin *Repository, name string, role keys.Role) *Repository {
	t.Helper()
	ring := admin.authority().(ringAuthority).Keyring
	joined, err := ring.Add(t.Context(), keys.Joining{Name: name, Role: role})
	if err != nil {
		t.Fatal(err)
	}
	repo, err := OpenWith(t.Context(), admin.Store, func(ctx context.Context, s objstore.Store, c *Config) (*Access, error) {
		ids, err := keys.ParseIdentities([]byte(joined[0].Identity), name, keys.Ways{})
		if err != nil {
			return nil, err
		}
		k, err := keys.Open(ctx, keys.Place{Store: s, Repository: c.ID, RosterKey: c.Encryption.RosterKey}, ids)
		if err != nil {
			return nil, err
		}
		return &Access{Keys: k.Keys, Authority: ringAuthority{k}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// TestDrillsSigned: the record of a drill counts from who reads the data, and from who copies it;
// who keeps order proves it without reading it; nothing that a host makes is one.
func TestDrillsSigned(t *testing.T) {
	t.Parallel()
	admin, host := signedWorld(t)
	drill, manager := joins(t, admin, "nightly", keys.Drill), joins(t, admin, "keeper", keys.Manager)
	record := &DrillRecord{Domain: "web1", ID: NewUUID(), CheckpointUUID: NewUUID(), Data: []byte("record")}
	key := DrillKey(record.Domain, record.ID)

	var role *RoleError
	if err := host.PutDrill(t.Context(), record); !errors.As(err, &role) {
		t.Errorf("a host records a drill: %v", err)
	}
	if err := drill.PutDrill(t.Context(), record); err != nil {
		t.Fatal(err)
	}
	if err := drill.PutDrill(t.Context(), record); err != nil {
		t.Errorf("the same once more: %v", err)
	}
	right := get(t, host.Store, key)
	if d, err := manager.Drilled(t.Context(), record.Domain, record.ID); err != nil || d.By != "nightly" || d.CheckpointUUID != record.CheckpointUUID {
		t.Errorf("a manager sees %+v, %v", d, err)
	}
	if d, err := admin.Drill(t.Context(), record.Domain, record.ID); err != nil || !bytes.Equal(d.Data, record.Data) || d.By != "nightly" {
		t.Errorf("an admin reads %+v, %v", d, err)
	}
	if _, err := manager.Drill(t.Context(), record.Domain, record.ID); !errors.As(err, new(*crypt.KeyError)) {
		t.Errorf("a manager reads it: %v", err)
	}
	if _, err := manager.open(crypt.Metadata, key, right); err != nil || bytes.Contains(right, record.Data) {
		t.Error("it is not encrypted to the metadata key")
	}

	wantForged := func(what, text string) {
		t.Helper()
		_, err := manager.Drilled(t.Context(), record.Domain, record.ID)
		_, rerr := admin.Drill(t.Context(), record.Domain, record.ID)
		if !archive.IsDamage(err) || !archive.IsDamage(rerr) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, %v; want damage that says %q", what, err, rerr, text)
		}
	}
	sealed, err := host.encrypt(crypt.Data, record.Data)
	if err != nil {
		t.Fatal(err)
	}
	forge(t, host, key, &Drilled{Head: Head{Format: DrilledFormat, Version: 1}, CheckpointUUID: record.CheckpointUUID, Record: sealed})
	wantForged("signed by a host", "may not record a drill")
	put(t, host.Store, key, sealed)
	wantForged("only a record", "")
	other := DrillKey(record.Domain, NewUUID())
	put(t, host.Store, other, right)
	if _, err := manager.Drilled(t.Context(), record.Domain, ParseKey(other).Name); !archive.IsDamage(err) {
		t.Errorf("under another name: %v", err)
	}
	if err := host.Store.Delete(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	put(t, host.Store, key, right)

	// Nothing else counts from who drills.
	if _, err := drill.NewLease("test"); err == nil {
		if err = drill.Under(t.Context(), "test", func(*Hold) error { return nil }); !errors.As(err, &role) {
			t.Errorf("a drill has a lease: %v", err)
		}
	}
	forge(t, drill, ManifestKey("web1", "x"), drill.sample("web1", "x"))
	if _, err := admin.Manifest(t.Context(), "web1", "x"); !archive.IsDamage(err) || !strings.Contains(err.Error(), "anything but records of drills") {
		t.Errorf("a drill's manifest: %v", err)
	}

	// It goes on to count when keys are rotated, and then what is signed with older ones does not.
	stands := make(map[string]string)
	if _, err := admin.Standing(t.Context(), func(key, seal string) { stands[key] = seal }); err != nil || len(stands[key]) != 64 {
		t.Errorf("%v, %v", stands, err)
	}

	// A copy by who can't read it says the same, and is signed anew.
	to := *manager
	to.Store = archive.Encrypted(objstore.NewMem(), manager.keys())
	for range 2 {
		if err := to.TakeDrill(t.Context(), manager, record.Domain, record.ID); err != nil {
			t.Fatal(err)
		}
	}
	copied := *admin
	copied.Store = to.Store
	if d, err := copied.Drill(t.Context(), record.Domain, record.ID); err != nil || !bytes.Equal(d.Data, record.Data) || d.By != "keeper" {
		t.Errorf("the copy is %+v, %v", d, err)
	}
}

// TestDrillRotated: the keys are rotated while a drill goes on, since that has no lease: it leaves no
// record that does not count, at which those who keep order would stop.
func TestDrillRotated(t *testing.T) {
	t.Parallel()
	admin, _ := signedWorld(t)
	drill := joins(t, admin, "nightly", keys.Drill)
	if err := admin.authority().(ringAuthority).Rotate(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	record := &DrillRecord{Domain: "web1", ID: NewUUID(), CheckpointUUID: NewUUID(), Data: []byte("record"), Signature: []byte("signature")}
	if err := drill.PutDrill(t.Context(), record); err == nil || !strings.Contains(err.Error(), "rotated") {
		t.Errorf("a record is stored with older keys: %v", err)
	}
	if all, err := admin.Drills(t.Context(), ""); err != nil || len(all) > 0 {
		t.Errorf("%v, %v", all, err)
	}
}
