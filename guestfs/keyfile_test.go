// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A key is its file to the last byte; what is no key is refused, and never shown.
func TestParseKeys(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("a=b", "secret\x00\n")
	for text, want := range map[string]string{
		"vda:/dev/sda2=" + good:          "vda /dev/sda2",
		"/dev/vg0/root=" + good:          " /dev/vg0/root",
		"vda:/dev/sda2":                  "want [DISK:]DEVICE=FILE",
		"vda:/dev/sda2=":                 "want [DISK:]DEVICE=FILE",
		":/dev/sda2=" + good:             "want [DISK:]DEVICE=FILE",
		"vda:sda2=" + good:               "want [DISK:]DEVICE=FILE",
		"vda:/dev/a b=" + good:           "want [DISK:]DEVICE=FILE",
		"/dev/sda2=" + dir + "/no":       "no such file",
		"/dev/sda2=" + file("empty", ""): "is empty",
		"/dev/sda2=" + file("large", strings.Repeat("x", MaxKey+1)): "is no key",
	} {
		all, err := ParseKeys([]string{text})
		if err != nil {
			if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "xx") {
				t.Errorf("%s: %v", text, err)
			}
			continue
		}
		if got := fmt.Sprint(all[0].Disk, " ", all[0].Device); got != want || !bytes.Equal(all[0].Secret, []byte("secret\x00\n")) {
			t.Errorf("%s is %s", text, got)
		}
	}
}
