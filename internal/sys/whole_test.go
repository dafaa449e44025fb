// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// A file appears whole or not at all, and nothing else stays, also of a killed run.
func TestWriteWhole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	if err := os.WriteFile(filepath.Join(dir, ".x.left"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	put := func(text string, fails error) error {
		return WriteWhole(path, ".x.", 0o600, func(w io.Writer) error {
			_, err := io.WriteString(w, text)
			return errors.Join(err, fails)
		})
	}
	full := errors.New("full")
	for _, c := range []struct {
		text  string
		fails error
		want  string
	}{{"one", nil, "one"}, {"half", full, "one"}, {"two", nil, "two"}} {
		if err := put(c.text, c.fails); !errors.Is(err, c.fails) {
			t.Errorf("%s: %v", c.text, err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != c.want {
			t.Errorf("after %s: %q, %v", c.text, got, err)
		}
		if all, err := os.ReadDir(dir); err != nil || len(all) != 1 {
			t.Errorf("after %s: %v, %v", c.text, all, err)
		}
	}
}
