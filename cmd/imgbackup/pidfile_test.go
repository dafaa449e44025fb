// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/usage"
)

// A pid file replaces only a pid file, and is removed only while it is ours.
func TestPIDFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pid")
	ours := fmt.Sprintln(os.Getpid())
	for _, before := range []string{"", "1\n", "12345", "\x00nothing"} {
		if before != "\x00nothing" {
			if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := writePIDFile(path); err != nil {
			t.Errorf("over %q: %v", before, err)
		}
		if got, err := os.ReadFile(path); string(got) != ours || err != nil {
			t.Errorf("over %q: got %q, %v", before, got, err)
		}
		removePIDFile(path)
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("over %q: it stays: %v", before, err)
		}
	}
	for _, text := range []string{"QFI\xfb", "12 34\n", "-1\n", "1\n\n", strings.Repeat("1", 100)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := writePIDFile(path); !errors.Is(err, usage.ErrWrong) {
			t.Errorf("over %q: got %v", text, err)
		}
		if got, err := os.ReadFile(path); string(got) != text || err != nil {
			t.Errorf("%q is %q now, %v", text, got, err)
		}
	}
	if err := os.WriteFile(path, []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	removePIDFile(path)
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("another's is removed: %v", err)
	}
	for name, make := range map[string]func(string) error{
		"link":   func(p string) error { return os.Symlink(path, p) },
		"folder": func(p string) error { return os.Mkdir(p, 0o755) },
		"fifo":   func(p string) error { return unix.Mkfifo(p, 0o600) },
	} {
		p := path + name
		if err := make(p); err != nil {
			t.Fatal(err)
		}
		if err := writePIDFile(p); err == nil {
			t.Errorf("a %s is replaced", name)
		}
		if _, err := os.Lstat(p); err != nil {
			t.Errorf("the %s is gone: %v", name, err)
		}
	}
}
