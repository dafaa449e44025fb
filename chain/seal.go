// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/seal"
)

// maxSealed bounds a sealed object, bytes.
const maxSealed = seal.Max

// Seal writes v, which must encode to a JSON object with at least one field, as
// [seal.Seal] says, unsigned.
func Seal(v any) ([]byte, error) { return seal.Seal(v, "", nil) }

// unsealed proves data and returns the JSON without the digest.
func unsealed(data []byte) ([]byte, error) {
	plain, _, err := seal.Open(data)
	return plain, err
}

// decodeStrict decodes exactly one JSON object.
func decodeStrict(data []byte, v any) error { return seal.Decode(data, v) }

// withTexts is an object with texts, which are escaped where it is stored.
type withTexts[T any] interface {
	*T
	headed
	mapTexts(do func(string) (string, error)) (*T, error)
	Validate() error
}

// parseAs proves the bytes of an object under a key and that it belongs there, as belongs
// says, and takes the escapes out of its texts. The error is an archive.DamageError or a
// NewerError.
func parseAs[T any, P withTexts[T]](data []byte, key, format string, belongs func(P) error) (P, error) {
	var stored T
	if err := unsealAs(data, key, format, P(&stored)); err != nil {
		return nil, err
	}
	v, err := P(&stored).mapTexts(unescapeText)
	if err == nil {
		err = P(v).Validate()
	}
	if err == nil {
		err = belongs(v)
	}
	if err != nil {
		return nil, archive.Damaged(key, err)
	}
	return v, nil
}
