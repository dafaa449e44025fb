// SPDX-License-Identifier: Apache-2.0

package files

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/guestfs"
)

// Of files that an archive was made of that failed only those stay that are the guest's, under all names.
func TestOnlyWholeFilesStay(t *testing.T) {
	t.Parallel()
	guest := map[string]string{"good": "content", "sub/bad": "content", "sub/again": "content", "unread": "", "sub/empty": ""}
	sum := func(below string) (string, error) {
		text, ok := guest[below]
		if !ok || below == "unread" {
			return "", &guestfs.CallError{Command: "checksum", Said: "Input/output error"}
		}
		h := sha256.Sum256([]byte(text))
		return hex.EncodeToString(h[:]), nil
	}
	for _, name := range []string{"", "etc"} {
		a := newThings(t)
		a.add(tar.TypeDir, ".", "").add(tar.TypeReg, "good", "content").add(tar.TypeDir, "sub", "").add(tar.TypeReg, "sub/bad", "cont\x00\x00\x00")
		a.add(tar.TypeLink, "sub/again", "sub/bad").add(tar.TypeReg, "sub/empty", "").add(tar.TypeSymlink, "sub/link", "../good").add(tar.TypeReg, "unread", "\x00")
		out, _ := a.extract(name, false)
		var gone []string
		bytes := int64(0)
		if err := removeOthers(out, name, sum, func(below string, size int64, _ error) { gone, bytes = append(gone, below), bytes+size }); err != nil {
			t.Fatal(err)
		}
		if bytes != 7+1 { // sub/bad has two names
			t.Errorf("%d bytes are gone", bytes)
		}
		if slices.Sort(gone); !slices.Equal(gone, []string{"sub/again", "sub/bad", "unread"}) {
			t.Errorf("%q were removed", gone)
		}
		for path, want := range map[string]bool{"good": true, "sub/empty": true, "sub/link": true, "sub/bad": false, "sub/again": false, "unread": false} {
			if _, err := os.Lstat(filepath.Join(out, name, path)); (err == nil) != want {
				t.Errorf("%s: %v", path, err)
			}
		}
		// Nobody knows any more: nothing is removed, and it is told.
		ended := func(string) (string, error) { return "", guestfs.ErrEnded }
		if err := removeOthers(out, name, ended, func(below string, _ int64, _ error) { t.Errorf("%s is removed", below) }); !errors.Is(err, guestfs.ErrEnded) {
			t.Error(err)
		}
	}
	if err := removeOthers(t.TempDir(), "etc", sum, nil); err != nil {
		t.Error(err)
	}
}
