// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"crypto/sha256"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// A SHA-256 that is known goes with the bytes: the server takes no others, and says it
// again. Listings say which bytes stand there, by the server's own tag.
func testS3Known(t *testing.T, server *s3test.Server) {
	s := openS3(t, server.Config(server.Bucket(), "known"))
	sum := sha256.Sum256([]byte("content"))
	put := func(key, content string, o objstore.PutOptions) error {
		return s.Put(t.Context(), key, strings.NewReader(content), o)
	}
	if err := put("a", "content", objstore.PutOptions{SHA256: sum}); err != nil {
		t.Fatal(err)
	}
	info, err := s.Stat(t.Context(), "a")
	if err != nil || info.SHA256 != sum {
		t.Errorf("stat: %x, %v; want %x", info.SHA256, err, sum)
	}
	if err := put("b", "another", objstore.PutOptions{SHA256: sum}); err == nil {
		t.Error("it takes other bytes than those of the SHA-256")
	}
	if err := put("b", "content", objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if info, err := s.Stat(t.Context(), "b"); err != nil || info.SHA256 != [sha256.Size]byte{} {
		t.Errorf("stat of what was stored without: %x, %v", info.SHA256, err)
	}
	version := func(key string) string {
		for info, err := range s.List(t.Context(), key) {
			if err != nil || info.Version == "" {
				t.Errorf("list: %+v, %v", info, err)
			}
			return info.Version
		}
		return ""
	}
	before := version("b")
	if again := version("b"); again != before {
		t.Errorf("the version of what did not change: %q, then %q", before, again)
	}
	if err := put("b", "CONTENT", objstore.PutOptions{Mode: objstore.Replace}); err != nil {
		t.Fatal(err)
	}
	if after := version("b"); after == before {
		t.Errorf("what was replaced has the same version, %q", after)
	}
}
