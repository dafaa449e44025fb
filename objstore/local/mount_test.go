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

func TestLocalFullDisk(t *testing.T) {
	t.Parallel()
	if !testkit.InNamespace(t, 0) {
		return
	}
	dir := t.TempDir()
	testkit.Mount(t, "tmpfs", dir, "tmpfs", 0, "size=1m")
	s := newLocal(t, dir)
	write(t, s, "d/small", "small")
	large := strings.Repeat("x", 2<<20)
	for key, mode := range map[string]objstore.Mode{"d/large": objstore.Create, "d/small": objstore.Replace} {
		err := s.Put(t.Context(), key, strings.NewReader(large), objstore.PutOptions{Mode: mode})
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "is full") || !strings.Contains(err.Error(), dir) {
			t.Errorf("put %s on a full disk: %v", key, err)
		}
	}
	if keys, err := listAll(t.Context(), s, ""); err != nil || len(keys) != 1 {
		t.Errorf("%q, %v", keys, err)
	}
	if got, err := objstore.ReadAll(t.Context(), s, "d/small", 10); err != nil || string(got) != "small" {
		t.Errorf("%q, %v", got, err)
	}
	if names := temps(t, dir); len(names) != 0 {
		t.Errorf("left in tmp: %q", names)
	}
	write(t, s, "d/next", strings.Repeat("y", 512<<10)) // there is room again
}

func TestLocalReadOnly(t *testing.T) {
	t.Parallel()
	if !testkit.InNamespace(t, 0) {
		return
	}
	dir := t.TempDir()
	write(t, newLocal(t, dir), "d/object", "content")
	testkit.Mount(t, dir, dir, "", syscall.MS_BIND, "")
	if err := syscall.Mount("", dir, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	s, err := local.Open(dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := objstore.ReadAll(t.Context(), s, "d/object", 100)
	if err != nil || string(got) != "content" {
		t.Errorf("%q, %v", got, err)
	}
	if keys, err := listAll(t.Context(), s, ""); err != nil || len(keys) != 1 {
		t.Errorf("%q, %v", keys, err)
	}
	for op, err := range map[string]error{
		"create":  s.Put(t.Context(), "d/new", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}),
		"replace": s.Put(t.Context(), "d/object", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Replace}),
		"delete":  s.Delete(t.Context(), "d/object"),
	} {
		if !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), "read-only") || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", op, err)
		}
	}
	if err := s.Put(t.Context(), "d/object", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); !errors.Is(err, objstore.ErrExists) {
		t.Errorf("create over an object: %v", err)
	}
	if _, err := local.Create(filepath.Join(dir, "new"), local.Options{}); !errors.Is(err, syscall.EROFS) {
		t.Errorf("create: %v", err)
	}
}

// TestLocalNotPermitted: what a user may not see is not absent.
func TestLocalNotPermitted(t *testing.T) {
	t.Parallel()
	if !testkit.InNamespace(t, 1000) {
		return
	}
	dir := t.TempDir()
	s := newLocal(t, dir)
	write(t, s, "d/object", "content")
	write(t, s, "e/object", "content")
	chmod := func(name string, mode os.FileMode) {
		t.Helper()
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	chmod("d", 0)
	chmod("e/object", 0)
	t.Cleanup(func() { chmod("d", 0o700) })
	ctx := t.Context()
	errs := map[string]error{
		"create":  s.Put(ctx, "d/object", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}),
		"replace": s.Put(ctx, "d/object", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Replace}),
		"delete":  s.Delete(ctx, "d/object"),
	}
	_, errs["stat"] = s.Stat(ctx, "d/object")
	_, errs["get"] = s.Get(ctx, "d/object", 0, -1)
	_, errs["get of a file"] = s.Get(ctx, "e/object", 0, -1)
	_, errs["list"] = listAll(ctx, s, "")
	for op, err := range errs {
		if !errors.Is(err, os.ErrPermission) || errors.Is(err, objstore.ErrNotFound) || errors.Is(err, objstore.ErrExists) {
			t.Errorf("%s: %v, want a permission error", op, err)
		}
	}
	if names := temps(t, dir); len(names) != 0 {
		t.Errorf("left in tmp: %q", names)
	}
	chmod(".", 0)
	t.Cleanup(func() { chmod(".", 0o700) })
	if _, err := local.Open(filepath.Join(dir, "d"), local.Options{}); !errors.Is(err, os.ErrPermission) || errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("open: %v, want a permission error", err)
	}
}
