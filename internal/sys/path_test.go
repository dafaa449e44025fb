// SPDX-License-Identifier: Apache-2.0

package sys_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// A path leads where the kernel takes it: a link is followed before the ".." after it.
func TestLocate(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "x", "y"), 0o755); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"l": "x/y", "dangling": "none", "x/named": "y"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"new":         "new",
		"l/../new":    "x/new",
		"l/../../new": "new",
		"l/new/":      "x/y/new",
		"./x/./new":   "x/new",
		"l/..":        "x",
		"l/.":         "x/y",
		"l":           "l", // the link itself
		"x/named":     "x/named",
		"dangling":    "dangling",
	} {
		got, err := sys.Locate(dir + "/" + path)
		if err != nil || got != filepath.Join(dir, want) {
			t.Errorf("%s: got %s, %v, want %s", path, got, err, want)
		}
		made, err := os.Create(dir + "/" + path)
		if err == nil { // the kernel agrees
			_ = made.Close()
			if _, err := os.Lstat(got); err != nil {
				t.Errorf("%s: %v", path, err)
			}
			if err := os.Remove(dir + "/" + path); err != nil && path != "dangling" {
				t.Error(err)
			}
		}
	}
	for _, path := range []string{"none/new", "none/../new", "dangling/new"} {
		if got, err := sys.Locate(dir + "/" + path); err == nil {
			t.Errorf("%s: got %s", path, got)
		}
	}
	if got, err := sys.Locate("/"); got != "/" || err != nil {
		t.Errorf("/: got %s, %v", got, err)
	}
	if got, err := sys.Abs("a/../b"); filepath.Base(got) != "b" || len(got) <= len("/a/../b") || err != nil {
		t.Errorf("got %s, %v", got, err)
	}
}
