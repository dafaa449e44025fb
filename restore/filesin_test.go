// SPDX-License-Identifier: Apache-2.0

package restore_test

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/restore"
)

// Where the files of a checkpoint go, whatever order a manifest has them in.
func TestFilesIn(t *testing.T) {
	t.Parallel()
	m := &chain.Manifest{Domain: "web", Files: []chain.File{
		{Role: chain.RoleManagedSave, Path: "/s/web.save"},
		{Role: chain.RoleNVRAM, Path: "/n/web.save"},
		{Role: chain.RoleManagedSave, Path: "/s/web.save", Offset: 64 << 20},
		{Role: chain.RoleTPM, Path: "/t/tpm2/x", Name: "tpm2/x"},
		{Role: chain.RoleDomainXML},
	}}
	targets := restore.FilesIn(m, "web", "out", nil)
	var paths []string
	for _, target := range targets {
		paths = append(paths, target.Path)
	}
	if want := []string{"out/web.save", "out/web.nvram", "out/web.tpm/tpm2/x", "out/web.xml"}; !slices.Equal(paths, want) {
		t.Fatalf("got %q, want %q", paths, want)
	}
	if len(targets[0].More) != 1 || targets[0].More[0] != &m.Files[2] || len(targets[1].More) > 0 {
		t.Errorf("parts of the saved memory: %+v", targets)
	}
	if want := []string{filepath.Join("out", "web.tpm"), filepath.Join("out", "web.tpm", "tpm2")}; !slices.Equal(targets[2].Folders, want) {
		t.Errorf("folders %q, want %q", targets[2].Folders, want)
	}
}

// What a person has named keeps its name, whatever the others were called, unless something
// of another name must stand there.
func TestFilesInNamed(t *testing.T) {
	t.Parallel()
	m := &chain.Manifest{Domain: "web", Files: []chain.File{
		{Role: chain.RoleNVRAM, Path: "/n/vars.fd"},
		{Role: chain.RoleFile, Name: "vars.fd", Path: "/etc/x"},
		{Role: chain.RoleFile, Name: "vda.raw"},
		{Role: chain.RoleFile, Name: "web.file.vda.raw"},
		{Role: chain.RoleFile, Name: "web.xml"},
	}}
	var paths []string
	for _, target := range restore.FilesIn(m, "web", "out", []restore.Target{{Disk: "vda", Path: "out/vda.raw"}}) {
		paths = append(paths, target.Path)
	}
	want := []string{"out/web.nvram", "out/vars.fd", "out/web.file.vda.raw", "out/web.file.web.file.vda.raw", "out/web.file.web.xml"}
	if !slices.Equal(paths, want) {
		t.Errorf("got %q, want %q", paths, want)
	}
}

// Whatever the files were called, no two of them go to one place.
func TestFilesInApart(t *testing.T) {
	t.Parallel()
	for _, names := range [][2]string{{"/a/web.nvram", "/a/."}, {"/a/.", "/a/web.loader"}, {"/a/web.nvram", "/a/web.loader"}, {"/a/x", "/b/x"}, {"/a/web.xml", "/b/vda.raw"}} {
		m := &chain.Manifest{Domain: "web", Files: []chain.File{
			{Role: chain.RoleDomainXML}, {Role: chain.RoleLoader, Path: names[0]}, {Role: chain.RoleNVRAM, Path: names[1]},
		}}
		seen := map[string]bool{"out/vda.raw": true}
		for _, target := range restore.FilesIn(m, "web", "out", []restore.Target{{Disk: "vda", Path: "out/vda.raw"}}) {
			if seen[target.Path] {
				t.Errorf("%q: two files go to %s", names, target.Path)
			}
			seen[target.Path] = true
		}
	}
}
