// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/crypt"
)

// VoidFormat is the value of a void's field "format".
const VoidFormat = "imgbackup-void"

// maxVoid is the most bytes that a void has, and less than any manifest does: what a
// listing shows to be larger is none.
const maxVoid = 512

// maxVoid is maxVoid as voids are stored. Of an encrypted repository also a manifest may have no
// more.
func (r *Repository) maxVoid() int64 {
	if r.keys() == nil {
		return maxVoid
	}
	return maxVoid + crypt.MaxHeader + maxSignedMore
}

// maxSignedMore bounds what a signature adds to a sealed object, bytes.
const maxSignedMore = 5120

// Void stands under a manifest's key where there is no checkpoint, so that no commit
// that was prepared for what stood there before can succeed: each one has an identity
// of its own. The name is free, and a manifest that takes a void's place names it
// ([Manifest.OverVoid]).
type Void struct {
	Head
	RepositoryID string `json:"repository_id"`
	UUID         string `json:"uuid"`
}

func (r *Repository) newVoid() *Void {
	return &Void{Head: Head{Format: VoidFormat, Version: 1}, RepositoryID: r.Config.ID, UUID: NewUUID()}
}

// parseVoid returns the void that data is, or nil where it is something else.
func (r *Repository) parseVoid(data []byte, key string) (*Void, error) {
	if int64(len(data)) > r.maxVoid() {
		return nil, nil
	}
	data, who, err := r.openSigned(key, data)
	if err != nil || len(data) > maxVoid {
		return nil, err
	}
	plain, err := unsealed(data)
	if err != nil {
		return nil, archive.Damaged(key, err)
	}
	var head struct {
		Format string `json:"format"`
	}
	if err := json.Unmarshal(plain, &head); err != nil || head.Format != VoidFormat {
		return nil, nil // whatever it is, it is no void
	}
	var v Void
	if err := unsealAs(data, key, VoidFormat, &v); err != nil {
		return nil, err
	}
	err = validUUID(v.UUID)
	if err == nil && v.RepositoryID != r.Config.ID {
		err = fmt.Errorf("it belongs to repository %s", v.RepositoryID)
	}
	if rerr := checkSlotRole(&v, who); err == nil && rerr != nil {
		err = fmt.Errorf("it does not count: %w", rerr)
	}
	if again, serr := Seal(v); err == nil && (serr != nil || !bytes.Equal(again, data)) {
		err = errors.New("it is not as voids are written")
	}
	if err != nil {
		return nil, archive.Damaged(key, err)
	}
	return &v, nil
}
