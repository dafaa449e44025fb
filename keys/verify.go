// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/seal"
	"github.com/imgbackup/imgbackup/objstore"
)

// UntrustedError says that an object is signed by nobody whose signature counts. It comes
// within an archive.DamageError: such an object is told of, and never used.
type UntrustedError struct{ What string }

func (e *UntrustedError) Error() string { return e.What }

// Signer signs as the member that has opened the repository.
func (k *Keyring) Signer() (seal.Signer, error) {
	return signer{by: k.Member.Name, generation: k.Roster.Generation(), repository: k.Roster.RepositoryID, key: k.signing}, nil
}

// CheckNotRotated returns an error if the roster has a newer generation of keys by now.
func (k *Keyring) CheckNotRotated(ctx context.Context) error {
	err := k.checkNewest(ctx)
	if err == nil || !errors.Is(err, objstore.ErrExists) {
		return err
	}
	r, err := ReadRoster(ctx, Place{Store: k.store, Repository: k.Roster.RepositoryID, RosterKey: k.rosterKey})
	if err == nil && r.Generation() > k.Roster.Generation() {
		err = &Error{What: "the keys of the repository have been rotated since this run opened it, so what it stored would not count: run it again"}
	}
	return err
}

// Verify proves the signature of the object under a key, whose last line has the digest
// seal, and says whose it is. s nil: it has none. What does not count is an
// archive.DamageError with an [*UntrustedError] in it.
func (k *Keyring) Verify(key, seal string, s *seal.Signature) (*Member, error) {
	m, err := k.Roster.signerOf(key, s)
	if err != nil {
		return nil, archive.Damaged(key, &UntrustedError{What: err.Error()})
	}
	if s.Generation == k.Roster.Generation() {
		return m, nil
	}
	if _, stood := k.standing[lineSum(seal, k.storedKey(key))]; !stood {
		return nil, archive.Damaged(key, &UntrustedError{What: fmt.Sprintf("%s signed it with keys of generation %d, and it did not stand when they were rotated", m.Name, s.Generation)})
	}
	return m, nil
}

// signerOf finds out whose a signature is, as far as the roster alone tells.
func (r *Roster) signerOf(key string, s *seal.Signature) (*Member, error) {
	if s == nil {
		return nil, errors.New("it is not signed")
	}
	m := r.Member(s.By)
	switch {
	case m == nil:
		return nil, fmt.Errorf("it is signed by %s, who is not in the roster", jsonText(s.By))
	case s.Repository != r.RepositoryID:
		return nil, fmt.Errorf("%s signed it for another repository, %s", m.Name, jsonText(s.Repository))
	case s.Key != key:
		return nil, fmt.Errorf("%s signed it for another place, %s", m.Name, jsonText(s.Key))
	case s.Generation < m.Since || s.Generation > r.Generation() || m.Removed() && s.Generation > m.Until:
		return nil, fmt.Errorf("%s signed it with keys of generation %d, of which they had none", m.Name, s.Generation)
	case !s.ProvenBy(m.public()):
		return nil, fmt.Errorf("the signature of %s is wrong", m.Name)
	}
	return m, nil
}
