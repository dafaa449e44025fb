// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"errors"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/seal"
)

// maxSealed bounds a sealed object, bytes, and maxStored what is stored of one, which may be
// encrypted.
const (
	maxSealed = seal.Max
	maxStored = maxSealed + maxSealed/2048
)

// keys are those that encrypt what is stored; nil: nothing does.
func (r *Repository) keys() *crypt.Keys {
	if r.Access == nil {
		return nil
	}
	return r.Access.Keys
}

// seal returns what is stored under a key for v: sealed, and in an encrypted repository
// encrypted. It is another each time there; so what is tried again is kept.
func (r *Repository) seal(key string, v any) ([]byte, error) {
	sign, err := r.signer()
	if err != nil {
		return nil, err
	}
	data, err := seal.Seal(v, key, sign)
	if err != nil {
		return nil, err
	}
	if err := r.checkMayStore(key, v, data); err != nil {
		return nil, err
	}
	return r.encrypt(crypt.Metadata, data)
}

func (r *Repository) encrypt(half crypt.Half, data []byte) ([]byte, error) {
	if r.keys() == nil {
		return data, nil
	}
	return r.keys().Append(nil, half, data)
}

// open returns the sealed bytes of what stands under a key. What does not open is damage,
// unless it is for want of a key (a crypt.KeyError).
func (r *Repository) open(half crypt.Half, key string, stored []byte) ([]byte, error) {
	if r.keys() == nil {
		return stored, nil
	}
	data, err := r.keys().Open(nil, half, stored)
	if err != nil && !errors.As(err, new(*crypt.KeyError)) {
		err = archive.Damaged(key, err)
	}
	return data, err
}

// openAs opens and proves what stands under a key, and decodes it into v, as unsealAs does.
func (r *Repository) openAs(stored []byte, key, format string, v headed) error {
	_, err := r.openBy(stored, key, format, v)
	return err
}

// openBy is openAs, and says who has signed it; nil: nothing is signed here.
func (r *Repository) openBy(stored []byte, key, format string, v headed) (Author, error) {
	data, who, err := r.openSigned(key, stored)
	if err != nil {
		return nil, err
	}
	return who, unsealAs(data, key, format, v)
}

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

// parseAs opens and proves the bytes of an object under a key and that it belongs there, as belongs
// says (who: who has signed it), and takes the escapes out of its texts. The error is an archive.DamageError or a
// NewerError.
func parseAs[T any, P withTexts[T]](r *Repository, data []byte, key, format string, belongs func(v P, who Author) error) (P, error) {
	var stored T
	who, err := r.openBy(data, key, format, P(&stored))
	if err != nil {
		return nil, err
	}
	v, err := P(&stored).mapTexts(unescapeText)
	if err == nil {
		err = P(v).Validate()
	}
	if err == nil {
		err = belongs(v, who)
	}
	if err != nil {
		return nil, archive.Damaged(key, err)
	}
	return v, nil
}

// sameContent reports whether two objects, as they are stored under a key, say the same.
func (r *Repository) sameContent(key string, a, b []byte) bool {
	x, err := r.open(crypt.Metadata, key, a)
	y, errb := r.open(crypt.Metadata, key, b)
	return err == nil && errb == nil && bytes.Equal(x, y)
}
