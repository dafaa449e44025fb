// SPDX-License-Identifier: Apache-2.0

package local_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgbackup/imgbackup/objstore/local"
)

// modesOf returns the modes of all that is in a folder, by path.
func modesOf(t *testing.T, dir string) map[string]fs.FileMode {
	t.Helper()
	modes := make(map[string]fs.FileMode)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err == nil {
			modes[path] = info.Mode()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return modes
}

// What a group shares is open to it, and to nobody else, whoever writes later; what
// nobody shares is its owner's alone, also in a folder that is open to a group.
func TestShared(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{true, false} {
		dir := filepath.Join(t.TempDir(), "repo")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o770|fs.ModeSetgid); err != nil {
			t.Fatal(err)
		}
		s, err := local.Create(dir, local.Options{Shared: shared})
		if err != nil {
			t.Fatal(err)
		}
		write(t, s, "imgbackup.json", "{}")
		write(t, s, "a/b/first", "x")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 { // whether init is asked for again or not
			later, err := local.Open(dir, local.Options{})
			if err != nil {
				t.Fatal(err)
			}
			write(t, later, "a/c/later", "x")
			write(t, later, "a/b/first", "y")
			if err := later.Close(); err != nil {
				t.Fatal(err)
			}
			if later, err = local.Create(dir, local.Options{Shared: !shared}); err != nil {
				t.Fatal(err)
			}
			write(t, later, "d/again", "x")
			if err := later.Close(); err != nil {
				t.Fatal(err)
			}
		}
		for path, mode := range modesOf(t, dir) {
			want := fs.FileMode(0o600)
			switch {
			case path == dir:
				want = fs.ModeDir | fs.ModeSetgid | 0o770
			case mode.IsDir() && shared:
				want = fs.ModeDir | fs.ModeSetgid | 0o770
			case mode.IsDir():
				want = fs.ModeDir | fs.ModeSetgid | 0o700 // the folder above hands it down
			case shared:
				want = 0o660
			}
			if mode != want {
				t.Errorf("shared: %v: %s has the mode %v, want %v", shared, path, mode, want)
			}
		}
	}
}
