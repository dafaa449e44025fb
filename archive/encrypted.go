// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// Encrypted returns a store whose objects are encrypted under keys, for all that reads
// and writes archives; without keys it is store itself. The store gives and takes bytes as
// they are stored, and takes none but age files, so that whoever forgets the keys stores
// nothing instead of what anybody could read.
func Encrypted(store objstore.Store, keys *crypt.Keys) objstore.Store {
	if keys == nil {
		return store
	}
	e := &encrypted{Store: store, keys: keys}
	if r, ok := objstore.As[objstore.Remembering](store); ok {
		return &encryptedRemembering{encrypted: e, Remembering: r}
	}
	return e
}

// encryptedRemembering is over a store that remembers: what does not is encrypted as well.
type encryptedRemembering struct {
	*encrypted
	objstore.Remembering
}

// Direct implements [objstore.Remembering].
func (e *encryptedRemembering) Direct() objstore.Store {
	return Encrypted(e.Remembering.Direct(), e.keys)
}

// keyed is a store with keys.
type keyed interface{ cryptKeys() *crypt.Keys }

func (e *encrypted) cryptKeys() *crypt.Keys { return e.keys }

// KeysOf returns the keys of an [Encrypted] store; nil: it is plain.
func KeysOf(store objstore.Store) *crypt.Keys {
	if e, ok := objstore.As[keyed](store); ok {
		return e.cryptKeys()
	}
	return nil
}

type encrypted struct {
	objstore.Store
	keys *crypt.Keys
}

func (e *encrypted) Unwrap() objstore.Store { return e.Store }

// Put refuses what is not encrypted, but for what has to be read without keys.
func (e *encrypted) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if !plainKey(key) {
		begin := make([]byte, len(ageMagic))
		if n, _ := body.ReadAt(begin, 0); string(begin[:n]) != ageMagic {
			return fmt.Errorf("%s was about to be stored without encryption: a fault of this program", key)
		}
	}
	return e.Store.Put(ctx, key, body, o)
}

// NoObject is what a store is given that is expected to refuse it: nothing takes it for an
// object, and an [Encrypted] store passes it on.
const NoObject = ageMagic

// ageMagic begins every age file.
const ageMagic = "age-encryption.org/v1\n"

// plainKey reports whether what stands under a key is not encrypted to the repository's
// keys: the configuration, the keys' own files, signatures, and what a probe stores.
func plainKey(key string) bool {
	return key == "imgbackup.json" || strings.HasPrefix(key, "keys/") || strings.HasPrefix(key, objstore.ProbePrefix) ||
		strings.HasSuffix(key, ".sig")
}

// openObject decrypts a whole object that was read, which is damaged where it does not
// open, unless it is for want of a key. Without keys it is what was read.
func openObject(keys *crypt.Keys, half crypt.Half, key string, stored []byte) ([]byte, error) {
	if keys == nil {
		return stored, nil
	}
	plain, err := keys.Open(nil, half, stored)
	return plain, unopened(key, 0, int64(len(stored)), err)
}

// unopened makes damage of what did not open, but of the want of a key.
func unopened(object string, offset, length int64, err error) error {
	if err == nil || isKeyError(err) {
		return err
	}
	return &DamageError{Object: object, Offset: offset, Length: length, Err: err}
}

func isKeyError(err error) bool {
	var k *crypt.KeyError
	return errors.As(err, &k)
}

// decrypting reads an object of a store that may be encrypted, out of what is stored, of which
// all bytes have been proven. What does not open is damaged.
func decrypting(store objstore.Store, key string, half crypt.Half, stored io.Reader) (io.Reader, error) {
	keys := KeysOf(store)
	if keys == nil {
		return stored, nil
	}
	r, err := keys.Reader(half, stored)
	return r, unopened(key, 0, 0, err)
}
