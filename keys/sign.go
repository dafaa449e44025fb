// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"crypto/ed25519"

	"github.com/imgbackup/imgbackup/internal/seal"
)

// signer signs as a member.
type signer struct {
	by         string
	generation int
	repository string
	key        ed25519.PrivateKey
}

func (s signer) States(key string) seal.Statement {
	return seal.Statement{By: s.by, Generation: s.generation, Repository: s.repository, Key: key}
}

func (s signer) Sign(signed []byte) ([]byte, error) { return ed25519.Sign(s.key, signed), nil }
