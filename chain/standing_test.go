// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"errors"
	"testing"

	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
	"github.com/imgbackup/imgbackup/objstore/retry"
	"github.com/imgbackup/imgbackup/objstore/s3"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// TestStandingUnlisted: what a listing leaves out is not taken for what does not stand, which
// would never count again.
func TestStandingUnlisted(t *testing.T) {
	t.Parallel()
	admin, host := signedWorld(t)
	one := host.sample("web1", "one")
	commit(t, host, one)
	two := host.sample("web1", "two")
	two.Parent = one.Ref()
	commit(t, host, two)
	for what, lacks := range map[string]func(key string) bool{
		"all":      everything,
		"a parent": func(key string) bool { return key == ManifestKey("web1", "one") },
	} {
		lying := *admin
		lying.Store = &objstoretest.Hiding{Store: admin.Store, Hidden: lacks}
		var listing *ListingError
		if _, err := lying.Standing(t.Context(), func(string, string) {}); !errors.As(err, &listing) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestStandingBelow: what counts as a checkpoint goes on doing so when keys are rotated while
// something else lies on top of it, or a marker.
func TestStandingBelow(t *testing.T) {
	t.Parallel()
	server := s3test.StartVersioned(t, s3test.MinIO)
	store, err := s3.Open(server.Config(server.LockedBucket(), "p"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	admin, host := signedWorldIn(t, retry.New(store, retry.Options{}), InitOptions{Lock: &ObjectLock{Mode: "governance", Days: 1}})
	one := host.sample("web1", "one")
	commit(t, host, one)
	commit(t, host, host.sample("web1", "gone"))
	data, err := host.sealManifest(host.sample("web1", "one"))
	if err != nil {
		t.Fatal(err)
	}
	put(t, host.Store, ManifestKey("web1", "one"), data)
	if err := host.Store.Delete(t.Context(), ManifestKey("web1", "gone")); err != nil {
		t.Fatal(err)
	}
	see := func() {
		t.Helper()
		if m, err := admin.Beneath(nil).Manifest(t.Context(), "web1", "one"); err != nil || m.UUID != one.UUID {
			t.Errorf("not the checkpoint that was first: %v", err)
		}
		young, err := admin.YoungRevisions(t.Context(), one.Created.AddDate(-1, 0, 0))
		read := 0
		for _, r := range young {
			if r.Manifest != nil {
				read++
			}
		}
		if err != nil || read != 3 {
			t.Errorf("%d revisions can be read, want 3, %v", read, err)
		}
	}
	see()
	var stands []keys.Stands
	if _, err := admin.Standing(t.Context(), func(key, seal string) { stands = append(stands, keys.Stands{Key: key, Seal: seal}) }); err != nil {
		t.Fatal(err)
	}
	if err := admin.Access.Authority.(ringAuthority).Rotate(t.Context(), stands, nil); err != nil {
		t.Fatal(err)
	}
	see()
}
