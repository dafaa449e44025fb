// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"

	"github.com/imgbackup/imgbackup/crypt"
)

// Indexing says whose indexes a session stores, and whose it believes. The zero value is that of
// nobody in particular, who believes all.
type Indexing struct {
	// Folder is where they are stored: the host's, or the member's whose key signs them; see
	// [IndexKey].
	Folder string
	// Seals signs them, and proves who has signed others; nil: nobody signs here.
	Seals IndexSeals
}

// IndexSeals signs indexes of an encrypted repository, and proves who has signed them.
type IndexSeals interface {
	// SignIndex is the signature of an index in a folder, of whose content this is the SHA-256.
	SignIndex(folder string, sum Digest) ([]byte, error)
	// CheckIndex proves one. The error is [ErrOldIndex], or says why it does not count.
	CheckIndex(folder string, sum Digest, signature []byte) error
}

// ErrOldIndex says that an index was signed with keys before the newest. It tells nothing: nothing
// that is stored with the newest has a digest that it lists.
var ErrOldIndex = errors.New("it was made with older keys")

// nobody is the folder of indexes of which nobody said whose they are.
const nobody = "nobody"

func (x *Indexing) folder() string {
	if x.Folder == "" {
		return nobody
	}
	return x.Folder
}

// maxIndexSignature bounds what proves who has signed an index, bytes.
const maxIndexSignature = 16 << 10

// cutIndex takes the content of an index apart: its frames, and the skippable frame behind them
// with the signature; nil: it has none.
func cutIndex(content []byte) (frames, signature []byte, err error) {
	for at := 0; at < len(content); {
		rest := content[at:]
		if len(rest) > skippableHead && binary.LittleEndian.Uint32(rest) == skippableMagic {
			signature, ok := skippable(rest)
			if !ok || len(signature) > maxIndexSignature {
				return nil, nil, errors.New("its signature is cut short, or something is behind it")
			}
			return content[:at], signature, nil
		}
		n, _, err := frameExtent(rest)
		if err != nil {
			return nil, nil, err
		}
		at += n
	}
	return content, nil, nil
}

// openIndex decrypts an index of which the bytes are proven by its name, proves who has signed it,
// and returns its frames. What does not count is damage; of older keys the error is ErrOldIndex.
func openIndex(stored []byte, key string, keys *crypt.Keys, x Indexing) ([]byte, error) {
	content, err := openObject(keys, crypt.Metadata, key, stored)
	if err != nil || keys == nil {
		return content, err
	}
	frames, signature, err := cutIndex(content)
	if err == nil && x.Seals != nil {
		folder, _ := IsIndex(indexFolder(key))
		err = x.Seals.CheckIndex(folder, Digest(sha256.Sum256(frames)), signature)
	}
	switch {
	case errors.Is(err, ErrOldIndex):
		return nil, ErrOldIndex
	case err != nil:
		return nil, Damaged(key, err)
	}
	return frames, nil
}

// signIndex ends an index whose content has this SHA-256.
func (x *Indexing) signIndex(into io.Writer, sum Digest) error {
	signature, err := x.Seals.SignIndex(x.folder(), sum)
	if err != nil {
		return err
	}
	_, err = into.Write(append(appendSkippable(nil, len(signature)), signature...))
	return err
}
