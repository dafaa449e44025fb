// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"fmt"
	"strings"
)

// MaxKeyLength bounds a key, in bytes: what S3 allows.
const MaxKeyLength = 1024

// maxPartLength bounds one part of a key, in bytes: what file systems allow.
const maxPartLength = 255

// Names that no key may begin with: a folder's root has them.
const (
	TempFolder = "tmp"        // what is being written
	LostFound  = "lost+found" // what fsck of ext file systems makes
)

// KeysFolder begins the keys of what opens an encrypted repository.
const KeysFolder = "keys"

// CheckKey says why a string can't be a key. A key is relative, at most
// MaxKeyLength bytes of [A-Za-z0-9_.%~+/-], and has no part that is empty,
// "." or "..", or longer than 255 bytes. The first part is not "tmp" or
// "lost+found".
func CheckKey(key string) error {
	if len(key) > MaxKeyLength {
		return fmt.Errorf("invalid key: %d bytes is more than %d", len(key), MaxKeyLength)
	}
	if err := checkBytes(key); err != nil {
		return err
	}
	if first, _, _ := strings.Cut(key, "/"); first == TempFolder || first == LostFound {
		return fmt.Errorf("invalid key %q: %s is reserved", key, first)
	}
	for part := range strings.SplitSeq(key, "/") {
		switch {
		case part == "" || part == "." || part == "..":
			return fmt.Errorf("invalid key %q: part %q", key, part)
		case len(part) > maxPartLength:
			return fmt.Errorf("invalid key %q: a part of %d bytes is longer than %d", key, len(part), maxPartLength)
		}
	}
	return nil
}

// CheckPrefix says why a string can't be the beginning of a key.
func CheckPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	// Whatever is cut off in the middle of a part can be completed by a letter.
	return CheckKey(prefix + "a")
}

func checkBytes(key string) error {
	for i := range len(key) {
		c := key[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("_.%~+-/", c) >= 0:
		default:
			return fmt.Errorf("invalid key %q: byte 0x%02x", key, c)
		}
	}
	return nil
}

// CheckRange says why a range can't be read.
func CheckRange(key string, offset, length int64) error {
	if offset < 0 || length < -1 {
		return fmt.Errorf("%s: invalid range: offset %d, length %d", key, offset, length)
	}
	return nil
}
