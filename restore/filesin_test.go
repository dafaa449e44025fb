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
	targets := restore.FilesIn(m, "out", nil)
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
