// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

// TestCheckFiles: of each member's files anybody who has opened the repository sees that they are there, and
// whole by their lengths, whatever kind of key they are for.
func TestCheckFiles(t *testing.T) {
	t.Parallel()
	for _, f := range []Features{{}, {PostQuantum: true}, {HideNames: true}} {
		store := objstore.NewMem()
		members := []Joining{
			{Name: "alice", Role: Admin}, {Name: "keeper", Role: Manager}, {Name: "nightly", Role: Drill},
			{Name: "web", Role: Host}, {Name: "bob", Role: Admin, Passphrase: []byte("twenty characters, or more"), WorkFactor: 8},
		}
		if !f.PostQuantum {
			r, err := ParseRecipient("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN", nil)
			if err != nil {
				t.Fatal(err)
			}
			members = append(members, Joining{Name: "ssh", Role: Admin, Recipient: r})
		}
		admin, joined, err := Make(t.Context(), store, repository, f, members)
		if err != nil {
			t.Fatal(err)
		}
		generations := 2
		if f.HideNames { // numbers of generations have two digits
			generations = 10
		}
		for range generations - 1 {
			if err := admin.Rotate(t.Context(), nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := admin.Remove(t.Context(), "nightly"); err != nil {
			t.Fatal(err)
		}
		host, err := Open(t.Context(), Place{Store: store, Repository: repository, RosterKey: admin.RosterKey()}, parse(t, joined[3].Identity))
		if err != nil {
			t.Fatal(err)
		}
		if wrong, err := host.CheckFiles(t.Context()); err != nil || len(wrong) > 0 {
			t.Fatalf("%+v: %v, %v", f, wrong, err)
		}
		files := 0
		for info := range store.List(t.Context(), Prefix) {
			kind := ParseKey(info.Key)
			if files++; kind.Kind == RosterObject || kind.Kind == StandingObject || f.HideNames && files%8 > 0 {
				continue
			}
			data, err := objstore.ReadAll(t.Context(), store, info.Key, maxFile)
			if err != nil {
				t.Fatal(err)
			}
			for what, now := range map[string][]byte{"missing": nil, "cut short": data[:len(data)-1], "longer": append(data[:len(data):len(data)], 0), "empty": {}} {
				if err := store.Delete(t.Context(), info.Key); err != nil {
					t.Fatal(err)
				}
				if now != nil {
					put(t, store, info.Key, now)
				}
				wrong, err := host.CheckFiles(t.Context())
				told := err == nil && len(wrong) == 1 && archive.IsDamage(wrong[0])
				exact := kind.Name != "ssh" && kind.Kind != IdentityObject
				if !told && (exact || what == "missing" || what == "empty") {
					t.Errorf("%+v: %s is %s: %v, %v", f, info.Key, what, wrong, err)
				}
			}
			put(t, store, info.Key, data)
		}
		if files < 3*(len(members)-1) {
			t.Errorf("%d files", files)
		}
	}
}
