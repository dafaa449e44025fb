// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestTempDir: a spool that is told no folder follows TMPDIR, else it is on a disk.
func TestTempDir(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "that is not there"))
	s := Spool{}
	defer s.Close()
	if _, err := s.Write(random(Memory)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file was made elsewhere: %v", err)
	}
	t.Setenv("TMPDIR", "")
	if _, err := os.Stat("/var/tmp"); err == nil && TempDir() != "/var/tmp" {
		t.Errorf("it goes to %s", TempDir())
	}
}
