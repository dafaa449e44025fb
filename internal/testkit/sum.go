// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"crypto/sha256"
	"io"
	"os"
	"testing"
)

// Sum is the SHA-256 of a file.
func Sum(t testing.TB, path string) [sha256.Size]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // only for reading
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
