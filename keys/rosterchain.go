// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/seal"
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
		return nil, nil, fmt.Errorf("%s needs a newer imgbackup: it has version %d, this program knows version %d", key, head.Version, rosterVersion)
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

// rosters proves all revisions of a repository's roster, which are numbered from 1, and
// returns the newest, and the digests of all. root is the key that the first one is signed by.
func rosters(revisions [][]byte, repository string, root ed25519.PublicKey) (*Roster, []string, error) {
	var newest *Roster
	var digests []string
	for i, data := range revisions {
		r, sig, err := parseRoster(data, i+1)
		if err != nil {
			return nil, nil, err
		}
		damaged := func(err error) error { return archive.Damaged(rosterKey(i+1), err) }
		signers := newest // an admin of the one before has signed it
		if newest == nil {
			if signers = r; r.RepositoryID != repository {
				return nil, nil, damaged(fmt.Errorf("it is of repository %.80s", r.RepositoryID))
			}
		} else if err := r.checkFollows(newest); err != nil {
			return nil, nil, damaged(err)
		} else if r.Previous != digests[i-1] {
			return nil, nil, damaged(errors.New("it does not follow the one before it"))
		}
		by := signers.Member(sig.By)
		switch {
		case by == nil || by.Role != Admin || by.Removed():
			return nil, nil, damaged(fmt.Errorf("%.80q, who signed it, was no admin", sig.By))
		case newest == nil && !by.public().Equal(root):
			return nil, nil, damaged(errors.New("it is not signed by the key that the configuration names"))
		case !sig.ProvenBy(by.public()):
			return nil, nil, damaged(fmt.Errorf("the signature of %s is wrong", sig.By))
		}
		newest, digests = r, append(digests, digestOf(data))
	}
	if newest == nil {
		return nil, nil, archive.Damaged(rosterKey(1), errors.New("it is missing"))
	}
	return newest, digests, nil
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
