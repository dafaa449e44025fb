// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"errors"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/keys"
)

// index stores an index of one pack, and returns its key.
func index(t *testing.T, r *Repository, x archive.Indexing, pack byte) string {
	t.Helper()
	w, err := archive.NewIndexWriter(r.Store, 1<<30, t.TempDir(), x)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	chunk := archive.PackChunk{FrameLength: 100, Length: 16, Chunk: archive.Digest{pack}, Keyed: &archive.KeyedChunk{Frame: 10, Generation: 1, Parts: make([]crypt.Part, 1)}}
	if err := errors.Join(w.Add(t.Context(), archive.Ref{Name: archive.Digest{pack}, Length: 1 << 20}, []archive.PackChunk{chunk}), w.Finish(t.Context())); err != nil {
		t.Fatal(err)
	}
	return w.Stored()[0]
}

// TestIndexesSigned: an index counts from whose folder it is in, and from who manages; an older
// one, of keys before the newest, tells nothing, and is no damage.
func TestIndexesSigned(t *testing.T) {
	t.Parallel()
	admin, host := signedWorld(t)
	own, err := host.Indexing()
	if err != nil {
		t.Fatal(err)
	}
	read := func(key string) (packs int, err error) {
		_, err = archive.ReadIndex(t.Context(), admin.Store, key, archive.Indexing{Seals: admin.IndexSeals()}, func(archive.Ref, []archive.PackChunk) error {
			packs++
			return nil
		})
		return packs, err
	}
	right := index(t, host, own, 1)
	if n, err := read(right); err != nil || n != 1 || !strings.HasPrefix(right, "index/h/") {
		t.Fatalf("%s: %d packs, %v", right, n, err)
	}
	wantForged := func(what, key, text string) {
		t.Helper()
		if _, err := read(key); !archive.IsDamage(err) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want damage with %q", what, err, text)
		}
	}
	wantForged("by nobody", index(t, host, archive.Indexing{Folder: "h"}, 2), "it is not signed")
	moved := strings.Replace(right, "index/h/", "index/alice/", 1)
	put(t, host.Store, moved, get(t, host.Store, right))
	wantForged("in the folder of another", moved, "for another place, index/h/")
	forged := index(t, host, archive.Indexing{Folder: "alice", Seals: careless{indexSeals{host}}}, 3)
	wantForged("for the folder of another", forged, "the key of h may not have indexes in index/alice/")
	if _, err := host.IndexSeals().SignIndex("alice", archive.Digest{}); !errors.As(err, new(*RoleError)) {
		t.Errorf("it stores one in the folder of another: %v", err)
	}
	borrowed := index(t, host, archive.Indexing{Folder: "h", Seals: sameSeal{host.IndexSeals()}}, 4)
	wantForged("with the signature of another", borrowed, "that of another index")

	ring := admin.authority().(ringAuthority).Keyring
	if err := ring.Rotate(t.Context(), []keys.Stands{}, nil); err != nil {
		t.Fatal(err)
	}
	admin.Access.Keys = ring.Keys
	admin.Store = archive.Encrypted(host.Store, ring.Keys)
	if _, err := read(right); !errors.Is(err, archive.ErrOldIndex) {
		t.Errorf("with newer keys: %v", err)
	}
}

// careless signs what its role must not.
type careless struct{ indexSeals }

func (c careless) SignIndex(folder string, sum archive.Digest) ([]byte, error) {
	data, _ := c.indexSeals.SignIndex(folder, sum)
	return data, nil
}

// sameSeal signs something else.
type sameSeal struct{ archive.IndexSeals }

func (s sameSeal) SignIndex(folder string, _ archive.Digest) ([]byte, error) {
	return s.IndexSeals.SignIndex(folder, archive.Digest{9})
}
