// SPDX-License-Identifier: Apache-2.0

package local_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
)

// forFolders does something in place of syncing folders, and syncs no file.
func forFolders(do func() error) func(*os.File) error {
	return func(f *os.File) error {
		if info, err := f.Stat(); err != nil || !info.IsDir() {
			return err
		}
		return do()
	}
}

// Where folders cannot be synced, a store does what can be done and says so once.
func TestLocalFolderSyncUnsupported(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "repo")
	var notes []string
	calls := 0
	s, err := local.Create(dir, local.Options{
		Note: func(msg string) { notes = append(notes, msg) },
		Sync: forFolders(func() error { calls++; return syscall.EINVAL }),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	ctx := t.Context()
	for _, key := range []string{"x/y/1", "x/y/2"} {
		if err := s.Put(ctx, key, strings.NewReader("data"), objstore.PutOptions{Mode: objstore.Create}); err != nil {
			t.Fatal(err)
		}
		if err := s.Put(ctx, key, strings.NewReader("data"), objstore.PutOptions{Mode: objstore.Create}); !errors.Is(err, objstore.ErrExists) {
			t.Fatal(err)
		}
		if err := s.Put(ctx, key, strings.NewReader("other"), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(ctx, "x/y/1"); err != nil {
		t.Fatal(err)
	}
	if calls < 9 || len(notes) != 1 {
		t.Errorf("%d folders to sync, notes %q", calls, notes)
	}
}

// A medium that fails is a failure in every step.
func TestLocalFolderSyncFails(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	failing := local.Options{Sync: forFolders(func() error { return syscall.EIO })}
	if _, err := local.Create(filepath.Join(base, "new"), failing); !errors.Is(err, syscall.EIO) {
		t.Errorf("create: %v", err)
	}
	dir := filepath.Join(base, "repo")
	good, err := local.Create(dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = good.Close() }()
	ctx := t.Context()
	if err := good.Put(ctx, "there", strings.NewReader("data"), objstore.PutOptions{Mode: objstore.Create}); err != nil {
		t.Fatal(err)
	}
	s, err := local.Open(dir, failing)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	for what, err := range map[string]error{
		"create":          s.Put(ctx, "new", strings.NewReader("data"), objstore.PutOptions{Mode: objstore.Create}),
		"create again":    s.Put(ctx, "there", strings.NewReader("data"), objstore.PutOptions{Mode: objstore.Create}),
		"replace":         s.Put(ctx, "there", strings.NewReader("data"), objstore.PutOptions{Mode: objstore.Replace}),
		"in a new folder": s.Put(ctx, "x/y", strings.NewReader("data"), objstore.PutOptions{Mode: objstore.Create}),
		"delete":          s.Delete(ctx, "there"),
	} {
		if !errors.Is(err, syscall.EIO) || errors.Is(err, objstore.ErrExists) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Without flock a store works, and what killed writers left stays.
func TestNoFlock(t *testing.T) {
	t.Parallel()
	if !testkit.Refusing(t, uintptr(syscall.SYS_FLOCK), syscall.ENOLCK) {
		return
	}
	dir := t.TempDir()
	left := filepath.Join(dir, "tmp", "left")
	if err := os.MkdirAll(filepath.Dir(left), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := local.Open(dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if err := s.Put(t.Context(), "a/b", strings.NewReader("data"), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if data, err := objstore.ReadAll(t.Context(), s, "a/b", 100); err != nil || string(data) != "data" {
		t.Errorf("%q, %v", data, err)
	}
	if names := testkit.Names(t, filepath.Dir(left)); len(names) != 1 {
		t.Errorf("in tmp: %q", names)
	}
}
