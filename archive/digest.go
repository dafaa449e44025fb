// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore/hidden"
)

// Digest is a SHA-256.
type Digest [sha256.Size]byte

// Sum returns the digest of data.
func Sum(data []byte) Digest { return sha256.Sum256(data) }

// ProvesChunk reports whether a chunk has a digest: in a repository with keys a keyed one, of any
// generation.
func ProvesChunk(keys *crypt.Keys, chunk []byte, want Digest) bool {
	if keys == nil {
		return Sum(chunk) == want
	}
	return keys.Proves(chunk, want)
}

// String returns 64 lower-case hex digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether d was never set.
func (d Digest) IsZero() bool { return d == Digest{} }

// ParseDigest reads exactly 64 lower-case hex digits.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	if len(s) != hexLen || !parseHex(&d, []byte(s)) {
		return Digest{}, notDigest(s)
	}
	return d, nil
}

func notDigest(s string) error {
	return fmt.Errorf("not a SHA-256 (64 lower-case hex digits): %.80q", s)
}

// MarshalText returns what String returns.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is ParseDigest.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != hexLen || !parseHex(d, text) {
		return notDigest(string(text))
	}
	return nil
}

// Ref names an immutable object: the SHA-256 of its stored bytes, and their number.
type Ref struct {
	Name   Digest `json:"name"`
	Length int64  `json:"length"`
}

// MapRef names a map and proves its frame directory, the last DirLength bytes of
// the object, so that a reader may trust parts of the map without reading all of it.
type MapRef struct {
	Ref
	DirLength int64  `json:"dir_length"`
	DirDigest Digest `json:"dir_sha256"`
}

// Prefixes of the keys of the immutable objects.
const (
	PackPrefix   = "packs/"
	MapPrefix    = "maps/"
	BitmapPrefix = "bitmaps/"
	IndexPrefix  = "index/"
)

// PackKey returns the key of a pack: packs/ab/abcd….zst.
func PackKey(d Digest) string { return objectKey(PackPrefix, d) }

// MapKey returns the key of a map.
func MapKey(d Digest) string { return objectKey(MapPrefix, d) }

// BitmapKey returns the key of a stored bitmap.
func BitmapKey(d Digest) string { return objectKey(BitmapPrefix, d) }

// IndexKey returns the key of an index that is in a folder: index/FOLDER/ab/abcd….zst.
func IndexKey(folder string, d Digest) string { return objectKey(IndexFolder(folder), d) }

// IndexFolder returns the prefix of the indexes in a folder, as [ParseKey] has it.
func IndexFolder(folder string) string { return IndexPrefix + folder + "/" }

// IsIndex reports whether a prefix that [ParseKey] has returned is one of indexes, and in
// which folder they are.
func IsIndex(prefix string) (folder string, ok bool) {
	rest, ok := strings.CutPrefix(prefix, IndexPrefix)
	if !ok || len(rest) < 2 {
		return "", false
	}
	return rest[:len(rest)-1], true
}

// indexFolder takes the folder from the key of an index: the prefix up to it; "": it has none.
func indexFolder(key string) string {
	rest, ok := strings.CutPrefix(key, IndexPrefix)
	if !ok {
		return ""
	}
	folder, _, ok := strings.Cut(rest, "/")
	if !ok || !isFolder(folder) {
		return ""
	}
	return IndexFolder(folder)
}

// maxFolder is the longest part of a key, bytes.
const maxFolder = 255

// isFolder reports whether a text can be a folder of indexes: what can name a host.
func isFolder(s string) bool {
	if hidden.Is(s) {
		return true
	}
	if s == "" || len(s) > maxFolder || s[0] == '.' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

// ObjectKey returns the key of an immutable object with one of the prefixes.
func ObjectKey(prefix string, d Digest) string { return objectKey(prefix, d) }

func objectKey(prefix string, d Digest) string {
	s := d.String()
	return prefix + s[:2] + "/" + s + objectSuffix
}

const objectSuffix = ".zst"

// KeyOf returns the key that [ParseKey] takes apart.
func KeyOf(prefix string, name Digest) string { return objectKey(prefix, name) }

// ParseKey splits the key of an immutable object into its prefix (one of
// [PackPrefix], [MapPrefix], [BitmapPrefix], [ClustersPrefix], [FilePrefix], or an
// [IndexFolder]) and its name. ok is false for any other key.
func ParseKey(key string) (prefix string, name Digest, ok bool) {
	for _, p := range [...]string{PackPrefix, MapPrefix, BitmapPrefix, ClustersPrefix, FilePrefix, indexFolder(key)} {
		if p == "" || len(key) != len(p)+3+hexLen+len(objectSuffix) || key[:len(p)] != p {
			continue
		}
		d, err := ParseDigest(key[len(p)+3 : len(p)+3+hexLen])
		if err != nil || objectKey(p, d) != key {
			return "", Digest{}, false
		}
		return p, d, true
	}
	return "", Digest{}, false
}
