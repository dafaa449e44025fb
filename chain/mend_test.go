// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

func overwrite(t *testing.T, r *Repository, key string, data []byte) {
	t.Helper()
	if err := r.Store.Put(t.Context(), key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
		t.Fatal(err)
	}
}

// A configuration that is missing or damaged is made again of what the manifests say, and
// only then.
func TestFindConfig(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	if _, err := FindConfig(t.Context(), r.Store); !errors.Is(err, objstore.ErrExists) {
		t.Errorf("of a sound repository: %v", err)
	}
	if err := r.Store.Delete(t.Context(), ConfigKey); err != nil {
		t.Fatal(err)
	}
	if _, err := FindConfig(t.Context(), r.Store); !errors.Is(err, ErrNotRepository) {
		t.Errorf("without a manifest: %v", err)
	}
	one, two := r.sample("web", "one"), r.sample("web", "two")
	commit(t, r, one)
	commit(t, r, two)
	overwrite(t, r, ManifestKey("web", "two"), []byte("damaged"))
	void, err := Seal(r.newVoid())
	if err != nil {
		t.Fatal(err)
	}
	overwrite(t, r, ManifestKey("web", "three"), void)
	for _, damaged := range []bool{false, true} {
		if damaged {
			overwrite(t, r, ConfigKey, []byte("{}"))
		}
		c, err := FindConfig(t.Context(), r.Store)
		if err != nil || c.ID != r.Config.ID || !c.Created.Equal(one.Created) {
			t.Fatalf("damaged %v: %+v, %v", damaged, c, err)
		}
		again, err := RestoreConfig(t.Context(), r.Store, c, nil)
		if err != nil || again.Config.ID != r.Config.ID {
			t.Fatalf("damaged %v: %+v, %v", damaged, again, err)
		}
		if _, err := again.Manifest(t.Context(), "web", "one"); err != nil {
			t.Error(err)
		}
		if _, err := RestoreConfig(t.Context(), r.Store, c, nil); !errors.Is(err, objstore.ErrExists) {
			t.Errorf("over a sound one: %v", err)
		}
		if err := r.Store.Delete(t.Context(), ConfigKey); err != nil {
			t.Fatal(err)
		}
	}
	// Manifests of two repositories tell nothing.
	other := newRepository(t)
	commit(t, other, other.sample("mail", "one"))
	data, err := objstore.ReadAll(t.Context(), other.Store, ManifestKey("mail", "one"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	overwrite(t, r, ManifestKey("mail", "one"), data)
	if c, err := FindConfig(t.Context(), r.Store); err == nil {
		t.Errorf("of manifests of two repositories: %+v", c)
	}
}

// Only what is damaged is replaced by another repository's manifest.
func TestMendManifest(t *testing.T) {
	t.Parallel()
	r, other := newRepository(t), newRepository(t)
	m := other.sample("web", "one")
	commit(t, other, m)
	theirs, err := other.Manifest(t.Context(), "web", "one")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.MendManifest(t.Context(), theirs); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("where none stands: %v", err)
	}
	void, err := Seal(r.newVoid())
	if err != nil {
		t.Fatal(err)
	}
	overwrite(t, r, ManifestKey("web", "one"), void)
	if err := r.MendManifest(t.Context(), theirs); err == nil {
		t.Error("a void was replaced")
	}
	overwrite(t, r, ManifestKey("web", "one"), []byte("damaged"))
	if err := r.MendManifest(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	now, err := r.Manifest(t.Context(), "web", "one")
	if err != nil || now.UUID != m.UUID || now.RepositoryID != r.Config.ID {
		t.Fatalf("%+v, %v", now, err)
	}
	if err := r.MendManifest(t.Context(), theirs); !errors.As(err, new(*RevisedError)) || archive.IsDamage(err) {
		t.Errorf("over a sound one: %v", err)
	}
}

// TestFindConfigEncrypted: of an encrypted repository none is made that says it is plain.
func TestFindConfigEncrypted(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	commit(t, r, r.sample("web", "one"))
	if err := r.Store.Delete(t.Context(), ConfigKey); err != nil {
		t.Fatal(err)
	}
	if _, err := FindConfig(t.Context(), r.Store); err != nil {
		t.Fatal(err)
	}
	if err := r.Store.Put(t.Context(), accessPrefix+"roster/1.json", strings.NewReader("{}"), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if c, err := FindConfig(t.Context(), r.Store); err == nil || !strings.Contains(err.Error(), "was encrypted") {
		t.Errorf("%+v, %v", c, err)
	}
}
