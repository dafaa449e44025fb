// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/seal"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/hidden"
)

// EncryptionScheme is the one way in which repositories are encrypted: age files, HMAC-SHA-256,
// Ed25519.
const EncryptionScheme = "age-hmac-ed25519"

// ErrEncrypted says that a repository is encrypted, and no key was given.
var ErrEncrypted = errors.New("this repository is encrypted, and no key was given")

// Encryption says in the configuration how a repository is encrypted.
type Encryption struct {
	Scheme    string `json:"scheme"`     // EncryptionScheme
	RosterKey string `json:"roster_key"` // base64, Ed25519: signs the first revision of the roster
}

// knownEncryption reports whether a configuration's field is one that this version knows.
func knownEncryption(field json.RawMessage) bool {
	if len(field) == 0 || string(field) == "null" {
		return true
	}
	var e struct {
		Scheme string `json:"scheme"`
	}
	return json.Unmarshal(field, &e) == nil && e.Scheme == EncryptionScheme
}

// Access is what encrypts and signs in a repository.
type Access struct {
	Keys      *crypt.Keys
	Authority Authority
	Lowered   []Lowered // of the keys
	// Names turns names in keys of objects into digests; nil: they are not hidden.
	Names *hidden.Names
}

// Unlock opens the keys of an encrypted repository; see [OpenWith].
type Unlock func(ctx context.Context, store objstore.Store, c *Config) (*Access, error)

// Authority signs what is stored, and knows whose signatures count.
type Authority interface {
	// Signer signs as whoever has opened the repository. The error is an archive.DamageError
	// or says who may sign: not everybody may.
	Signer() (seal.Signer, error)
	// Check proves a signature of the object under a key that has this seal (the digest in
	// its last line), and says whose it is. What does not count is an archive.DamageError.
	Check(key, seal string, s *seal.Signature) (Author, error)
	// Self is who has opened the repository.
	Self() Author
	// CheckNotRotated returns an error if there are newer keys than these by now: what was
	// stored since with these does not count.
	CheckNotRotated(ctx context.Context) error
}

// Author is who has signed something.
type Author interface {
	// AuthorName is what people call them.
	AuthorName() string
	// Manages reports whether they may change what others have stored: revisions above
	// the first, voids and marks count from such only.
	Manages() bool
	// Covers reports whether they may store a domain.
	Covers(domain string) bool
	// Rehearses reports whether records of drills count from them.
	Rehearses() bool
}

// CheckKeyFiles looks, as far as that can be seen without them, whether what others open the repository with is
// there. What is wrong is damage; the error is the store's.
func (r *Repository) CheckKeyFiles(ctx context.Context) (wrong []error, err error) {
	looks, ok := r.authority().(interface {
		CheckFiles(ctx context.Context) ([]error, error)
	})
	if !ok {
		return nil, nil
	}
	return looks.CheckFiles(ctx)
}
