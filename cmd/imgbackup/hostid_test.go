// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestHostID(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	word, err := hostID("farm-1")
	if err != nil {
		t.Fatal(err)
	}
	for _, same := range []string{" farm-1 ", write("id", "farm-1\n")} {
		if id, err := hostID(same); err != nil || id != word {
			t.Errorf("%q: %s, %v, want %s", same, id, err, word)
		}
	}
	for _, bad := range []string{" ", write("empty", "\n"), write("long", strings.Repeat("x", 100<<10)), dir} {
		if id, err := hostID(bad); err == nil {
			t.Errorf("%q became %s", bad, id)
		}
	}
	// A path that isn't there is never taken for a word.
	if id, err := hostID(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s, %v", id, err)
	}
}
