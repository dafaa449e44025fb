// SPDX-License-Identifier: Apache-2.0

package local_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
)

// Whatever leads into a store's folder is known to, and nothing else is.
func TestCheckOutside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	s, err := local.Create(at("repo"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.MkdirAll(at("repo/packs/ab"), 0o700), os.Mkdir(at("repo2"), 0o700), os.WriteFile(at("repo/object"), nil, 0o600),
		os.Symlink("repo", at("link")), os.Symlink(at("repo/packs"), at("packs")), os.Symlink("link/new", at("dangling")),
		os.Symlink("dangling", at("dangling2")), os.Symlink("none/new", at("nowhere")), os.Symlink("..", at("repo/out")),
		os.Symlink("loop", at("loop")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, inside := range map[string]bool{
		"repo": true, "repo/": true, "repo/object": true, "repo/new": true, "repo/none/new": true, "repo2/../repo/new": true,
		"link": true, "link/object": true, "link/none/new": true, "packs": true, "packs/ab/new": true,
		"packs/../new": true, "packs/../../new": false, "repo/out/repo/new": true,
		"dangling": true, "dangling2": true, "repo/object/new": true, "dangling/new": true,
		"repo2": false, "repo2/new": false, "new": false, "rep": false, "none/none": false, "nowhere": false, "repo/out/new": false, "": false,
	} {
		err := objstore.CheckOutside(s, dir+"/"+path)
		if inside != (err != nil) || err != nil && !errors.Is(err, usage.ErrWrong) {
			t.Errorf("%q: %v, and it lies inside: %v", path, err, inside)
		}
	}
	if err := objstore.CheckOutside(s, at("loop")); err == nil || errors.Is(err, usage.ErrWrong) {
		t.Errorf("where nobody knows: %v", err)
	}
	if err := objstore.CheckOutside(objstore.NewMem(), at("repo")); err != nil {
		t.Error(err)
	}
}

// Relative paths are those of the working directory, which may lie in the store.
func TestCheckOutsideFromWithin(t *testing.T) {
	dir := t.TempDir()
	s, err := local.Create(dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for path, inside := range map[string]bool{"new": true, ".": true, "": true, "../new": false} {
		if err := objstore.CheckOutside(s, path); inside != (err != nil) {
			t.Errorf("%q: %v, and it lies inside: %v", path, err, inside)
		}
	}
}
