// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What is no file, or is longer than it may be, is refused at once.
func TestReadBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, link, pipe := filepath.Join(dir, "a"), filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	if err := errors.Join(os.WriteFile(path, []byte("1234"), 0o600), os.Symlink("a", link), unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadBounded(path, 4); err != nil || string(got) != "1234" {
		t.Errorf("as long as it may be: %q, %v", got, err)
	}
	if _, err := ReadBounded(path, 3); !errors.As(err, new(*UnfitError)) {
		t.Errorf("too long: %v", err)
	}
	if _, err := ReadBounded(filepath.Join(dir, "none"), 4); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	for _, path := range []string{link, pipe, dir} {
		if _, err := ReadBounded(path, 4); !errors.As(err, new(*UnfitError)) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
