// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/seal"
)

// IndexSignatureFormat is the value of the field "format" of an index's signature.
const IndexSignatureFormat = "imgbackup-index-signature"

// indexSignature stands in an index, behind what it lists. An index has the name of all its bytes,
// so that this can't name it; the signature says in which folder it is.
type indexSignature struct {
	Head
	Content archive.Digest `json:"content_sha256"` // of what stands before it
}

// IndexSeals signs indexes as who has opened the repository, and proves others'; nil: nothing is
// signed here.
func (r *Repository) IndexSeals() archive.IndexSeals {
	if r.authority() == nil {
		return nil
	}
	return indexSeals{r}
}

type indexSeals struct{ repo *Repository }

// SignIndex implements [archive.IndexSeals].
func (s indexSeals) SignIndex(folder string, sum archive.Digest) ([]byte, error) {
	sign, err := s.repo.signer()
	if err != nil {
		return nil, err
	}
	v := indexSignature{Head: Head{Format: IndexSignatureFormat, Version: 1}, Content: sum}
	data, err := seal.Seal(&v, archive.IndexFolder(folder), sign)
	if err == nil {
		_, err = checkIndexRole(folder, s.repo.authority().Self())
	}
	return data, err
}

// CheckIndex implements [archive.IndexSeals]. An index of older keys is never looked for among what
// stood when they were rotated: nobody has use for it.
func (s indexSeals) CheckIndex(folder string, sum archive.Digest, data []byte) error {
	if data == nil {
		return errors.New("it is not signed")
	}
	key := archive.IndexFolder(folder)
	_, signature, err := seal.Open(data)
	if err != nil {
		return fmt.Errorf("its signature: %w", err)
	}
	if signature != nil && signature.Generation < s.repo.keys().Generation() {
		return archive.ErrOldIndex
	}
	who, err := s.repo.authority().Check(key, seal.Digest(data), signature)
	if err == nil {
		_, err = checkIndexRole(folder, who)
	}
	if err != nil {
		return fmt.Errorf("it does not count: %w", err)
	}
	var v indexSignature
	if err := unsealAs(data, key, IndexSignatureFormat, &v); err != nil {
		return err
	}
	if v.Content != sum {
		return errors.New("its signature is that of another index")
	}
	return nil
}

// checkIndexRole says why an index in a folder does not count from somebody.
func checkIndexRole(folder string, who Author) (Author, error) {
	switch {
	case who.Manages():
		return who, nil
	case who.Rehearses(), who.AuthorName() != folder:
		return nil, &RoleError{Name: who.AuthorName(), What: "have indexes in " + archive.IndexFolder(folder)}
	}
	return who, nil
}
