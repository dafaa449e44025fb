// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/seal"
	"github.com/imgbackup/imgbackup/objstore"
)

// sealRoster signs a roster as one of its members.
func sealRoster(r *Roster, by string, private ed25519.PrivateKey) ([]byte, error) {
	if err := r.validate(); err != nil {
		return nil, fmt.Errorf("the roster: %w", err)
	}
	data, err := seal.Seal(r, rosterKey(r.Revision), signer{by: by, generation: r.Generation(), repository: r.RepositoryID, key: private})
	if err == nil && len(data) > maxRoster {
		return nil, fmt.Errorf("the roster: %d bytes are more than the %d that are allowed", len(data), maxRoster)
	}
	return data, err
}

// parseRoster reads a roster; its signature is not proven yet.
func parseRoster(data []byte, revision int) (*Roster, *seal.Signature, error) {
	key := rosterKey(revision)
	if len(data) > maxRoster {
		return nil, nil, archive.Damaged(key, errors.New("it is too long"))
	}
	plain, sig, err := seal.Open(data)
	if err != nil {
		return nil, nil, archive.Damaged(key, err)
	}
	var head struct {
		Format  string `json:"format"`
		Version int64  `json:"version"`
	}
	if err := json.Unmarshal(plain, &head); err != nil {
		return nil, nil, archive.Damaged(key, fmt.Errorf("its JSON is not valid: %w", err))
	}
	if head.Format == RosterFormat && head.Version > rosterVersion {
		return nil, nil, fmt.Errorf("%s %w: it has version %d, this program knows version %d", key, errNewer, head.Version, rosterVersion)
	}
	var r Roster
	if err := seal.Decode(plain, &r); err != nil {
		return nil, nil, archive.Damaged(key, err)
	}
	if err := r.validate(); err != nil {
		return nil, nil, archive.Damaged(key, err)
	}
	switch {
	case r.Revision != revision:
		return nil, nil, archive.Damaged(key, fmt.Errorf("it is revision %d", r.Revision))
	case sig == nil:
		return nil, nil, archive.Damaged(key, errors.New("it is not signed"))
	case sig.Repository != r.RepositoryID || sig.Key != key || sig.Generation != r.Generation():
		return nil, nil, archive.Damaged(key, errors.New("what is signed is not this roster"))
	}
	return &r, sig, nil
}

// errNewer is of what says that another version of the program has made it, which nothing proves: whoever opens
// the repository stops at it, and takes no older roster in its place.
var errNewer = errors.New("needs a newer imgbackup")

// rosterChain proves the revisions of a repository's roster, which are numbered from 1, one after the
// other. root is the key that the first one is signed by.
type rosterChain struct {
	repository string
	root       ed25519.PublicKey

	newest  *Roster
	digests []string
}

func (c *rosterChain) end() (*Roster, []string, error) {
	if c.newest == nil {
		return nil, nil, archive.Damaged(rosterKey(1), errors.New("it is missing"))
	}
	return c.newest, c.digests, nil
}

// add proves the next revision.
func (c *rosterChain) add(data []byte) error {
	number := len(c.digests) + 1
	r, sig, err := parseRoster(data, number)
	if err != nil {
		return err
	}
	damaged := func(err error) error { return archive.Damaged(rosterKey(number), err) }
	signers := c.newest // an admin of the one before has signed it
	if c.newest == nil {
		if signers = r; r.RepositoryID != c.repository {
			return damaged(fmt.Errorf("it is of repository %.80s", r.RepositoryID))
		}
	} else if err := r.checkFollows(c.newest); err != nil {
		return damaged(err)
	} else if r.Previous != c.digests[number-2] {
		return damaged(errors.New("it does not follow the one before it"))
	}
	by := signers.Member(sig.By)
	switch {
	case by == nil || by.Role != Admin || by.Removed():
		return damaged(fmt.Errorf("%.80q, who signed it, was no admin", sig.By))
	case c.newest == nil && !by.public().Equal(c.root):
		return damaged(errors.New("it is not signed by the key that the configuration names"))
	case !sig.ProvenBy(by.public()):
		return damaged(fmt.Errorf("the signature of %s is wrong", sig.By))
	}
	c.newest, c.digests = r, append(c.digests, digestOf(data))
	return nil
}

// RosterOf is whose roster the first revision says that it is, which nothing proves.
func RosterOf(ctx context.Context, store objstore.Store) (repository string, err error) {
	key := rosterKey(1)
	data, err := read(ctx, store, key, maxRoster)
	if errors.Is(err, objstore.ErrNotFound) {
		return "", archive.Damaged(key, errors.New("it is missing"))
	}
	if err != nil {
		return "", err
	}
	first, _, err := parseRoster(data, 1)
	if err != nil {
		return "", err
	}
	return first.RepositoryID, nil
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
